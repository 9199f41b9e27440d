"""A few images with the captions of the model after each epoch, to show how it learns."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

_COLUMN, _LABEL = 208, 92  # pixels: width of an image, and of the epochs on the left
_GAP, _MARGIN = 18, 28  # pixels: between columns, around the sheet
_TYPE, _LINE = 15, 20  # pixels: font size of the captions, distance between lines
_RULE = "#e3e5e8"
_ROWS = 8  # most epochs on the sheet

_Row = tuple[str, str, Sequence[str]]  # label, note below it, a caption per image


def samples_sheet(
    images: Sequence[Image.Image], rows: Sequence[_Row], references: Sequence[str]
) -> Image.Image:
    """The images side by side, below them a row of captions for each of `rows`, then `references`; RGB.

    If there are many rows, only some are drawn: the first, the last, and more early rows than late ones,
    because captions change most at first. A caption that equals the one above it is grey.
    """
    if len(rows) > _ROWS:
        rows = [rows[i] for i in sorted({round(i) - 1 for i in np.geomspace(1, len(rows), _ROWS)})]
    rows = [*rows, ("reference", "", references)]
    small = [_fitted(upright_rgb(image)) for image in images]
    top = _MARGIN + max(image.height for image in small) + _GAP
    lines = [[wrap(text, font(_TYPE, text), _COLUMN) for text in captions] for _, _, captions in rows]
    heights = [max(2, *map(len, row)) * _LINE + _GAP for row in lines]

    left = [_MARGIN + _LABEL + i * (_COLUMN + _GAP) for i in range(len(small))]
    sheet = Image.new("RGB", (left[-1] + _COLUMN + _MARGIN, top + sum(heights) + _MARGIN - _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, image in zip(left, small, strict=True):
        sheet.paste(image, (x, top - _GAP - image.height))
    before: Sequence[str] = [""] * len(small)
    for (label, note, captions), row, height in zip(rows, lines, heights, strict=True):
        draw.line((_MARGIN, top - _GAP / 2, sheet.width - _MARGIN, top - _GAP / 2), fill=_RULE)
        draw.text((_MARGIN, top), label, fill=INK, font=font(_TYPE, label, bold=True))
        draw.text((_MARGIN, top + _LINE), note, fill=GREY, font=font(_TYPE - 3, note))
        for x, text, old, cell in zip(left, captions, before, row, strict=True):
            for number, line in enumerate(cell):
                colour = GREY if text == old and captions is not references else INK
                draw.text((x, top + number * _LINE), line, fill=colour, font=font(_TYPE, text))
        before, top = captions, top + height
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    """The image with a longer side of _COLUMN pixels, and no side of 0, which ImageOps.contain can return."""
    scale = _COLUMN / max(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
