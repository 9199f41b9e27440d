"""The same few images after each epoch, with what the model said of them then: one sees it learning."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

COLUMN, LABEL = 208, 92  # pixels: width of an image, and of the epochs on the left
GAP, MARGIN = 18, 28  # pixels: between columns, around the sheet
TYPE, LINE = 15, 20  # pixels: size of the captions, from one line to the next
RULE = "#e3e5e8"
ROWS = 8  # epochs shown at most

Row = tuple[str, str, Sequence[str]]  # label, what stands below it, a caption per image


def samples_sheet(
    images: Sequence[Image.Image], rows: Sequence[Row], references: Sequence[str]
) -> Image.Image:
    """The images side by side, beneath them a row of captions for each of `rows`, then `references`; RGB.

    Of many rows only some are shown, the first and the last among them, closer together where they are
    early: that is when captions change most. A caption of the model's that is the one above it is grey.
    """
    if len(rows) > ROWS:
        rows = [rows[i] for i in sorted({round(i) - 1 for i in np.geomspace(1, len(rows), ROWS)})]
    shown = [*rows, ("people", "", references)]
    small = [ImageOps.contain(upright_rgb(image), (COLUMN, COLUMN)) for image in images]
    top = MARGIN + max(image.height for image in small) + GAP
    lines = [[wrap(text, font(TYPE, text), COLUMN) for text in captions] for _, _, captions in shown]
    heights = [max(2, *map(len, row)) * LINE + GAP for row in lines]

    left = [MARGIN + LABEL + i * (COLUMN + GAP) for i in range(len(small))]
    sheet = Image.new("RGB", (left[-1] + COLUMN + MARGIN, top + sum(heights) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, image in zip(left, small, strict=True):
        sheet.paste(image, (x, top - GAP - image.height))
    before: Sequence[str] = [""] * len(small)
    for (label, note, captions), row, height in zip(shown, lines, heights, strict=True):
        draw.line((MARGIN, top - GAP / 2, sheet.width - MARGIN, top - GAP / 2), fill=RULE)
        draw.text((MARGIN, top), label, fill=INK, font=font(TYPE, label, bold=True))
        draw.text((MARGIN, top + LINE), note, fill=GREY, font=font(TYPE - 3, note))
        for x, text, old, cell in zip(left, captions, before, row, strict=True):
            for number, line in enumerate(cell):
                colour = GREY if text == old and captions is not references else INK
                draw.text((x, top + number * LINE), line, fill=colour, font=font(TYPE, text))
        before, top = captions, top + height
    return sheet
