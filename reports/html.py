"""What the pages share: templates filled in with text that is escaped, and thumbnails."""

import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from data.transforms import upright_rgb
from outputs import OutputFolder

_HERE = Path(__file__).parent
_THUMBNAIL = 480  # pixels, the longer side: sharp at the 240 to 300 CSS pixels of an image on a page


def write_html(outputs: OutputFolder, name: str, template: str, **values) -> None:
    """Write the page `name` from a template of this folder; all text in `values` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    with outputs.writing(name) as temporary:
        # A file name that is not valid UTF-8 has lone surrogates in Python. They become "?".
        html = environment.get_template(template).stream(**values)
        html.dump(str(temporary), encoding="utf-8", errors="replace")


def inserted(*names: str) -> Markup:
    """The text of style sheets or scripts of this folder, which is not escaped."""
    return Markup("\n".join((_HERE / name).read_text("utf-8").strip() for name in names))


def thumbnail_jpeg(image: Image.Image) -> bytes:
    """The image as it is shown on a page: upright, and small enough."""
    small, file = upright_rgb(image), io.BytesIO()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(file, format="jpeg", quality=85)
    return file.getvalue()
