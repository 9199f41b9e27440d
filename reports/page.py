"""captions_result.html: every picture, its caption, how sure the model was and what else it considered."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from data.transforms import upright_rgb
from utils import UserError

THUMBNAIL = 480  # pixels, the longer side: sharp at the 240 to 300 CSS pixels that the page gives it


@dataclass(frozen=True)
class PageEntry:
    """One picture on the page. Log-probabilities are natural logarithms, summed over a caption's words."""

    name: str  # shown, searched and sorted by; any characters
    picture: Path | Image.Image  # a path is opened only for as long as its thumbnail takes
    caption: str
    log_prob: float
    words: Sequence[tuple[str, float]] = ()  # each word of the caption and its probability, 0 to 1
    others: Sequence[tuple[str, float]] = ()  # the other beams: caption and log-probability, best first
    references: Sequence[str] = ()  # what people said
    attention_file: Path | None = None  # an attention sheet on disk, which the page links to


def write_page(path: Path, entries: Iterable[PageEntry], title: str = "Captions") -> None:
    """Write the page at `path`, and the thumbnails into the folder `<path without suffix>_files` beside it.

    The page needs nothing else: no network, no server. Whatever text it is given is shown as text. `entries`
    may be a generator: a thousand pictures are then never in memory together. Raises UserError where a
    picture cannot be read or the page not be written.
    """
    path = Path(path)
    folder = path.parent / f"{path.stem}_files"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():  # the thumbnails of an earlier page, which may have had more pictures
            if re.fullmatch(r"\d{5}\.jpg", old.name):
                old.unlink()
        # Numbered, because a file name may hold anything and a URL may not.
        cards = [_card(entry, number, folder) for number, entry in enumerate(entries, start=1)]
        html = environment.get_template("page.html.j2").render(cards=cards, title=title)
        # A file name that is no valid UTF-8 reaches Python as lone surrogates: shown as "?".
        path.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the page {path}: {error}") from None


def _card(entry: PageEntry, number: int, folder: Path) -> dict:
    """What the template needs of one entry; its thumbnail written into `folder`."""
    thumbnail = folder / f"{number:05}.jpg"
    width, height = _write_thumbnail(entry.picture, thumbnail)
    return {
        "entry": entry,
        "number": number,
        "thumbnail": _url(thumbnail, folder.parent),
        "width": width,
        "height": height,
        "attention": entry.attention_file and _url(entry.attention_file, folder.parent),
    }


def _write_thumbnail(picture: Path | Image.Image, thumbnail: Path) -> tuple[int, int]:
    """Write the thumbnail as JPEG; its width and height in pixels."""
    if isinstance(picture, Image.Image):
        small = upright_rgb(picture)
    else:
        try:
            with Image.open(picture) as opened:
                opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # JPEG alone: decode no more than needed
                small = upright_rgb(opened)
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # That is how Pillow says that a file is broken.
            raise OSError(f"{picture}: {error}") from None
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(thumbnail, quality=85)
    return small.size


def _url(file: Path, folder: Path) -> str:
    """The relative URL of `file` on a page in `folder`."""
    relative = Path(os.path.relpath(file, folder))
    return quote(os.fsencode(relative.as_posix()))
