"""The model as a figure: what happens once per image above, what happens once per word below."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.path import Path as Line

from config import Config
from data.sample import Group, Scene, describe, draw_scene
from files import replacing
from models.summary import Row, Summary, total
from reports.lettering import GREY, INK, PAPER
from utils import UserError

WIDTH, HEIGHT = 200, 118  # units of the sheet
PANEL, EDGE = "#f5f6f8", "#3d4350"
TRAINED, FROZEN, PLAIN = "#fde3c4", "#cfe2f7", "#ffffff"
BOX = {"boxstyle": "round,pad=0,rounding_size=1.6", "edgecolor": EDGE, "linewidth": 1, "zorder": 2}
LEAN, RISE = 0.24, 0.16  # how a slab recedes, in parts of its height
# What the figure captions: a scene of the sample.
SCENE = Scene((Group(1, "large", "red", "heart"), Group(3, "small", "yellow", "star")), "above")
WORDS = describe(SCENE)[0].split()


def draw_architecture(summary: Summary, config: Config, words: int, size: int, output: Path) -> None:
    """Draw the model of `config` with a vocabulary of `words` and images of `size` pixels a side.

    Raises:
        UserError: the name of `output` ends in something else than png, svg or pdf, or it cannot be written.
    """
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw {output}: the name must end in .png, .svg or .pdf")
    figure = Figure(figsize=(11, 11 * HEIGHT / WIDTH), dpi=160, facecolor=PAPER)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axis.set_axis_off()

    draw_title(axis, summary, config)
    draw_encoder(axis, summary, config, size)
    if config.decoder.kind == "attention":
        draw_attention_decoder(axis, summary, config, words)
    else:
        draw_lstm_decoder(axis, summary, config, words)
    try:
        # The same figure is the same file: names of glyphs in an SVG depend on nothing but the figure.
        with replacing(output) as temporary, matplotlib.rc_context({"svg.hashsalt": "model"}):
            metadata = {"Date": None} if output.suffix.lower() == ".svg" else None
            figure.savefig(temporary, format=output.suffix[1:].lower(), metadata=metadata)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None


# --- the two panels ---


def draw_title(axis: Axes, summary: Summary, config: Config) -> None:
    decoder = "an LSTM with soft attention" if config.decoder.kind == "attention" else "an LSTM"
    write(axis, 3, 114, f"{config.encoder.name} and {decoder}", 15, bold=True, align="left")
    for x, colour, number, word in (
        (136, TRAINED, summary.trained, "trained"),
        (168, FROZEN, summary.parameters - summary.trained, "frozen"),
    ):
        axis.add_patch(Rectangle((x, 112.8), 3.4, 2.6, facecolor=colour, edgecolor=EDGE, linewidth=0.8))
        write(axis, x + 5, 114, f"{word}: {short(number)}", 10.5, align="left")


def draw_encoder(axis: Axes, summary: Summary, config: Config, size: int) -> None:
    """The upper panel: image, the encoder's maps, the grid."""
    show_image(axis, 7, 76, 25)
    write(axis, 19.5, 73, f"3 × {size} × {size}", 9.5, GREY)
    write(axis, 19.5, 69, "image", 10.5, bold=True)
    maps = maps_of(summary.encoder)
    centres = np.linspace(49, 145, len(maps)) if len(maps) > 1 else [97.0]
    end = 32.0  # right edge of what is drawn so far
    for (rows, channels, side), centre in zip(maps, centres, strict=True):
        height = (
            25 * (side / maps[0][2]) ** 0.55
        )  # between the sides and their roots: the last ones stay visible
        depth = 1.5 + 7 * math.sqrt(channels / maps[-1][1])
        left = centre - depth / 2 - height * LEAN / 2
        arrow(axis, [(end + 0.8, 88.5), (left - 0.6, 88.5)])
        slab(axis, left, 88.5, depth, height, colour_of(rows))
        end = left + depth + height * LEAN
        write(axis, centre, 73, f"{channels} × {side} × {side}", 9.5, GREY)
    parameters = short(total(summary.encoder, "parameters"))
    write(axis, 97, 69, f"encoder: {parameters} parameters", 10.5, bold=True)
    cells, channels = summary.grid
    arrow(axis, [(end + 0.8, 88.5), (163.4, 88.5)])
    show_image(axis, 164, 76, 25, cells=math.isqrt(cells), shaded=config.decoder.kind == "attention")
    write(axis, 176.5, 73, f"{cells} cell{'s' if cells > 1 else ''} of {channels}", 9.5, GREY)
    write(axis, 176.5, 69, "grid", 10.5, bold=True)


def draw_attention_decoder(axis: Axes, summary: Summary, config: Config, words: int) -> None:
    """The lower panel: one step of the decoder with attention."""
    panels(axis, summary, split=51)
    rows = {row.name.removeprefix("decoder."): [row] for row in [*summary.start, *summary.step]}
    tied = ", tied" if config.decoder.tie_embeddings else ""
    keys = [row for row in summary.start if row.name.startswith("decoder.attention")]
    lstm = [row for name in ("from_word", "from_context", "from_hidden") for row in rows[name]]
    width = config.decoder.hidden_dim
    spoken, said = WORDS[2], WORDS[3]

    box(axis, 7, 38, 37, 14, "cells", f"each projected to {width}", rows["cells"] + keys)
    box(axis, 7, 20, 37, 14, "first state", "from the cells’ mean", rows["init"])
    where = f"where to look: α, {summary.grid[0]} weights"
    box(axis, 68, 38, 38, 14, "soft attention", where, rows["attention"] + rows["gate"])
    box(axis, 68, 20, 38, 14, "LSTM", f"what was said so far: {width}", lstm)
    box(axis, 68, 5, 38, 11, f"last word: “{spoken}”", None, rows["embedding"])
    box(axis, 121, 20, 28, 14, "deep output", "all three, joined", rows["deep"])
    box(axis, 160, 20, 34, 14, "word scores", f"a logit for each of {words:,}", rows["output"], tied)
    box(axis, 160, 40.5, 34, 9, f"next word: “{said}”", None, [])

    arrow(axis, [(176.5, 67), (176.5, 64), (25.5, 64), (25.5, 52.6)])
    arrow(axis, [(44, 45), (67.4, 45)], "cells, keys", (60, 47))
    arrow(axis, [(25.5, 38), (25.5, 34.6)])
    arrow(axis, [(44, 27), (67.4, 27)], "at the start", (60, 29))
    arrow(axis, [(80, 38), (80, 34.6)], "context", (74, 36.2))
    arrow(axis, [(94, 34), (94, 37.4)], "state", (98.4, 36.2))
    arrow(axis, [(87, 16), (87, 19.4)])
    arrow(axis, [(106, 27), (120.4, 27)], "state", (113, 29))
    arrow(axis, [(106, 45), (135, 45), (135, 34.6)], "context × gate β", (120.5, 47))
    arrow(axis, [(106, 12.5), (135, 12.5), (135, 19.4)], "word", (113, 14.5))
    arrow(axis, [(149, 27), (159.4, 27)])
    arrow(axis, [(177, 34), (177, 39.9)])
    arrow(axis, [(194, 45), (196.2, 45), (196.2, 8), (106.6, 8)], dashed=True)
    write(axis, 165, 5.4, "in training, the caption’s own next word", 9, GREY)


def draw_lstm_decoder(axis: Axes, summary: Summary, config: Config, words: int) -> None:
    """The lower panel: the plain LSTM, step after step."""
    panels(axis, summary, split=40)
    rows = {row.name.removeprefix("decoder."): [row] for row in [*summary.step, *summary.start]}
    layers, width = config.decoder.layers, config.decoder.hidden_dim
    deep = f"{layers} layers of {width}" if layers > 1 else f"a state of {width}"
    lstm = [row for row in summary.start if row.name == "decoder.lstm"]

    tied = ", tied" if config.decoder.tie_embeddings else ""
    box(axis, 157, 40, 37, 14, "word scores", f"a logit for each of {words:,}", rows["output"], tied)
    box(axis, 157, 23, 37, 14, "LSTM", deep, lstm)
    box(axis, 157, 6, 37, 14, "words", embedding_text(config, words), rows["embedding"])
    box(axis, 8, 6, 27, 14, "the image", "mean cell, projected", rows["image"])
    arrow(axis, [(176.5, 67), (176.5, 64), (5, 64), (5, 13), (7.4, 13)])
    read = ["", "<sos>", *(f"“{word}”" for word in WORDS)]
    for i, x in enumerate((12, 47, 74, 101, 128)):  # left edges
        small(axis, x, 26.5, "LSTM", colour_of(lstm))
        arrow(axis, [(x + 9.5, 16.5 if i else 20), (x + 9.5, 25.9)])
        arrow(axis, [(x + 19, 30), (x + (34.4 if i == 0 else 26.4 if i < 4 else 24), 30)])
        if i:
            small(axis, x, 9.5, read[i], colour_of(rows["embedding"]))
            small(axis, x, 43.5, read[i + 1], PLAIN)
            arrow(axis, [(x + 9.5, 33.5), (x + 9.5, 42.9)])
        if i > 1:
            arrow(axis, [(x - 8, 47), (x - 4, 47), (x - 4, 13), (x - 0.6, 13)], dashed=True)
    write(axis, 97, 5, "each word said is the next one read; in training, the caption’s own", 9, GREY)


def embedding_text(config: Config, words: int) -> str:
    if config.decoder.embeddings == "one_hot":
        return f"one-hot: {words:,} numbers"
    return f"embedded in {config.decoder.embed_dim} numbers"


# --- what the panels are made of ---


def panels(axis: Axes, summary: Summary, split: float) -> None:
    """The ground: once per image, which reaches down to the left of `split`, and once per word."""
    style = {"boxstyle": "round,pad=0,rounding_size=2", "facecolor": PANEL, "edgecolor": "none", "zorder": 0}
    for left, bottom, right, top in ((2, 66, 198, 110), (2, 2, split - 2, 76), (split + 2, 2, 198, 62)):
        axis.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, **style))
    for left, top, title, work in (
        (2, 110, "Once per image", summary.per_image),
        (split + 2, 62, "Once per word", summary.per_word),
    ):
        write(axis, left + 4, top - 4, title, 12, bold=True, align="left")
        write(axis, 194, top - 4, f"{short(work)} multiply-adds", 10.5, align="right")


def box(axis, x, y, width, height, title: str, text: str | None, rows: Sequence[Row], more: str = "") -> None:
    """A part of the model: its name, what it does, and its parameters (`more` is said of them)."""
    axis.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour_of(rows), **BOX))
    lines = [(title, 10.5, INK, True)]
    if text:
        lines.append((text, 9, INK, False))
    if rows:
        parameters = total(rows, "parameters")
        cost = f"{short(parameters)} parameters{more}" if parameters else "no parameters"
        lines.append((cost, 9, GREY, False))
    for i, (line, size, colour, bold) in enumerate(lines):
        offset = 3.9 * ((len(lines) - 1) / 2 - i)
        write(axis, x + width / 2, y + height / 2 + offset, line, size, colour, bold=bold)


def small(axis, x, y, text: str, colour: str) -> None:
    """A part that is drawn several times, by its name alone."""
    axis.add_patch(FancyBboxPatch((x, y), 19, 7, facecolor=colour, **BOX))
    write(axis, x + 9.5, y + 3.5, text, 10.5, bold=True)


def slab(axis: Axes, left: float, middle: float, depth: float, height: float, colour: str) -> None:
    """A stack of feature maps, seen from the side: as deep as it has channels."""
    back = np.array((height * LEAN, height * RISE))
    front = np.array([(0, 0), (depth, 0), (depth, height * (1 - RISE)), (0, height * (1 - RISE))])
    front += (left, middle - height / 2)
    top = [front[3], front[2], front[2] + back, front[3] + back]
    side = [front[1], front[2], front[2] + back, front[1] + back]
    style = {"edgecolor": EDGE, "linewidth": 0.9, "joinstyle": "round", "zorder": 2}
    axis.add_patch(Polygon(front, facecolor=shade(colour, 0.94), **style))
    axis.add_patch(Polygon(top, facecolor=shade(colour, 1.03), **style))
    axis.add_patch(Polygon(side, facecolor=colour, **style))


def arrow(axis, points, label: str = "", at=(0.0, 0.0), dashed: bool = False) -> None:
    """Along `points`, with a tip at the last one."""
    style = {"arrowstyle": "-|>,head_length=4.2,head_width=2.2", "color": EDGE, "linewidth": 1.3, "zorder": 1}
    line = (0, (4, 2.5)) if dashed else "-"
    axis.add_patch(FancyArrowPatch(path=Line(points), linestyle=line, joinstyle="round", **style))
    if label:
        write(axis, *at, label, 9, GREY)


def write(axis, x, y, text, size, colour=INK, bold: bool = False, align: str = "center") -> None:
    weight = "bold" if bold else "normal"
    axis.text(
        x, y, text, fontsize=size, color=colour, weight=weight, ha=align, va="center_baseline",
        parse_math=False, zorder=4,
    )  # fmt: skip


def show_image(axis, left, bottom, side, cells: int = 0, shaded: bool = False) -> None:
    """The scene; with the cells of the grid over it, the one place shaded that a word might look at."""
    extent = (left, left + side, bottom, bottom + side)
    axis.imshow(draw_scene(SCENE, random.Random(3)), extent=extent, zorder=2, interpolation="antialiased")
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    frame = {"facecolor": "none", "edgecolor": EDGE, "linewidth": 1, "zorder": 4}
    axis.add_patch(Rectangle((left, bottom), side, side, **frame))
    if not cells:
        return
    at = (np.arange(cells) + 0.5) / cells
    distance = (at[None] - 0.54) ** 2 + (at[:, None] - 0.24) ** 2
    veil = np.zeros((cells, cells, 4))
    veil[..., 3] = 0.68 * (1 - np.exp(-distance / 0.03)) if shaded else 0
    axis.imshow(veil, extent=extent, zorder=3, interpolation="nearest")
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    if cells <= 20:
        for i in range(1, cells):
            line = {"color": "#ffffff" if shaded else GREY, "linewidth": 0.6, "zorder": 3}
            axis.plot([left, left + side], [bottom + side * i / cells] * 2, **line)
            axis.plot([left + side * i / cells] * 2, [bottom, bottom + side], **line)


def maps_of(rows: Sequence[Row]) -> list[tuple[list[Row], int, int]]:
    """The encoder's rows between one halving of the maps and the next, with channels and cells a side."""
    maps = {}
    for row in rows:
        if len(row.shape) < 2:
            continue
        if len(row.shape) == 2:  # tokens
            channels, side = row.shape[1], math.isqrt(row.shape[0])
        elif row.shape[0] == row.shape[1] != row.shape[2]:  # channels last
            channels, side = row.shape[2], row.shape[0]
        else:
            channels, side = row.shape[:2]
        halvings = round(math.log2(side))
        maps[halvings] = ([*maps.get(halvings, ([],))[0], row], channels, side)
    return list(maps.values())


def colour_of(rows: Sequence[Row]) -> str:
    if not total(rows, "parameters"):
        return PLAIN
    return TRAINED if total(rows, "trained") else FROZEN


def shade(colour: str, factor: float) -> tuple[float, ...]:
    return tuple(min(1.0, value * factor) for value in matplotlib.colors.to_rgb(colour))


def short(number: int) -> str:
    """4,087,136,256 as 4.09 G."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return str(number)
