"""How a script starts and ends: signals, exit statuses, and errors as one line.

Every script imports this file first. From then on, Ctrl-C ends it with the word `stopped`, even while torch
is being imported, which takes seconds.
"""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator

import threads  # noqa: F401  # notes how busy the cores are
from utils import CONTROL, UserError

# Exit statuses. Those of signals are what a shell reports: 128 + the number of the signal.
_USAGE, _BUG, _INTERRUPTED, _TERMINATED = 2, 70, 128 + signal.SIGINT, 128 + signal.SIGTERM
_LONGEST = 1000  # characters of a message


class Terminated(BaseException):
    """SIGTERM was received. Like KeyboardInterrupt, it passes all `except Exception`."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit.

    The exit status is the one that `main` returns, 2 for a UserError, 130 after Ctrl-C, 143 after SIGTERM.
    An unforeseen error, a bug of this project, has status 70 and leaves a file with its traceback.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if "" in sys.argv[1:]:  # as a path it would mean the current folder, which nobody intends
            raise UserError("an argument is empty; is a variable of the shell not set?")
        if "\0" in "".join(sys.argv):
            raise UserError("an argument has a NUL character, which no name of a file can have; remove it")
        sys.exit(main())
    except UserError as error:
        print("error:", one_line(error), file=sys.stderr)
        sys.exit(_USAGE)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except Terminated:
        print("stopped", file=sys.stderr)
        sys.exit(_TERMINATED)
    except BrokenPipeError:
        # The reader (`| head`) is gone. Redirect stdout so that the interpreter's own flush does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            # Most readers and writers say more. This is for the rest, such as a name that is too long.
            print("error:", one_line(f"{error.filename}: {error.strerror}; check this path"), file=sys.stderr)
            sys.exit(_USAGE)
        print("error:", _unforeseen(error), file=sys.stderr)
        sys.exit(_BUG)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import what takes seconds, such as torch: after the arguments are read, so that --help is not slow.

    A signal ends the script at once, as it does before `run_script`.
    """
    before = {number: signal.signal(number, _stop_importing) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_line(text: object) -> str:
    """The text on one line that a terminal shows as it is: without line breaks and escape sequences."""
    line = " ".join(str(text).split())
    line = CONTROL.sub(lambda match: ascii(match[0])[1:-1], line)
    half = _LONGEST // 2  # the fix is at the end
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def _terminate(*_) -> None:
    raise Terminated


def _unforeseen(error: Exception) -> str:
    """One line about a bug, which names a file with its traceback."""
    what = one_line(f"{type(error).__name__}: {error}")[:200]
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="captioning-error-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(f"{sys.argv}\n\n{text}")
    except OSError:
        return f"{what}; this is a bug, and its traceback could not be written: {one_line(text)}"
    return f"{what}; this is a bug of this program: please report it with the file {file.name}"


def _stop_importing(number: int, _) -> None:
    """Signal handler until `run_script`: nothing has begun, so nothing has to be cleaned up."""
    os.write(2, b"stopped\n")
    os._exit(128 + number)


def runs_a_script() -> bool:
    """Whether the program is a script of this project, not a test or another program."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    return program is not None and os.path.dirname(os.path.abspath(program)) == os.path.dirname(__file__)


if runs_a_script():
    signal.signal(signal.SIGINT, _stop_importing)
    signal.signal(signal.SIGTERM, _stop_importing)
