"""A captioned image as a piece of HTML: pointing at a word shows its attention over the image.

It is one text with all images in it, and needs no script.
"""

from PIL import Image

from captioning import Caption
from reports.attention import full_scale, overlay, percent
from reports.html import data_url, inserted, render, thumbnail

HOVER_CSS = str(inserted("hover.css"))  # for the page that has such pieces


def hover_html(image: Image.Image, result: Caption) -> str:
    """The HTML of `image` with its caption. All text is escaped.

    `result.image` is not used: `image` may be a smaller copy of it.
    """
    small = thumbnail(image)
    overlays, scale = [""] * len(result.words), ""
    if result.attention is not None and len(result.attention):
        full = full_scale(result.attention)
        overlays = [data_url(overlay(small, alpha / full)) for alpha in result.attention]
        scale = percent(full)
    words = [
        {"text": word.text, "percent": round(100 * word.probability), "overlay": url}
        for word, url in zip(result.words, overlays, strict=True)
    ]
    return render(
        "hover.html.j2",
        image=data_url(small),
        width=small.width,
        height=small.height,
        words=words,
        scale=scale,
        result=result,
    )
