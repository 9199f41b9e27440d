"""captions_result.html: all images with their captions, and the probability and attention of each word.

The page is the template page.html.j2 with its style (page.css) and its scripts (attention.js, page.js).
"""

import base64
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from captioning import Caption
from outputs import OutputFolder
from reports.attention import BLUR, GLOW, HEAT, UNLIT, full_scale
from reports.html import inserted, jpeg, thumbnail, write_html

LEVELS = 31  # of attention in a cell; the page smooths the maps, so the steps are not visible
_EAGER = 8  # images that are loaded immediately; others are loaded when they come into view
_OTHERS = 9  # other beams of an image that are listed; captions.json has all
_OVERLAY = 96  # pixels, the longer side: enough for a smooth map, which the browser enlarges


@dataclass(frozen=True)
class PageEntry:
    """One image on the page."""

    name: str  # shown under the caption, and used to search and sort; may contain any characters
    image: Image.Image
    result: Caption  # the caption, its words, other beams and attention; `result.image` is not used
    references: Sequence[str] = ()
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
        """All maps that have been added; empty if there are none."""
        end = self.packer.copy().flush()  # of a copy, so that more maps may follow
        return base64.b64encode(b"".join(self.packed) + end).decode() if self.cells else ""


class Page:
    """The page, to which images are added one by one, so that only one of them is in memory.

    Its thumbnails are in the folder `<path without suffix>_files` beside it. It needs no network and no
    server. All text is escaped.
    """

    def __init__(self, path: Path):
        self.path, self.outputs = path, OutputFolder(path.parent)
        self.cards: list[dict] = []
        self.maps = _Maps()

    def check(self, num_images: int) -> None:
        """Raise a UserError if files of the user's have the names of the page or of its thumbnails."""
        self.outputs.check([self.path.name, *map(self.thumbnail, range(1, num_images + 1))])

    def thumbnail(self, number: int) -> str:
        """The path of a thumbnail, relative to the page.

        It is a number, because names of image files may contain characters that URLs may not.
        """
        return f"{self.path.stem}_files/{number:05}.jpg"

    def add(self, entry: PageEntry) -> None:
        """Add an image; writes its thumbnail. Raises UserError if it cannot be written."""
        result, attention = entry.result, entry.result.attention
        name = self.thumbnail(len(self.cards) + 1)
        with self.outputs.writing(name) as temporary:
            temporary.write_bytes(jpeg(thumbnail(entry.image)))
        card = {
            "name": entry.name,
            "caption": result.caption,
            "log_prob": result.log_prob,
            "words": result.words,
            "others": result.others[:_OTHERS],
            "references": entry.references,
            "thumbnail": quote(os.fsencode(name)),
            "map": self.maps.add(attention) if attention is not None and len(attention) else "",
            "links": {label: _url(file, self.path.parent) for label, file in entry.files.items()},
        }
        self.cards.append(card)

    def write(self, scores: Mapping[str, Mapping[str, float]] | None = None, title: str = "Captions") -> None:
        """Write the page and remove thumbnails of an earlier one, which may have had more images.

        `scores`: of the captions that have references, by the names of their entries. Raises UserError if the
        page cannot be written.
        """
        measures = list(dict.fromkeys(name for values in (scores or {}).values() for name in values))
        for card in self.cards:
            card["scores"] = (scores or {}).get(card["name"], {})
            values = [card["log_prob"], *(card["scores"].get(name, float("nan")) for name in measures)]
            card["numbers"] = " ".join(f"{value:.4g}" for value in values)
        write_html(
            self.outputs,
            self.path.name,
            "page.html.j2",
            cards=self.cards,
            title=title,
            measures=["log p", *measures],
            eager=_EAGER,
            maps=self.maps.text(),
            settings=overlay_settings() if self.maps.cells else None,
            css=inserted("page.css"),
            script=inserted("attention.js", "page.js"),
        )
        number = len(self.cards) + 1
        while (name := self.thumbnail(number)) in self.outputs.digests:
            self.outputs.remove(name)
            number += 1


def overlay_settings() -> dict:
    """The constants with which the attention sheet draws overlays, so that the page draws the same ones."""
    heat = [[round(255 * GLOW * channel) for channel in HEAT(i / 63)[:3]] for i in range(64)]
    return {
        "heat": heat,
        "blur": BLUR,
        "unlit": UNLIT,
        "pixels": _OVERLAY,
        "levels": LEVELS,
    }


def _url(file: Path, folder: Path) -> str:
    """The relative URL of `file` on a page in `folder`."""
    relative = Path(os.path.relpath(file, folder))
    return quote(os.fsencode(relative.as_posix()))
