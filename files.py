"""Writing files completely or not at all, locks, and what has to be known of a file before it is read."""

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO

from utils import UserError

_numbers = itertools.count()  # of the temporary files of this process


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    Readers find the old file or the new one, never half of one, even if the process is killed or the power
    fails while it is written. A symbolic link at `path` is replaced, its target is not touched.

    Args:
        size: bytes that will be written, for the message if they do not fit.

    Raises:
        UserError: the file cannot be written; `path` is unchanged.
    """
    # Not named for `path`, whose name may already be as long as names can be.
    temporary = path.parent / f".{os.getpid()}-{next(_numbers)}.tmp"
    try:
        with _explained(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: Path, size: int | None) -> Iterator[None]:
    """Turn an error of the system while `path` is written into a UserError."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, size) from None
    except RuntimeError as error:
        # torch.save reports a full disk like this; the failing write itself is only in its message.
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size) from None


def cannot_write(path: Path, error: OSError, size: int | None = None) -> UserError:
    """What to tell the user if the system refuses to write `path`; `size` is in bytes, if it is known."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"cannot write {path}: {reason}; check the folder, or choose another one")
    needed = f" for {readable_size(size)}" if size is not None else ""
    free = f" ({readable_size(free_space(path.parent))} free)" if error.errno == errno.ENOSPC else ""
    return UserError(
        f"cannot write {path}: {reason}{needed}{free}; make room on the disk, or choose another folder. An "
        "earlier version of the file is unchanged"
    )


def flush_folder(folder: Path) -> None:
    """Make new and renamed files in `folder` survive a power cut (Windows cannot open a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file with `replacing`. Lone surrogates, which UTF-8 does not have, become `?`."""
    content = text.encode("utf-8", "replace")
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes. Only for whoever holds the lock of the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created if necessary and stays.

    The system releases the lock when the process ends, however it ends. Forked processes do not inherit it.

    Args:
        busy: the message if another process holds the lock.
        wait: whether to print `busy` and wait in that case.

    Raises:
        UserError: another process holds the lock and `wait` is False, or `path` cannot be opened.
    """
    with _explained(path, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115 (closed below)
    with file:
        if not _lock(file, wait=False):
            if not wait:
                raise UserError(busy)
            print(busy, flush=True)
            _lock(file, wait=True)
        yield  # closing the file releases the lock


def _lock(file: IO[bytes], wait: bool) -> bool:
    """Whether the lock on an open file was acquired."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
        # The file system has no locks: nothing protects the folder, as nothing could.
    return True


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise a UserError if the disk of `folder` has not `size` free bytes for `what`."""
    free = free_space(folder)
    if free < size:
        raise UserError(
            f"{folder} has not enough space for {what}: {readable_size(size)} needed, "
            f"{readable_size(free)} free; make room on the disk, or choose another folder"
        )


def read_at(file: FileIO, position: int, buffer: memoryview) -> int:
    """Fill the buffer from `position` on; returns the number of bytes read.

    Threads and forked processes may read the same file, except on Windows, where a file has one position.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], position)
    file.seek(position)
    return file.readinto(buffer)


def require_regular(path: Path) -> None:
    """Raise a UserError for what exists but is no regular file: reading a pipe or a device may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # missing, or a name that no file can have: opening it says which
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{path} is {kind}, not a file; pass a file")


def readable_size(size: int) -> str:
    """Bytes with a unit: 812 bytes, 3.4 MB."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
