"""Images at http(s) addresses: fetched a few at a time while others are captioned, and removed after that."""

import re
import shutil
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from data.fetching import fetch
from utils import UserError

_THREADS = 6
_AHEAD = 12  # images that are fetched before they are asked for
_LONGEST_NAME = 100  # characters


def is_address(argument: str) -> bool:
    """Whether it is an address and no path."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]+://", argument) is not None


class Addresses:
    """Gives each address a path, at which its image is while it is captioned.

    Nothing is fetched before `fetched`, and only addresses that `path_of` was asked for. The files are in a
    folder of their own, which is removed at the end of the `with` block.
    """

    def __init__(self) -> None:
        # Only a name: without addresses no folder is made.
        self.folder = Path(tempfile.gettempdir()) / f"captioning-{uuid.uuid4().hex}"
        self.shown: dict[Path, str] = {}  # path -> address
        self._paths: dict[str, Path] = {}
        self._problems: dict[Path, UserError] = {}
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS)  # a thread starts when there is something to fetch

    def path_of(self, address: str) -> Path:
        """Where the image of an address will be: a file with the name that the address ends with."""
        if address not in self._paths:
            path = self.folder / str(len(self._paths)) / _safe_name(address)
            self._paths[address], self.shown[path] = path, address
        return self._paths[address]

    def __enter__(self) -> "Addresses":
        if self._paths:
            self.folder.mkdir(mode=0o700)
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()  # nobody wants the rest
        self._threads.shutdown(cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def fetched(self, paths: Sequence[Path]) -> Iterator[Path]:
        """The same paths; the image of an address is there when its path is yielded, unless it failed."""
        waiting: deque[tuple[Path, Future[None] | None]] = deque()
        for path in paths:
            future = None
            if path in self.shown:
                future = self._threads.submit(fetch, self.shown[path], path, self._stop)
            waiting.append((path, future))
            while len(waiting) > _AHEAD or (waiting and waiting[0][1] is None):
                yield self._wait(*waiting.popleft())
        while waiting:
            yield self._wait(*waiting.popleft())

    def _wait(self, path: Path, future: Future[None] | None) -> Path:
        if future is not None:
            try:
                future.result()
            except UserError as error:
                self._problems[path] = error
        return path

    def remove(self, path: Path) -> None:
        """Remove the file of an address that has been captioned; other files are left alone."""
        if path in self.shown:
            with suppress(OSError):
                shutil.rmtree(path.parent)

    def explained(self, path: Path, error: UserError) -> UserError:
        """An error about a path, in terms of its address."""
        if path not in self.shown:
            return error
        return self._problems.get(path) or UserError(str(error).replace(str(path), self.shown[path]))


def _safe_name(address: str) -> str:
    """A file name without anything that a file system or a terminal could take for more than a name."""
    host, _, path = address.partition("://")[2].partition("/")
    last = unquote(re.split("[?#]", path)[0]).replace("\\", "/").rstrip("/").rpartition("/")[2]
    for name in (last, host):
        if safe := re.sub(r"[^\w.() -]+", "_", name)[-_LONGEST_NAME:].strip(". "):
            return safe
    return "image"
