"""The folder that inference fills: captions, captioned images, attention sheets, and the page."""

import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from captioning import Caption
from outputs import OutputFolder
from reports.attention import attention_sheet
from reports.captioned import captioned_image
from reports.page import Page, PageEntry
from reports.rows import CaptionRows, result_of, row_of
from utils import CONTROL, UserError

_ROWS, _JSON = "captions.jsonl", "captions.json"
_PAGE = "captions_result.html"
_LONGEST_NAME = 255  # bytes, what most file systems allow
_CAPTIONED, _ATTENTION = "_captioned.jpg", "_attention.jpg"


class Results:
    """Results of captioning images, which are added one by one. In memory stay only texts of drawn ones.

    captions.jsonl grows with each of them; captions.json has the same rows in the end.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        attention: bool,
        resume: bool = False,
        addresses: Mapping[Path, str] | None = None,
    ):
        """
        Args:
            paths: the images that are drawn, and shown on the page.
            attention: whether each of them gets an attention sheet.
            resume: whether the rows of an earlier run stay, which `earlier` returns.
            addresses: path -> address, of images that are fetched.

        Raises:
            UserError: a file that is not an earlier result has the name of a result, or `folder` is a file.
        """
        self.folder, self.attention = OutputFolder(folder), attention
        self.page = Page(folder / _PAGE)
        self.stems = dict(zip(paths, _output_stems(paths), strict=True))
        self.addresses, self.resumes = addresses or {}, resume
        local = [path for path in paths if path not in self.addresses]
        fetched = {path: self.addresses[path] for path in paths if path in self.addresses}
        self.names = {**fetched, **dict(zip(local, _short_names(local), strict=True))}
        suffixes = (_CAPTIONED, _ATTENTION) if attention else (_CAPTIONED,)
        self.folder.check([_JSON, *(stem + suffix for stem in self.stems.values() for suffix in suffixes)])
        self.page.check(len(paths))
        self.rows = CaptionRows(self.folder, _ROWS, resume)

    def name(self, path: Path) -> str:
        """The path of an image, or its address, in captions.json."""
        return self.addresses.get(path, str(path))

    def earlier(self) -> Iterator[tuple[str, str, Caption | None]]:
        """Name and caption of each image that an earlier run has captioned, and the result if it is drawn."""
        if not self.resumes:
            self.rows.begin()
            return
        drawn = {self.name(path): path for path in self.stems}
        for row in self.rows.read():
            result, name = None, row["image"]
            if name in drawn:
                try:
                    result = result_of(row, drawn[name])
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{self.rows.path}: the row of {name} was changed; move the file"
                    ) from None
            yield name, row["caption"], result

    def add(self, path: Path, result: Caption, references: Sequence[str] = ()) -> None:
        """Add one result to the rows; raises UserError if it cannot be written."""
        row = row_of(self.name(path), result, path in self.stems)
        self.rows.add(row | ({"references": list(references)} if references else {}))

    def draw(self, path: Path, result: Caption, references: Sequence[str] = ()) -> None:
        """Write the images of one result, and show it on the page. Does nothing for what is not drawn.

        Raises:
            UserError: the image cannot be read again, or a result of it cannot be drawn or written.
        """
        if path not in self.stems:
            return
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

    def save(self, name: str, image: Image.Image) -> Path:
        """Write an image of the results; returns its path."""
        with self.folder.writing(name) as temporary:
            image.save(temporary, format="jpeg", quality=92)
        return self.folder.folder / name

    def write(self, scores: Mapping[Path, Mapping[str, float]]) -> Path:
        """Write captions.json and the page with the scores of the captions that have references.

        Returns the path of the page.
        """
        self.rows.close()
        of_names = {self.name(path): values for path, values in scores.items()}
        with (
            self.folder.writing(_JSON) as temporary,
            open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            for number, row in enumerate(self.rows.read()):
                file.write(",\n" if number else "[\n")
                file.write(json.dumps(_with_scores(row, of_names), ensure_ascii=False))
            file.write("\n]\n")
        self.page.write({self.names[path]: scores[path] for path in scores if path in self.names})
        return self.page.path


def _with_scores(row: dict[str, Any], scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A row of captions.json."""
    row.pop("attention", None)
    return row | ({"scores": scores[row["image"]]} if row["image"] in scores else {})


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
