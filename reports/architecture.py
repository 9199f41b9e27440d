"""The model as a figure: what runs once per image above, what runs once per word below."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.path import Path as Line

from data.sample import Group, Scene, draw_scene
from models.diagram import Arrow, Box, Diagram, Point
from models.summary import Row, Summary, total
from outputs import OutputFolder
from reports.lettering import GREY, INK, PAPER
from utils import UserError

_WIDTH, _HEIGHT = 200, 118  # units of the figure
_PANEL, _EDGE = "#f5f6f8", "#3d4350"
_TRAINED, _FROZEN, _PLAIN = "#fde3c4", "#cfe2f7", "#ffffff"
_TIP = 0.6  # distance of the tip of an arrow from what it points to
_LEAN, _RISE = 0.24, 0.16  # how far the back of a slab is to the right and up, as shares of its height
_BOTTOM, _SIDE = 76, 25  # of the image and the grid
_ABOVE = 103.3  # where arrows pass over the maps
_MIDDLE = _BOTTOM + _SIDE / 2
# The image in the figure, a scene of the built-in sample; models/diagram.py has the start of its caption.
SCENE = Scene((Group(1, "large", "red", "heart"), Group(3, "small", "yellow", "star")), "above")


def draw_architecture(summary: Summary, diagram: Diagram, encoder: str, output: Path) -> None:
    """Draw the model of `summary`, whose encoder is called `encoder` and whose decoder is drawn by `diagram`.

    Raises:
        UserError: the name of `output` does not end in png, svg or pdf, or it cannot be written, or it is a
            file but not an earlier figure.
    """
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw {output}: the name must end in .png, .svg or .pdf")
    figure = Figure(figsize=(11, 11 * _HEIGHT / _WIDTH), dpi=160, facecolor=PAPER)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, _WIDTH), ylim=(0, _HEIGHT), aspect="equal")
    axis.set_axis_off()

    _draw_title(axis, summary, f"{encoder} and {diagram.title}")
    _draw_panels(axis, summary, diagram.split)
    _draw_encoder(axis, summary)
    _draw_decoder(axis, summary, diagram)
    # With this salt the ids in an SVG depend only on the figure, so the same figure gives the same file.
    salted = matplotlib.rc_context({"svg.hashsalt": "model"})
    with OutputFolder(output.parent).writing(output.name) as temporary, salted:
        metadata = {"Date": None} if output.suffix.lower() == ".svg" else None
        figure.savefig(temporary, format=output.suffix[1:].lower(), metadata=metadata)


def _draw_title(axis: Axes, summary: Summary, title: str) -> None:
    """The title on the left, the meaning of the colours on the right."""
    _write(axis, (3, 114), title, 15, weight="bold", ha="left")
    frozen = summary.parameters - summary.trained
    for x, colour, text in (
        (136, _TRAINED, f"trained: {short(summary.trained)}"),
        (168, _FROZEN, f"frozen: {short(frozen)}"),
    ):
        axis.add_patch(Rectangle((x, 112.8), 3.4, 2.6, facecolor=colour, edgecolor=_EDGE, linewidth=0.8))
        _write(axis, (x + 5, 114), text, 10.5, ha="left")


def _draw_panels(axis: Axes, summary: Summary, split: float) -> None:
    """The background: a panel for each image, which extends down to the left of `split`, and one per word."""
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=2",
        "facecolor": _PANEL,
        "edgecolor": "none",
        "zorder": 0,
    }
    for left, bottom, right, top in ((2, 66, 198, 110), (2, 2, split - 2, 76), (split + 2, 2, 198, 62)):
        axis.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, **style))
    for left, top, title, multiply_adds in (
        (2, 110, "Once per image", summary.per_image),
        (split + 2, 62, "Once per word", summary.per_word),
    ):
        _write(axis, (left + 4, top - 4), title, 12, weight="bold", ha="left")
        _write(axis, (194, top - 4), f"{short(multiply_adds)} multiply-adds", 10.5, ha="right")


def _draw_encoder(axis: Axes, summary: Summary) -> None:
    """The upper panel: image, the maps of the encoder, the grid."""
    _draw_image(axis, 7)
    _label(axis, 19.5, f"3 × {summary.image_size} × {summary.image_size}", "image")
    maps = summary.maps
    centres = np.linspace(49, 145, len(maps)) if len(maps) > 1 else [97.0]
    end = 32.0  # right edge of the last part that was drawn
    for one, centre in zip(maps, centres, strict=True):
        # Between the ratio of the sides and its root, so that the last maps stay visible.
        height = 25 * (one.side / maps[0].side) ** 0.55
        depth = 1.5 + 7 * math.sqrt(one.channels / maps[-1].channels)
        left = centre - depth / 2 - height * _LEAN / 2
        _draw_arrow(axis, Arrow(((end + 0.8, _MIDDLE), (left, _MIDDLE))))
        _draw_slab(axis, left, depth, height, _colour(one.rows))
        end = left + depth + height * _LEAN
        if one.is_read and one is not maps[-1]:
            start = (centre, _MIDDLE + height * (1 - _RISE) / 2)
            to_grid = ((176.5, _ABOVE), (176.5, _BOTTOM + _SIDE))
            _draw_arrow(axis, Arrow((start, (centre, _ABOVE), *to_grid)))
        _label(axis, centre, f"{one.channels} × {one.side} × {one.side}")
    _label(axis, 97, "", f"encoder: {short(total(summary.encoder, 'parameters'))} parameters")
    cells, channels = summary.grid
    _draw_arrow(axis, Arrow(((end + 0.8, _MIDDLE), (164, _MIDDLE))))
    _draw_image(axis, 164)
    _draw_grid(axis, 164, math.isqrt(cells), summary.attends)
    _label(axis, 176.5, f"{cells} cell{'s' if cells > 1 else ''} of {channels}", "grid")


def _draw_decoder(axis: Axes, summary: Summary, diagram: Diagram) -> None:
    """The lower panel, as `diagram` describes it."""
    for box in diagram.boxes:
        _draw_box(axis, box, summary.decoder_rows(box.modules))
    for arrow in diagram.arrows:
        _draw_arrow(axis, arrow)
    for note in diagram.notes:
        _write(axis, (note.x, note.y), note.text, 9, GREY)


# --- parts of the panels ---


def _draw_box(axis: Axes, box: Box, rows: Sequence[Row]) -> None:
    """A part of the model: its name, what it does, and its parameters."""
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=1.6",
        "edgecolor": _EDGE,
        "linewidth": 1,
        "zorder": 2,
    }
    axis.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, facecolor=_colour(rows), **style))
    lines = [(box.title, 10.5, INK)]
    if box.text:
        lines.append((box.text, 9, INK))
    if rows and box.count:
        parameters = total(rows, "parameters")
        cost = f"{short(parameters)} parameters" if parameters else "no parameters"
        lines.append((f"{cost}, {box.remark}" if parameters and box.remark else cost, 9, GREY))
    for i, (line, size, colour) in enumerate(lines):
        centre = (box.top[0], box.left[1] + 3.9 * ((len(lines) - 1) / 2 - i))
        _write(axis, centre, line, size, colour, weight="normal" if i else "bold")


def _draw_slab(axis: Axes, left: float, depth: float, height: float, colour: str) -> None:
    """A stack of feature maps, drawn deeper for more channels."""
    back = np.array((height * _LEAN, height * _RISE))
    front = np.array([(0, 0), (depth, 0), (depth, height * (1 - _RISE)), (0, height * (1 - _RISE))])
    front += (left, _MIDDLE - height / 2)
    top = [front[3], front[2], front[2] + back, front[3] + back]
    side = [front[1], front[2], front[2] + back, front[1] + back]
    style: dict[str, Any] = {"edgecolor": _EDGE, "linewidth": 0.9, "joinstyle": "round", "zorder": 2}
    axis.add_patch(Polygon(front, facecolor=_shade(colour, 0.94), **style))
    axis.add_patch(Polygon(top, facecolor=_shade(colour, 1.03), **style))
    axis.add_patch(Polygon(side, facecolor=colour, **style))


def _draw_arrow(axis: Axes, arrow: Arrow) -> None:
    *points, before, end = np.asarray(arrow.points, float)
    end = end - _TIP * (end - before) / np.linalg.norm(end - before)
    line = (0, (4, 2.5)) if arrow.dashed else "-"
    path = Line([*points, before, end])
    axis.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>,head_length=4.2,head_width=2.2",
            color=_EDGE,
            linewidth=1.3,
            linestyle=line,
            joinstyle="round",
            zorder=1,
        )
    )
    if arrow.label:
        _write(axis, arrow.label_at, arrow.label, 9, GREY)


def _label(axis: Axes, x: float, shape: str, name: str = "") -> None:
    """A shape, and a name below it, in the upper panel."""
    _write(axis, (x, 73), shape, 9.5, GREY)
    _write(axis, (x, 69), name, 10.5, weight="bold")


def _write(axis: Axes, at: Point, text: str, size: float, colour: str = INK, **style) -> None:
    style = {"ha": "center", "va": "center_baseline", "parse_math": False, "zorder": 4, **style}
    axis.text(*at, text, fontsize=size, color=colour, **style)


def _draw_image(axis: Axes, left: float) -> None:
    """The scene in a frame."""
    image = draw_scene(SCENE, random.Random(3))
    _show(axis, image, left, zorder=2, interpolation="antialiased")
    axis.add_patch(
        Rectangle((left, _BOTTOM), _SIDE, _SIDE, facecolor="none", edgecolor=_EDGE, linewidth=1, zorder=4)
    )


def _draw_grid(axis: Axes, left: float, cells: int, attends: bool) -> None:
    """The cells of the grid over the image; with attention, all but those around the heart are dark."""
    centres = (np.arange(cells) + 0.5) / cells
    distance = (centres[None] - 0.54) ** 2 + (centres[:, None] - 0.24) ** 2
    shadow = np.zeros((cells, cells, 4))
    shadow[..., 3] = 0.68 * (1 - np.exp(-distance / 0.03)) if attends else 0
    _show(axis, shadow, left, zorder=3, interpolation="nearest")
    if cells > 20:  # so many lines would hide the image
        return
    style: dict[str, Any] = {"color": "#ffffff" if attends else GREY, "linewidth": 0.6, "zorder": 3}
    for i in range(1, cells):
        axis.plot([left, left + _SIDE], [_BOTTOM + _SIDE * i / cells] * 2, **style)
        axis.plot([left + _SIDE * i / cells] * 2, [_BOTTOM, _BOTTOM + _SIDE], **style)


def _show(axis: Axes, image, left: float, **style) -> None:
    axis.imshow(image, extent=(left, left + _SIDE, _BOTTOM, _BOTTOM + _SIDE), **style)
    axis.set(xlim=(0, _WIDTH), ylim=(0, _HEIGHT))  # imshow has changed them


def _colour(rows: Sequence[Row]) -> str:
    if not total(rows, "parameters"):
        return _PLAIN
    return _TRAINED if total(rows, "trained") else _FROZEN


def _shade(colour: str, factor: float) -> tuple[float, ...]:
    return tuple(min(1.0, value * factor) for value in matplotlib.colors.to_rgb(colour))


def short(number: int) -> str:
    """4,087,136,256 as 4.09 G."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return str(number)
