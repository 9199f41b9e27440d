"""One hostile input: what is tried, the promise that it must keep, and whether it was kept."""

from startup import one_line

import contextlib
import io
import multiprocessing
import os
import re
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.script_helpers import ended
from utils import UserError

try:
    import resource
except ImportError:  # Windows has no limits on memory
    resource = None  # type: ignore[assignment]

SECONDS = 60  # no input takes longer, even on a busy machine; what waits for ever is interrupted
MEMORY = 2 << 30  # bytes that an input may take beyond what the process has
LONGEST_LINE = 2000  # characters of an error
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


@dataclass
class Outcome:
    """What became of an input. A UserError of a function counts as status 2, as it would in a script."""

    folder: Path
    status: int
    text: str  # everything that was printed, and the error
    value: object  # what the function returned
    changed: list[str]  # files that were written, replaced or deleted; not the lists of own files


class Hostile(NamedTuple):
    """A hostile input. `prepare` and `action` are called in a copy of the place, with its path."""

    name: str
    prepare: Callable[[Path], object]  # creates what is hostile
    action: Callable[[Path], object]  # uses it; returns a value, or how a script ended
    promise: Callable[[Outcome], None]  # raises AssertionError if it is broken


class _Waits(BaseException):
    """The input took longer than SECONDS."""


def script(name: str, *arguments) -> Callable[[Path], Ended]:
    """The action that runs a script in the place."""
    return lambda folder: Ended(*ended(folder, name, *arguments))


def nothing(*_: object) -> None:
    """No preparation."""


def attempt(folder: Path, action: Callable[[Path], object]) -> Outcome:
    """Carry out an action in `folder`, and check what holds for every input.

    Nothing waits for ever, takes gigabytes, leaves a process behind or ends in a traceback. An error is one
    line without control characters, and before it nothing was written (`changed`, which `refused` checks).
    """
    before, out = files_of(folder), io.StringIO()
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), _limits(), _no_java:
            value = action(folder)
        status, text = 0, out.getvalue()
    except UserError as error:
        value, status, text = None, 2, f"{out.getvalue()}error: {' '.join(str(error).split())}\n"
    except _Waits:
        raise AssertionError(f"it waited for more than {SECONDS} s") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        raise AssertionError(f"it ended in {type(error).__name__} ({where}): {str(error)[:300]}") from error
    if isinstance(value, Ended):
        status, text = value.status, value.out + value.err
        assert not (found := _CONTROL.search(text)), f"{found[0]!r} reached the terminal: {text[:300]!r}"
        assert status in (0, 1, 2), f"it ended with status {status}: {text[-500:]}"
        assert "Traceback" not in text, text[-2000:]
        longest = max(map(len, re.findall("^error: .*", value.err, re.MULTILINE)), default=0)
        assert longest <= LONGEST_LINE, f"an error of {longest} characters: {value.err[:300]}"
    if status == 2:
        lines = [line for line in text.splitlines() if "error:" in line]
        assert len(lines) == 1, f"not one line: {text[:1000]}"
    assert not multiprocessing.active_children(), "it left a process behind"
    after = files_of(folder)
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    changed = sorted(name for name in changed if not name.endswith(".written.sha256"))
    return Outcome(folder, status, text, value, changed)


def broken(inputs: Iterable[Hostile], folder: Path) -> list[str]:
    """Try inputs one after the other in `folder`, a copy of the place; a line for each broken promise."""
    lines = []
    for hostile in inputs:
        try:
            with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
                hostile.prepare(folder)
            hostile.promise(attempt(folder, hostile.action))
        except AssertionError as error:
            lines.append(one_line(f"{hostile.name}: {error}")[:600])
    return lines


def works(outcome: Outcome) -> None:
    """It does what was asked."""
    assert outcome.status == 0, f"it ended with status {outcome.status}: {outcome.text[-800:]}"


def refused(*parts: str, written: bool = False) -> Callable[[Outcome], None]:
    """One line that names `parts`, status 2, and (without `written`) no file written before it."""

    def check(outcome: Outcome) -> None:
        assert outcome.status == 2, f"it was not refused (status {outcome.status}): {outcome.text[-800:]}"
        error = next(line for line in outcome.text.splitlines() if "error:" in line)
        missing = [part for part in parts if part not in error]
        assert not missing, f"{missing[0]!r} is not named: {error}"
        assert written or not outcome.changed, f"it wrote {outcome.changed[:5]} and then: {error}"

    return check


def either(outcome: Outcome) -> None:
    """It works, or it is refused in one line before anything is written."""
    assert outcome.status in (0, 2), f"it ended with status {outcome.status}: {outcome.text[-800:]}"
    if outcome.status == 2:
        refused()(outcome)


def says(*parts: str) -> Callable[[Outcome], None]:
    """It works and says so."""

    def check(outcome: Outcome) -> None:
        works(outcome)
        missing = [part for part in parts if part not in outcome.text]
        assert not missing, f"{missing[0]!r} was not said: {outcome.text[-800:]}"

    return check


def files_of(folder: Path) -> dict[str, tuple]:
    """What tells whether a file was touched, for all files below `folder`."""
    found = {}
    for parent, folders, names in os.walk(os.fsencode(folder)):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            stat = os.lstat(path)
            times = () if os.path.isdir(path) else (stat.st_mtime_ns, stat.st_size)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(folder)))] = (
                stat.st_ino,
                stat.st_mode,
                *times,
            )
    return found


# METEOR's Java takes seconds to start, and it is no process that is left behind.
_no_java = mock.patch("metrics.meteor.find_java", return_value=None)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Interrupt what takes too long, and let requests for too much memory fail, where the system can."""
    if resource is None:
        yield
        return

    def interrupt(*_) -> None:
        raise _Waits

    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if _HAS_PROC else None
    )
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(SECONDS)
    if used is not None:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


_HAS_PROC = Path("/proc/self/statm").exists()
