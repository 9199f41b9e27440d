"""An image with its caption below it and the reference captions beside it."""

from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

_NARROWEST = 384  # pixels; on less, a caption would be too small to read or have one word per line
_TALLEST_ENLARGED = 4096  # pixels; limits the size of an enlarged narrow image
_LONGEST = 16_384  # pixels of a side; a JPEG file can have 65,500, of which the text takes some
_LEADING = 1.32  # distance between two lines, as a multiple of the font size

_Line = tuple[str, float, str, float]  # text, its size, colour, and the y of its top, in pixels


def captioned_image(image: Image.Image, caption: str, references: Sequence[str] = ()) -> Image.Image:
    """The upright image, RGB, with `caption` wrapped beneath it and the `references` beside it, smaller.

    The image keeps its size, unless it is narrower than 384 pixels: then it is enlarged by a whole factor, so
    that the caption is readable. If it is longer than 16,384 pixels, it is reduced. The font size grows with
    the image.
    """
    image = upright_rgb(image)
    image.thumbnail((_LONGEST, _LONGEST))
    image = _wide_enough(image)
    # Limited by the area, so that a panorama does not get huge letters, and by the width, so that a narrow
    # image does not break words.
    size = max(15, min(image.width / 20, sqrt(image.width * image.height) / 22))
    margin = round(size * 0.9)

    below = _set([(caption, size, INK, 0)], image.width - 2 * margin, image.height + margin * 0.8)
    column = round(size * 16) if references else 0
    blocks = [("References", size * 0.62, GREY, 0.0)]
    blocks += [(reference, size * 0.75, INK, 0.45) for reference in references]
    beside = _set(blocks, column - 2 * margin, margin * 0.8) if references else []

    height = max(_end([*below, *beside]) + margin * 0.6, image.height)
    sheet = Image.new("RGB", (image.width + column, ceil(height)), PAPER)
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for left, lines in ((margin, below), (image.width + margin, beside)):
        for line, line_size, colour, top in lines:
            draw.text((left, top), line, fill=colour, font=font(line_size, line))
    return sheet


def _set(blocks: Sequence[tuple[str, float, str, float]], width: float, top: float) -> list[_Line]:
    """The lines of blocks of (text, size, colour, space above in sizes), at most `width` wide, from `top`."""
    lines = []
    for text, size, colour, space_above in blocks:
        top += space_above * size
        for line in wrap(text, font(size, text), width):
            lines.append((line, size, colour, top))
            top += size * _LEADING
    return lines


def _end(lines: Sequence[_Line]) -> float:
    return max(top + size * _LEADING for _, size, _, top in lines)


def _wide_enough(image: Image.Image) -> Image.Image:
    factor = max(1, min(ceil(_NARROWEST / image.width), _TALLEST_ENLARGED // image.height))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    if image.width < _NARROWEST:  # too tall to be enlarged more, so it gets white margins
        wide = Image.new("RGB", (_NARROWEST, image.height), PAPER)
        wide.paste(image, ((_NARROWEST - image.width) // 2, 0))
        return wide
    return image
