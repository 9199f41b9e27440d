"""Folders of results, in which nothing but this project's own earlier results is ever replaced."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from files import cannot_write, replacing
from utils import UserError

# Lines `SHA-256  name`, as sha256sum writes them. A line is added before its file appears, and none is ever
# changed, so that a killed process leaves no file that is not listed.
_LIST = ".written.sha256"


class OutputFolder:
    """A folder to write results into. Its list records the name and content of every file written so far.

    A file that exists under the name of a result is replaced only if its content is listed: then this project
    wrote it, and nobody has changed it since.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.digests: dict[str, set[str]] = {}
        with contextlib.suppress(OSError, ValueError):  # no list yet, or one that cannot be read
            for line in (folder / _LIST).read_text("utf-8", "surrogateescape").splitlines():
                digest, _, name = line.partition("  ")
                self.digests.setdefault(name, set()).add(digest)

    def check(self, names: Iterable[str]) -> None:
        """Raise a UserError if one of the files cannot be written, before any work is done for it."""
        folder = self.folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not existing.is_dir():
            raise UserError(f"{existing} is not a folder; choose another --output")
        if not os.access(existing, os.W_OK):
            raise UserError(f"{existing} is not writable; choose another --output")
        for name in names:
            path = self.folder / name
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(path)  # a name that is too long, for example: startup.py says so
            parent = path.parent
            is_folder = parent.is_dir() and not parent.is_symlink()
            if parent != self.folder and os.path.lexists(parent) and not is_folder:
                raise UserError(f"{parent} is not a folder; move it, or choose another --output")
            if os.path.lexists(path) and not self.is_own(name):
                raise UserError(
                    f"{path} exists, and this program did not write it (or it was changed since); move it, "
                    "or choose another --output"
                )

    def is_own(self, name: str) -> bool:
        """Whether the file exists, is no symbolic link, and has a content that is listed."""
        path = self.folder / name
        if name not in self.digests or path.is_symlink() or not path.is_file():
            return False
        return _digest(path) in self.digests[name]

    @contextlib.contextmanager
    def writing(self, name: str, size: int | None = None) -> Iterator[Path]:
        """`files.replacing` for the file `name`, which may be in a subfolder; raises UserError as `check`."""
        self.check([name])
        with replacing(self.folder / name, size) as temporary:
            yield temporary
            self._record(name, _digest(temporary))

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file.

        Lone surrogates are in Python the bytes of a file name that is not valid UTF-8. UTF-8 does not have
        them: they become JSON's escape sequence, from which a reader of JSON gets the same name.
        """
        content = text.encode("utf-8", "backslashreplace")
        with self.writing(name, len(content)) as temporary:
            temporary.write_bytes(content)

    def remove(self, name: str) -> None:
        """Remove the file `name` if it is an own file."""
        if self.is_own(name):
            (self.folder / name).unlink()

    def record(self, name: str) -> None:
        """Make a file an own one that was written by other means."""
        self._record(name, _digest(self.folder / name))

    def _record(self, name: str, digest: str) -> None:
        if digest in self.digests.setdefault(name, set()):
            return
        self.digests[name].add(digest)
        path = self.folder / _LIST
        try:
            with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{digest}  {name}\n")
        except OSError as error:
            raise cannot_write(path, error) from None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
