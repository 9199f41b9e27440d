"""Small shared helpers: how scripts end, choices by name, and the indices of the special tokens."""

import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Protocol, TypeVar

T = TypeVar("T")

# Indices of <pad> <sos> <eos> <unk>, on which data and models agree without importing each other.
PAD, SOS, EOS, UNK = range(4)


class UserError(Exception):
    """Something the user can fix. The message is one line: the thing, the place, the fix."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: status 2 and one line for a UserError, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) is gone. Redirect stdout so that the interpreter's own flush does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def look_up(choices: Mapping[str, T], name: str, key: str) -> T:
    """`choices[name]`. If there is no such choice, raises a UserError that names the configuration key."""
    if name not in choices:
        names = ", ".join(choices)
        raise UserError(f"{key}={name}: it must be one of {names}{did_you_mean(name, choices)}")
    return choices[name]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'X'?` with the choice that is spelt most like `name`, or "" if none is like it."""
    spellings = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), spellings, 1)
    return f"; did you mean {spellings[near[0]]!r}?" if near else ""


class _Named(Protocol):
    name: ClassVar[str]


_N = TypeVar("_N", bound=_Named)


def classes_in(package: str, path: Iterable[str], base: type[_N]) -> dict[str, type[_N]]:
    """Import all modules of a package; returns the subclasses of `base` that they define, by `name`."""
    found = {}
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__:
                found[item.name] = item
    return found
