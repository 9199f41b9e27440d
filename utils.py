"""Small shared helpers: errors of the user, choices by name, and the indices of the special tokens."""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol, TypeVar

T = TypeVar("T")

# Indices of <pad> <sos> <eos> <unk>, on which data and models agree without importing each other.
PAD, SOS, EOS, UNK = range(4)

# Characters that belong in no name, word or setting: a terminal may obey them, or they have no UTF-8.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """Something the user can fix. The message is one line: the thing, the place, the fix."""


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
