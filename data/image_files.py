"""The image files that a user names: files, folders and globs."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from outputs import OutputFolder
from utils import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # of images in folders


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The files that the arguments select, in order and without duplicates.

    Files that this program has written earlier are left out of folders and globs, so that captioned images
    are not captioned again.

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
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        selected = _without_results(files)
        if not selected:
            raise UserError(f"no images in the folder {path} (looked for {', '.join(sorted(_SUFFIXES))})")
    elif os.path.exists(path):
        selected = [path]
    else:
        selected = _without_results(map(Path, sorted(glob.glob(argument, recursive=True))))
        if not selected:
            raise UserError(f"no image or folder at {argument}, and no file matches it")
    return selected


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
