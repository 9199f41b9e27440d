"""An image with its caption set underneath, as it would stand in a book, and what people said beside it."""

from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

NARROWEST = 384  # pixels; a caption in fewer is either unreadable or one word a line
TALLEST_ENLARGED = 4096  # pixels; keeps a narrow strip from being blown up into a giant
LEADING = 1.32  # from one line to the next, in heights of the type

Line = tuple[str, float, str, float]  # text, its size, colour, and the y of its top, in pixels


def captioned_image(image: Image.Image, caption: str, references: Sequence[str] = ()) -> Image.Image:
    """The upright image, RGB, with `caption` wrapped beneath it and the `references` beside it, smaller.

    The image keeps its pixels. One narrower than 384 pixels is enlarged by a whole factor first, so that
    the type is readable; on larger ones the type grows with the image.
    """
    image = _wide_enough(upright_rgb(image))
    # By area, so that a panorama gets no giant letters; by width, so that a column keeps words on its lines.
    size = max(15, min(image.width / 20, sqrt(image.width * image.height) / 22))
    margin = round(size * 0.9)

    below = _set([(caption, size, INK, 0)], image.width - 2 * margin, image.height + margin * 0.8)
    column = round(size * 16) if references else 0
    said = [("What people said", size * 0.62, GREY, 0.0)]
    said += [(reference, size * 0.75, INK, 0.45) for reference in references]
    beside = _set(said, column - 2 * margin, margin * 0.8) if references else []

    height = max(_end([*below, *beside]) + margin * 0.6, image.height)
    sheet = Image.new("RGB", (image.width + column, ceil(height)), PAPER)
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for left, lines in ((margin, below), (image.width + margin, beside)):
        for line, line_size, colour, top in lines:
            draw.text((left, top), line, fill=colour, font=font(line_size, line))
    return sheet


def _set(blocks: Sequence[tuple[str, float, str, float]], width: float, top: float) -> list[Line]:
    """Lines of blocks of (text, size, colour, space above in sizes), from `top` downwards, `width` wide."""
    lines = []
    for text, size, colour, space_above in blocks:
        top += space_above * size
        for line in wrap(text, font(size, text), width):
            lines.append((line, size, colour, top))
            top += size * LEADING
    return lines


def _end(lines: Sequence[Line]) -> float:
    return max(top + size * LEADING for _, size, _, top in lines)


def _wide_enough(image: Image.Image) -> Image.Image:
    factor = max(1, min(ceil(NARROWEST / image.width), TALLEST_ENLARGED // image.height))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    if image.width < NARROWEST:  # a narrow strip: paper beside it
        wide = Image.new("RGB", (NARROWEST, image.height), PAPER)
        wide.paste(image, ((NARROWEST - image.width) // 2, 0))
        return wide
    return image
