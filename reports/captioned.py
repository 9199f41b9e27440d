"""A picture with its caption set underneath, as it would stand in a book."""

from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw

from data.transforms import upright_rgb
from reports.lettering import GREY, INK, PAPER, font, wrap

NARROWEST = 384  # pixels; a caption in fewer is either unreadable or one word a line
TALLEST_ENLARGED = 4096  # pixels; keeps a narrow strip from being blown up into a giant


def captioned_picture(picture: Image.Image, caption: str, references: Sequence[str] = ()) -> Image.Image:
    """The upright picture, RGB, with `caption` wrapped beneath it and the `references` smaller beneath that.

    The picture keeps its pixels. One narrower than 384 pixels is enlarged by a whole factor first, so that
    the type is readable; on larger ones the type grows with the picture.
    """
    picture = _wide_enough(upright_rgb(picture))
    width = picture.width
    # By area, so that a panorama gets no giant letters; by width, so that a column keeps words on its lines.
    size = max(15, min(width / 20, sqrt(width * picture.height) / 22))
    margin = round(size * 0.9)

    blocks = [(caption, size, INK, 0.0)]
    if references:
        blocks.append(("References", size * 0.6, GREY, 0.7))
        blocks += [(reference, size * 0.75, INK, 0.3) for reference in references]

    lines, y = [], picture.height + margin * 0.8
    for text, text_size, colour, space_above in blocks:
        type_ = font(text_size, text)
        y += space_above * text_size
        for line in wrap(text, type_, width - 2 * margin):
            lines.append((line, type_, colour, y))
            y += text_size * 1.32

    sheet = Image.new("RGB", (width, ceil(y + margin * 0.6)), PAPER)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for line, type_, colour, top in lines:
        draw.text((margin, top), line, fill=colour, font=type_)
    return sheet


def _wide_enough(picture: Image.Image) -> Image.Image:
    factor = max(1, min(ceil(NARROWEST / picture.width), TALLEST_ENLARGED // picture.height))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)
    if picture.width < NARROWEST:  # a narrow strip: paper beside it
        wide = Image.new("RGB", (NARROWEST, picture.height), PAPER)
        wide.paste(picture, ((NARROWEST - picture.width) // 2, 0))
        return wide
    return picture
