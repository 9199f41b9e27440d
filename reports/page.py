"""captions_result.html: every image, its caption, how sure the model was of it and where it looked.

The page is template page.html.j2 with its style (page.css) and its script (page.js) filled in.
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

from data.transforms import upright_rgb
from reports.attention import BLUR, GLOW, HEAT, UNLIT, full_scale
from utils import UserError

HERE = Path(__file__).parent
THUMBNAIL = 480  # pixels, the longer side: sharp at the 240 to 300 CSS pixels that the page gives it
EAGER = 8  # images that are loaded at once; those further down as they come into view
LEVELS = 31  # of attention that a cell can have on the page: smoothed, no steps between them are seen
OVERLAY = 96  # pixels, the longer side: a map is smooth, the browser enlarges it


@dataclass(frozen=True)
class PageEntry:
    """One image on the page. Log-probabilities are natural logarithms, summed over a caption's words."""

    name: str  # shown, searched and sorted by; any characters
    image: Path | Image.Image  # a path is opened only for as long as its thumbnail takes
    caption: str
    log_prob: float
    words: Sequence[tuple[str, float]] = ()  # each word of the caption and its probability, 0 to 1
    alphas: np.ndarray | None = None  # (words, rows, columns): where each word looked
    others: Sequence[tuple[str, float]] = ()  # the other beams: caption and log-probability, best first
    references: Sequence[str] = ()  # what people said
    scores: Mapping[str, float] = field(default_factory=dict)  # of the caption against the references
    files: Mapping[str, Path] = field(default_factory=dict)  # files on disk that the page links to, by label


class Maps:
    """The attention maps of all images as one text: a byte per cell, deflated, in base64.

    A thousand images take 0.35 MB so with 7 x 7 cells, about 1.3 MB with 14 x 14.
    """

    def __init__(self):
        self.cells, self.packer, self.packed = 0, zlib.compressobj(9), []

    def add(self, alphas: np.ndarray) -> str:
        """Append (words, rows, columns); returns `first-cell rows columns full-scale` for the script."""
        full = full_scale(alphas)
        light = np.round(np.clip(alphas / full, 0, 1) * LEVELS).astype(np.uint8)
        self.packed.append(self.packer.compress(light.tobytes()))
        start, self.cells = self.cells, self.cells + light.size
        return f"{start} {alphas.shape[1]} {alphas.shape[2]} {full:.4g}"

    def text(self) -> str:
        """All that was added; empty where nothing was."""
        return base64.b64encode(b"".join(self.packed) + self.packer.flush()).decode() if self.cells else ""


def write_page(path: Path, entries: Iterable[PageEntry], title: str = "Captions") -> None:
    """Write the page at `path`, and the thumbnails into the folder `<path without suffix>_files` beside it.

    The page needs nothing else: no network, no server. Whatever text it is given is shown as text. `entries`
    may be a generator: a thousand images are then never in memory together. Raises UserError where an
    image cannot be read or the page not be written.
    """
    path = Path(path)
    folder = path.parent / f"{path.stem}_files"
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():  # the thumbnails of an earlier page, which may have had more images
            if re.fullmatch(r"\d{5}\.jpg", old.name):
                old.unlink()
        maps = Maps()
        # Numbered, because a file name may hold anything and a URL may not.
        cards = [_card(entry, number, folder, maps) for number, entry in enumerate(entries, start=1)]
        scores = list(dict.fromkeys(measure for card in cards for measure in card["entry"].scores))
        for card in cards:
            entry = card["entry"]
            values = [entry.log_prob, *(entry.scores.get(measure, float("nan")) for measure in scores)]
            card["numbers"] = " ".join(f"{value:.4g}" for value in values)
        html = environment.get_template("page.html.j2").render(
            cards=cards,
            title=title,
            measures=["log p", *scores],
            eager=EAGER,
            maps=maps.text(),
            look=_look(),
            css=Markup((HERE / "page.css").read_text("utf-8").strip()),
            script=Markup((HERE / "page.js").read_text("utf-8").strip()),
        )
        # A file name that is no valid UTF-8 reaches Python as lone surrogates: shown as "?".
        path.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write the page {path}: {error}") from None


def _look() -> dict:
    """How the attention sheet draws its overlays, for the script that draws the same ones."""
    heat = [[round(255 * GLOW * channel) for channel in HEAT(i / 63)[:3]] for i in range(64)]
    return {
        "heat": heat,
        "blur": BLUR,
        "unlit": UNLIT,
        "pixels": OVERLAY,
        "levels": LEVELS,
    }


def _card(entry: PageEntry, number: int, folder: Path, maps: Maps) -> dict:
    """What the template needs of one entry; its thumbnail is written into `folder`, its attention added."""
    thumbnail = folder / f"{number:05}.jpg"
    _write_thumbnail(entry.image, thumbnail)
    return {
        "entry": entry,
        "thumbnail": _url(thumbnail, folder.parent),
        "map": maps.add(entry.alphas) if entry.alphas is not None and len(entry.alphas) else "",
        "links": {label: _url(file, folder.parent) for label, file in entry.files.items()},
    }


def _write_thumbnail(image: Path | Image.Image, thumbnail: Path) -> None:
    if isinstance(image, Image.Image):
        small = upright_rgb(image)
    else:
        try:
            with Image.open(image) as opened:
                opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # JPEG alone: decode no more than needed
                small = upright_rgb(opened)
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # That is how Pillow says that a file is broken.
            raise OSError(f"{image}: {error}") from None
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(thumbnail, quality=85)


def _url(file: Path, folder: Path) -> str:
    """The relative URL of `file` on a page in `folder`."""
    relative = Path(os.path.relpath(file, folder))
    return quote(os.fsencode(relative.as_posix()))
