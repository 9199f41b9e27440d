"""The attention for each word, drawn over the image: dim grey, with bright colours where attention is high.

It follows figure 2 of "Show, Attend and Tell" (Xu et al., 2015).
"""

from collections.abc import Sequence
from math import ceil

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

_PANEL = 256  # pixels: the longer side of a panel on the sheet
_GAP, _MARGIN, _TITLE = 16, 28, 34  # pixels: between panels, around the sheet, for the title of a panel
_LONGEST_WORD = 100  # letters; no more fit above a panel
_WIDEST = 5 * (_PANEL + _GAP)  # pixels: about the width of a slide

# From dark to light, so that brighter means more on a projector, in print, and for colour-blind people.
HEAT = matplotlib.colormaps["inferno"]
UNLIT = 0.45  # brightness of the image without attention, as a share of its original brightness
BLUR = 0.45  # cells, standard deviation of a Gaussian, which hides edges of cells and hardly lowers peaks
GLOW = 0.8  # brightness of the colours where the attention is highest


def attention_sheet(image: Image.Image, words: Sequence[str], alphas: np.ndarray) -> Image.Image:
    """The image, then one panel for each word with its attention drawn over the image; RGB.

    `alphas (T, rows, columns)` are the attention weights of the T words over a grid that covers the whole
    image. All panels share one scale, from 0 to the largest weight on the sheet; the number beside a word is
    the largest weight for this word. Raises ValueError if there is not one map per word.
    """
    alphas = np.asarray(alphas, dtype=np.float32)
    if alphas.ndim != 3 or len(alphas) != len(words):
        raise ValueError(f"alphas must be (words, rows, columns) for {len(words)} words, not {alphas.shape}")
    image = upright_rgb(image)
    scale = _PANEL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)

    full = full_scale(alphas)
    panels = [("", "", image)]
    for word, alpha in zip(words, alphas, strict=True):
        panels.append((word, percent(alpha.max()), overlay(image, alpha / full)))
    sheet = _lay_out(panels, " ".join(words))
    if len(words):
        _legend(sheet, full, f"of the word's attention in one of {alphas.shape[1]} × {alphas.shape[2]} cells")
    return sheet


def full_scale(alphas: np.ndarray) -> float:
    """The weight that gets the brightest colour in the maps (T, rows, columns) of an image: the largest one.

    It is at least four times the weight of uniform attention, so that nearly uniform attention stays dark.
    """
    cells = alphas.shape[1] * alphas.shape[2]
    return max(float(alphas.max(initial=0)), min(1.0, 4 / max(1, cells)))


def overlay(image: Image.Image, light: np.ndarray) -> Image.Image:
    """`image` (RGB) in dim grey, with bright colours where `light (rows, columns)`, 0 to 1, is high."""
    smooth = _spread(image.height, light.shape[0]) @ light @ _spread(image.width, light.shape[1]).T
    glow = GLOW * HEAT(np.clip(smooth, 0, 1))[..., :3]
    grey = UNLIT * np.asarray(image.convert("L"), np.float32)[..., None] / 255
    # The blend mode "screen" never darkens, so more attention is brighter on any image.
    blended = 1 - (1 - grey) * (1 - glow)
    return Image.fromarray((blended * 255).round().astype(np.uint8))


def _spread(pixels: int, cells: int) -> np.ndarray:
    """(pixels, cells): for each pixel along one side, the weights of the cells by a Gaussian around each."""
    position = (np.arange(pixels) + 0.5) * cells / pixels  # of each pixel, in cells
    weight = np.exp(-0.5 * ((position[:, None] - np.arange(cells) - 0.5) / BLUR) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


def _lay_out(panels: list[tuple[str, str, Image.Image]], caption: str) -> Image.Image:
    """Panels of (word, weight, image) in rows, with the caption above and space for the legend below."""
    panel_width, panel_height = panels[0][2].size
    cell = max(panel_width, 120)  # a word needs more space than a narrow image
    rows = ceil(len(panels) * (cell + _GAP) / _WIDEST)
    columns = ceil(len(panels) / rows)
    width = max(columns * (cell + _GAP) - _GAP, 480) + 2 * _MARGIN  # the legend needs 480

    bold = font(24, caption, bold=True)
    lines = wrap(caption, bold, width - 2 * _MARGIN)
    top = _MARGIN + 34 * len(lines)
    row_height = _TITLE + panel_height + _GAP
    sheet = Image.new("RGB", (width, top + rows * row_height + 20 + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN - 8 + 34 * number), line, fill=INK, font=bold)
    for number, (word, weight, panel) in enumerate(panels):
        x, y = _MARGIN + number % columns * (cell + _GAP), top + number // columns * row_height
        _title(draw, (x, y + _TITLE - 8), word, weight, cell)
        sheet.paste(panel, (x, y + _TITLE))
    return sheet


def _title(draw: ImageDraw.ImageDraw, baseline: tuple[int, int], word: str, weight: str, width: int) -> None:
    """The word, shortened if it is too long, and its weight, on a line that starts at `baseline` (x, y)."""
    word = " ".join(word.split())[:_LONGEST_WORD]  # line breaks cannot be measured
    large, small = font(18, word + "…"), font(13, weight)
    room = width - small.getlength(weight) - 8
    while len(word) > 1 and large.getlength(word) > room:
        word = word.removesuffix("…")[:-1] + "…"
    draw.text(baseline, word, fill=INK, font=large, anchor="ls")
    beside = (baseline[0] + large.getlength(word) + 7, baseline[1])
    draw.text(beside, weight, fill=GREY, font=small, anchor="ls")


def _legend(sheet: Image.Image, full: float, meaning: str) -> None:
    """The scale of all panels, from 0 to `full`, at the lower left of the sheet."""
    ramp = overlay(Image.new("RGB", (120, 10), "#808080"), np.linspace(0, 1, 120)[None])
    middle = sheet.height - _MARGIN - 4
    draw, small = ImageDraw.Draw(sheet), font(13, meaning)
    draw.text((_MARGIN, middle), "0", fill=GREY, font=small, anchor="lm")
    sheet.paste(ramp, (_MARGIN + 16, middle - 5))
    text = f"{percent(full)} {meaning}"
    draw.text((_MARGIN + 16 + ramp.width + 8, middle), text, fill=GREY, font=small, anchor="lm")


def percent(weight: float) -> str:
    """A weight of attention as it is shown: 8.2%, 31%."""
    return f"{weight:.0%}" if weight >= 0.1 else f"{weight:.1%}"
