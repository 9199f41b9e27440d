"""The folder that inference fills: captioned images, attention sheets, captions.json and the page."""

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from captioning import Caption
from outputs import OutputFolder
from reports.attention import attention_sheet
from reports.captioned import captioned_image
from reports.page import Page, PageEntry
from utils import CONTROL, UserError

_JSON = "captions.json"
_PAGE = "captions_result.html"
_LONGEST_NAME = 255  # bytes, what most file systems allow
_CAPTIONED, _ATTENTION = "_captioned.jpg", "_attention.jpg"


class Results:
    """Results of captioning `paths`, which are added one by one. In memory stay only their texts."""

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        attention: bool,
        addresses: Mapping[Path, str] | None = None,
    ):
        """
        Args:
            attention: whether each image gets an attention sheet.
            addresses: path -> address, of images that were fetched.

        Raises:
            UserError: a file that is not an earlier result has the name of a result, or `folder` is a file.
        """
        self.folder, self.attention = OutputFolder(folder), attention
        self.page = Page(folder / _PAGE)
        self.paths = list(paths)
        self.stems = dict(zip(paths, _output_stems(paths), strict=True))
        self.addresses = addresses or {}
        local = [path for path in paths if path not in self.addresses]
        self.names = {**self.addresses, **dict(zip(local, _short_names(local), strict=True))}
        self.rows: dict[Path, dict] = {}
        suffixes = (_CAPTIONED, _ATTENTION) if attention else (_CAPTIONED,)
        self.folder.check([_JSON, *(stem + suffix for stem in self.stems.values() for suffix in suffixes)])
        self.page.check(len(paths))

    def add(self, path: Path, result: Caption, references: Sequence[str] = ()) -> None:
        """Write the images of one result.

        Raises:
            UserError: the image cannot be read again, or a result of it cannot be drawn or written.
        """
        image = result.image
        try:
            drawn = {"full size": (_CAPTIONED, captioned_image(image, result.caption, references))}
            if self.attention:
                assert result.attention is not None  # the decoder attends
                sheet = attention_sheet(image, [word.text for word in result.words], result.attention)
                drawn["attention sheet"] = (_ATTENTION, sheet)
        except (OSError, ValueError, MemoryError) as error:
            raise UserError(
                f"{path}: its caption cannot be drawn ({type(error).__name__}: {error})"
            ) from error
        files = {
            label: self.save(self.stems[path] + suffix, sheet) for label, (suffix, sheet) in drawn.items()
        }
        self.page.add(PageEntry(self.names[path], image, result, references, files))
        source = self.addresses.get(path, str(path))
        row = {"image": source, "caption": result.caption, "log_prob": result.log_prob}
        self.rows[path] = row | {"words": result.words, "others": result.others}
        if references:
            self.rows[path]["references"] = list(references)

    def save(self, name: str, image: Image.Image) -> Path:
        """Write an image of the results; returns its path."""
        with self.folder.writing(name) as temporary:
            image.save(temporary, format="jpeg", quality=92)
        return self.folder.folder / name

    def write(self, scores: Mapping[Path, Mapping[str, float]]) -> Path:
        """Write captions.json and the page with the scores of the captions that have references.

        Returns the path of the page.
        """
        rows = [{**row, "scores": scores[path]} if path in scores else row for path, row in self.rows.items()]
        self.folder.write_text(_JSON, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        self.page.write({self.names[path]: scores[path] for path in scores})
        return self.page.path


def _output_stems(paths: Sequence[Path]) -> list[str]:
    """The file names without suffixes of the results of each image.

    It is the stem of the image, with a number if several images have the same stem, shortened to what file
    systems allow. Characters that are no text become `_`.
    """
    stems, taken = [], dict[str, int]()
    for path in paths:
        whole = CONTROL.sub("_", path.stem)
        number = taken.get(_folded(whole), 0)
        stem = ""
        while not stem or _folded(stem) in taken:
            number += 1
            end = f"-{number}" if number > 1 else ""
            room = _LONGEST_NAME - len(_CAPTIONED) - len(end)
            stem = whole.encode()[:room].decode(errors="ignore") + end
        taken[_folded(whole)], taken[_folded(stem)] = number, 1
        stems.append(stem)
    return stems


def _folded(stem: str) -> str:
    """The same for stems that may be one file: some file systems ignore case and forms of accents."""
    return unicodedata.normalize("NFC", stem).lower()


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The paths as they are shown: relative to the folder that all of them are in."""
    try:
        root = os.path.commonpath([path.absolute().parent for path in paths])
    except ValueError:  # on several drives of Windows
        return [str(path.absolute()) for path in paths]
    return [os.path.relpath(path, root) for path in paths]
