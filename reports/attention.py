"""Where the decoder looked at each word: the image in dim grey, glowing where the attention was.

The sheet of Xu et al. 2015, "Show, Attend and Tell" (figure 2).
"""

from collections.abc import Sequence
from math import ceil

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

PANEL = 256  # pixels: the longer side of a panel on the sheet
GAP, MARGIN, TITLE = 16, 28, 34  # pixels: between panels, around the sheet, for the word above a panel
WIDEST = 5 * (PANEL + GAP)  # pixels: about a slide's width

# Dark to light, so that brighter always means more, on a projector, in print and to the colour-blind.
HEAT = matplotlib.colormaps["inferno"]
UNLIT = 0.45  # what remains of the image's brightness where nothing was looked at
BLUR = 0.45  # cells, the Gaussian's standard deviation: no edges of cells to be seen, the peaks hardly lower
GLOW = 0.8  # how bright the glow is where it is strongest


def attention_sheet(image: Image.Image, words: Sequence[str], alphas: np.ndarray) -> Image.Image:
    """The image, then one panel per word, glowing where the attention was when the word was chosen; RGB.

    `alphas (T, rows, columns)` are the attention weights of the T words over a grid that covers the whole
    image, whatever its aspect ratio. All panels share one scale, from 0 to the largest weight on the sheet;
    beside each word stands its own largest weight. Raises ValueError where words and maps do not pair up.
    """
    alphas = np.asarray(alphas, dtype=np.float32)
    if alphas.ndim != 3 or len(alphas) != len(words):
        raise ValueError(f"alphas must be (words, rows, columns) for {len(words)} words, not {alphas.shape}")
    image = upright_rgb(image)
    scale = PANEL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)

    full = full_scale(alphas)
    panels = [("", "", image)]
    for word, alpha in zip(words, alphas, strict=True):
        panels.append((word, _percent(alpha.max()), overlay(image, alpha / full)))
    sheet = _lay_out(panels, " ".join(words))
    if len(words):
        _legend(sheet, full, f"of the word's attention in one of {alphas.shape[1]} × {alphas.shape[2]} cells")
    return sheet


def full_scale(alphas: np.ndarray) -> float:
    """The weight that glows brightest in all maps (T, rows, columns) of one image: the largest of them.

    At least four times the even share, so that attention to nothing in particular is no blaze.
    """
    cells = alphas.shape[1] * alphas.shape[2]
    return max(float(alphas.max(initial=0)), min(1.0, 4 / max(1, cells)))


def overlay(image: Image.Image, light: np.ndarray) -> Image.Image:
    """`image` (RGB) in dim grey, glowing where `light (rows, columns)`, 0 to 1, is high; same size."""
    smooth = _spread(image.height, light.shape[0]) @ light @ _spread(image.width, light.shape[1]).T
    glow = GLOW * HEAT(np.clip(smooth, 0, 1))[..., :3]
    grey = UNLIT * np.asarray(image.convert("L"), np.float32)[..., None] / 255
    # Light on light (the blend mode "screen"): it never darkens, so that more is brighter on any image.
    shown = 1 - (1 - grey) * (1 - glow)
    return Image.fromarray((shown * 255).round().astype(np.uint8))


def _spread(pixels: int, cells: int) -> np.ndarray:
    """(pixels, cells): what each cell gives to each pixel of one side, a Gaussian about its centre."""
    position = (np.arange(pixels) + 0.5) * cells / pixels  # of each pixel, in cells
    weight = np.exp(-0.5 * ((position[:, None] - np.arange(cells) - 0.5) / BLUR) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


def _lay_out(panels: list[tuple[str, str, Image.Image]], caption: str) -> Image.Image:
    """Panels of (word, weight, image) in even rows, the caption above, room for the legend below."""
    panel_width, panel_height = panels[0][2].size
    cell = max(panel_width, 120)  # a narrow image still needs room for its word
    rows = ceil(len(panels) * (cell + GAP) / WIDEST)
    columns = ceil(len(panels) / rows)
    width = max(columns * (cell + GAP) - GAP, 480) + 2 * MARGIN  # the legend needs the 480

    type_ = font(24, caption, bold=True)
    lines = wrap(caption, type_, width - 2 * MARGIN)
    top = MARGIN + 34 * len(lines)
    row_height = TITLE + panel_height + GAP
    sheet = Image.new("RGB", (width, top + rows * row_height + 20 + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN - 8 + 34 * number), line, fill=INK, font=type_)
    for number, (word, weight, panel) in enumerate(panels):
        x, y = MARGIN + number % columns * (cell + GAP), top + number // columns * row_height
        _title(draw, (x, y + TITLE - 8), word, weight, cell)
        sheet.paste(panel, (x, y + TITLE))
    return sheet


def _title(draw: ImageDraw.ImageDraw, baseline: tuple[int, int], word: str, weight: str, width: int) -> None:
    """The word, cut where it is too long, and its weight, on one line that starts at `baseline` (x, y)."""
    large, small = font(18, word + "…"), font(13, weight)
    room = width - small.getlength(weight) - 8
    while len(word) > 1 and large.getlength(word) > room:
        word = word.removesuffix("…")[:-1] + "…"
    draw.text(baseline, word, fill=INK, font=large, anchor="ls")
    draw.text(
        (baseline[0] + large.getlength(word) + 7, baseline[1]), weight, fill=GREY, font=small, anchor="ls"
    )


def _legend(sheet: Image.Image, full: float, meaning: str) -> None:
    """The scale of all panels, at the lower left of the sheet: from 0 to `full`."""
    ramp = overlay(Image.new("RGB", (120, 10), "#808080"), np.linspace(0, 1, 120)[None])
    middle = sheet.height - MARGIN - 4
    draw, small = ImageDraw.Draw(sheet), font(13, meaning)
    draw.text((MARGIN, middle), "0", fill=GREY, font=small, anchor="lm")
    sheet.paste(ramp, (MARGIN + 16, middle - 5))
    text = f"{_percent(full)} {meaning}"
    draw.text((MARGIN + 16 + ramp.width + 8, middle), text, fill=GREY, font=small, anchor="lm")


def _percent(weight: float) -> str:
    return f"{weight:.0%}" if weight >= 0.1 else f"{weight:.1%}"
