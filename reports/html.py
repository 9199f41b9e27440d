"""What the pages share: templates filled in with text that is escaped, and thumbnails."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup
from PIL import Image

from data.transforms import upright_rgb
from outputs import OutputFolder

_HERE = Path(__file__).parent
_THUMBNAIL = 480  # pixels, the longer side: sharp at the 240 to 300 CSS pixels of an image on a page


def write_html(outputs: OutputFolder, name: str, template: str, **values) -> None:
    """Write the page `name` from a template of this folder; all text in `values` is escaped."""
    with outputs.writing(name) as temporary:
        # A file name that is not valid UTF-8 has lone surrogates in Python. They become "?".
        html = _template(template).stream(**values)
        html.dump(str(temporary), encoding="utf-8", errors="replace")


def render(template: str, **values) -> str:
    """A template of this folder, filled in; all text in `values` is escaped."""
    return _template(template).render(**values)


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def inserted(*names: str) -> Markup:
    """The text of style sheets or scripts of this folder, which is not escaped."""
    return Markup("\n".join((_HERE / name).read_text("utf-8").strip() for name in names))


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy of the image as it is shown on a page: upright, and small enough."""
    small = upright_rgb(image).copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return small


def jpeg(image: Image.Image) -> bytes:
    """The content of a JPEG file for a page."""
    file = io.BytesIO()
    image.save(file, format="jpeg", quality=85)
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    """The image itself as a URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}"
