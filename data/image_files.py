"""The images that a user names: files, folders, globs, addresses, and lists of them."""

from startup import one_line

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.addresses import Addresses, is_address
from outputs import OutputFolder
from utils import UserError

_SUFFIXES = {  # of images in folders
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
}  # fmt: skip
_NO_IMAGES = {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}  # to Pillow


_LARGEST_LIST = 10_000_000  # bytes


def find_images(arguments: Sequence[str], addresses: Addresses | None = None) -> list[Path]:
    """The files that the arguments select, in order and without duplicates.

    An argument is a file, a folder, a glob, an http(s) address, or a text file (.txt) with one path or
    address per line. Addresses get their paths from `addresses`; nothing is fetched here.

    Files that this program has written earlier are left out of folders and globs, so that captioned images
    are not captioned again. Hidden files in folders are left out, too: they are thumbnails and other things
    that programs put there. A line says how many photographs of a folder cannot be read.

    Raises:
        UserError: an argument selects no file, or a list cannot be read.
    """
    addresses = addresses or Addresses()
    found: dict[Path, None] = {}
    for argument in arguments:
        if is_address(argument):
            selected = [addresses.path_of(argument)]
        elif argument.lower().endswith(".txt") and os.path.isfile(argument):
            selected = _read_list(Path(argument), addresses)
        else:
            selected = _select(argument)
        found.update(dict.fromkeys(selected))
    if not found:
        raise UserError("no images given; pass files, folders or globs")
    return list(found)


def _read_list(file: Path, addresses: Addresses) -> list[Path]:
    """What the lines of a list name, but for empty ones and those that begin with #.

    Paths are relative to the folder of the list. A path where nothing is stays: it is skipped by name later.
    """
    try:
        with open(file, "rb") as opened:
            text = opened.read(_LARGEST_LIST + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as a list of images ({error})") from None
    if len(text) > _LARGEST_LIST or "\0" in text:
        raise UserError(f"{file} is no list of images: it is too large, or not text")
    found: list[Path] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if is_address(line):
            found.append(addresses.path_of(line))
        elif not line.startswith("#"):
            path = file.parent / line
            found += _select(str(path)) if path.is_dir() else [path]
    if not found:
        raise UserError(f"{file} names no images; write a path or an address on each line")
    return found


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
