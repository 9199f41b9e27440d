"""captions_result.html: all images with their captions, and the probability and attention of each word.

The page is the template page.html.j2 with its style (page.css) and its script (page.js) inserted.
"""

import base64
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from captioning import Caption
from data.transforms import upright_rgb
from reports.attention import BLUR, GLOW, HEAT, UNLIT, full_scale
from utils import UserError

LEVELS = 31  # of attention in a cell; the page smooths the maps, so the steps are not visible
_HERE = Path(__file__).parent
_THUMBNAIL = 480  # pixels, the longer side: sharp at the 240 to 300 CSS pixels of an image on the page
_EAGER = 8  # images that are loaded immediately; others are loaded when they come into view
_OVERLAY = 96  # pixels, the longer side: enough for a smooth map, which the browser enlarges


@dataclass(frozen=True)
class PageEntry:
    """One image on the page."""

    name: str  # shown under the caption, and used to search and sort; may contain any characters
    image: Path | Image.Image  # a path is opened only to make its thumbnail
    result: Caption  # the caption, its words, other beams and attention; `result.image` is not used
    references: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)  # of the caption against the references
    files: Mapping[str, Path] = field(default_factory=dict)  # files on disk that the page links to, by label


class _Maps:
    """The attention maps of all images as one text: one byte per cell, compressed, in base64.

    A thousand images take 0.35 MB with 7 x 7 cells, about 1.3 MB with 14 x 14.
    """

    def __init__(self):
        self.cells, self.packer, self.packed = 0, zlib.compressobj(9), []

    def add(self, attention: np.ndarray) -> str:
        """Append (words, rows, columns); returns `first-cell rows columns full-scale` for the script."""
        full = full_scale(attention)
        light = np.round(np.clip(attention / full, 0, 1) * LEVELS).astype(np.uint8)
        self.packed.append(self.packer.compress(light.tobytes()))
        start, self.cells = self.cells, self.cells + light.size
        return f"{start} {attention.shape[1]} {attention.shape[2]} {full:.4g}"

    def text(self) -> str:
        """All maps that were added; empty if there are none."""
        return base64.b64encode(b"".join(self.packed) + self.packer.flush()).decode() if self.cells else ""


def write_page(path: Path, entries: Iterable[PageEntry], title: str = "Captions") -> None:
    """Write the page to `path`, and its thumbnails into the folder `<path without suffix>_files` beside it.

    The page needs no network and no server. All text is escaped. `entries` may be a generator, so that only
    one image is in memory. Raises UserError if an image cannot be read or the page cannot be written.
    """
    path = Path(path)
    folder = path.parent / f"{path.stem}_files"
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():  # thumbnails of an earlier page, which may have had more images
            if re.fullmatch(r"\d{5}\.jpg", old.name):
                old.unlink()
        maps = _Maps()
        # Thumbnails have numbers as names, because file names may contain characters that URLs may not.
        cards = [_card(entry, number, folder, maps) for number, entry in enumerate(entries, start=1)]
        scores = list(dict.fromkeys(name for card in cards for name in card["scores"]))
        for card in cards:
            values = [card["log_prob"], *(card["scores"].get(name, float("nan")) for name in scores)]
            card["numbers"] = " ".join(f"{value:.4g}" for value in values)
        html = environment.get_template("page.html.j2").render(
            cards=cards,
            title=title,
            measures=["log p", *scores],
            eager=_EAGER,
            maps=maps.text(),
            settings=_settings(),
            css=Markup((_HERE / "page.css").read_text("utf-8").strip()),
            script=Markup((_HERE / "page.js").read_text("utf-8").strip()),
        )
        # In Python, a file name that is not valid UTF-8 has lone surrogates, which become "?" on the page.
        path.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the page {path}: {error}") from None


def _settings() -> dict:
    """The constants with which the attention sheet draws overlays, so that the page draws the same ones."""
    heat = [[round(255 * GLOW * channel) for channel in HEAT(i / 63)[:3]] for i in range(64)]
    return {
        "heat": heat,
        "blur": BLUR,
        "unlit": UNLIT,
        "pixels": _OVERLAY,
        "levels": LEVELS,
    }


def _card(entry: PageEntry, number: int, folder: Path, maps: _Maps) -> dict:
    """The values of one entry for the template. Its thumbnail is written into `folder`."""
    result, attention = entry.result, entry.result.attention
    thumbnail = folder / f"{number:05}.jpg"
    _write_thumbnail(entry.image, thumbnail)
    return {
        "name": entry.name,
        "caption": result.caption,
        "log_prob": result.log_prob,
        "words": result.words,
        "others": result.others,
        "references": entry.references,
        "scores": entry.scores,
        "thumbnail": _url(thumbnail, folder.parent),
        "map": maps.add(attention) if attention is not None and len(attention) else "",
        "links": {label: _url(file, folder.parent) for label, file in entry.files.items()},
    }


def _write_thumbnail(image: Path | Image.Image, thumbnail: Path) -> None:
    if isinstance(image, Image.Image):
        small = upright_rgb(image)
    else:
        try:
            with Image.open(image) as opened:
                opened.draft("RGB", (2 * _THUMBNAIL, 2 * _THUMBNAIL))  # a JPEG is decoded at a smaller size
                small = upright_rgb(opened)
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow raises these for a broken file.
            raise OSError(f"{image}: {error}") from None
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(thumbnail, quality=85)


def _url(file: Path, folder: Path) -> str:
    """The relative URL of `file` on a page in `folder`."""
    relative = Path(os.path.relpath(file, folder))
    return quote(os.fsencode(relative.as_posix()))
