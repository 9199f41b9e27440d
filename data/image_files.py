"""The image files that a user names: files, folders and globs."""

from startup import one_line

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from outputs import OutputFolder
from utils import UserError

_SUFFIXES = {  # of images in folders
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
}  # fmt: skip
_NO_IMAGES = {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}  # to Pillow


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The files that the arguments select, in order and without duplicates.

    Files that this program has written earlier are left out of folders and globs, so that captioned images
    are not captioned again. Hidden files in folders are left out, too: they are thumbnails and other things
    that programs put there. A line says how many photographs of a folder cannot be read.

    Raises:
        UserError: an argument selects no file.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        found.update(dict.fromkeys(_select(argument)))
    if not found:
        raise UserError("no images given; pass files, folders or globs")
    return list(found)


def _select(argument: str) -> list[Path]:
    path = Path(argument)
    if os.path.isdir(path):
        files = [file for file in sorted(path.rglob("*")) if not _is_hidden(file.relative_to(path))]
        selected = _without_results(file for file in files if file.suffix.lower() in _SUFFIXES)
        others = Counter(file.suffix.lower() for file in files if file.suffix.lower() in _NO_IMAGES)
        unread = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(others.items()))
        advice = f"{unread} cannot be read; export them as JPEG" if unread else ""
        if not selected:
            advice = advice or f"looked for {', '.join(sorted(_SUFFIXES))}"
            raise UserError(f"no images in the folder {path} ({advice})")
        if advice:
            print(one_line(f"skipped: in {path}, {advice}"), file=sys.stderr)
    elif os.path.exists(path):
        selected = [path]
    else:
        selected = _without_results(map(Path, sorted(glob.glob(argument, recursive=True))))
        if not selected:
            raise UserError(f"no image or folder at {argument}, and no file matches it")
    return selected


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _without_results(files: Iterable[Path]) -> list[Path]:
    """The regular files that are not earlier results."""
    folders: dict[Path, OutputFolder] = {}

    def is_result(file: Path) -> bool:
        # Results are in the folder to which they were written, or in a folder of thumbnails in it.
        places = (file.parent, file.name), (file.parent.parent, f"{file.parent.name}/{file.name}")
        for folder, name in places:
            if folder not in folders:
                folders[folder] = OutputFolder(folder)
            if folders[folder].is_own(name):
                return True
        return False

    return [file for file in files if file.is_file() and not is_result(file)]
