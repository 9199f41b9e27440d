"""A captions file, with what its format is recognised by, and the rows that are read from it."""

import csv
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from files import require_regular
from utils import UserError

_T = TypeVar("_T")
LONGEST_CAPTION = 10_000  # characters; even a description in paragraphs has fewer
# Of strings with a constraint, even one that all satisfy, pydantic refuses those with lone surrogates.
Text = Annotated[str, Field(min_length=0)]


class Row(NamedTuple):
    """One caption, or a row that cannot be used."""

    image: str
    caption: str
    split: str | None = None  # None: the file has no splits; "": the caption is left out
    image_id: int | str | None = None
    folder: str = ""  # where COCO's images may be, such as train2014
    problem: str = ""  # why the row cannot be used


def bad_row(problem: str) -> Row:
    return Row("", "", problem=problem)


class CaptionsFile:
    """A captions file of which the beginning has been read."""

    def __init__(self, path: Path, splits: Sequence[str] = ()):
        """`splits`: those that the file stands for by its name, as COCO's files do (`splits_by_name`).

        Raises:
            UserError: the file is missing, empty, not UTF-8, or not a file but, for example, a pipe.
        """
        self.path, self.splits = path, splits
        require_regular(path)
        try:
            with open(path, encoding="utf-8-sig") as file:
                self.lines = file.read(1 << 16).strip().split("\n")
        except FileNotFoundError:
            raise UserError(f"no captions file at {path}; set data.captions to a captions file") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text in UTF-8; save it as UTF-8") from None
        except (OSError, ValueError) as error:  # ValueError: the name has a NUL
            reason = getattr(error, "strerror", error)
            raise UserError(f"cannot read {path} ({reason}); set data.captions to a captions file") from None
        if not self.lines[0]:
            raise UserError(f"{path} is empty; set data.captions to a captions file")

    @cached_property
    def record(self) -> dict[str, Any]:
        """The JSON object on the first line; empty if there is none."""
        try:
            record = parse_json(self.lines[0])
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    @cached_property
    def content(self) -> dict[str, Any]:
        """The whole file as a JSON object; empty for other files. Raises UserError for broken JSON."""
        is_json_lines = self.record and len(self.lines) > 1
        if is_json_lines or not self.lines[0].startswith(("{", "[")):
            return {}
        try:
            content = parse_json(self.path.read_text("utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{self.path} is not valid JSON ({error}); is it complete?") from None
        return content if isinstance(content, dict) else {}

    @cached_property
    def columns(self) -> list[str]:
        """The keys of a JSON file or of its first line; for other files, the first line as a CSV header."""
        if keys := self.record or self.content:
            return list(keys)
        return [name.strip().lower() for name in next(csv.reader(self.lines[:1]))]

    def column(self, names: Sequence[str]) -> str | None:
        """The first of `names` that is a column of this file."""
        return next((name for name in names if name in self.columns), None)


def parse_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError if it is none, repeats a key, or is nested too deeply."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
    content.pop("tokens", None)  # Karpathy's; they take ten times the memory of the caption
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def typed(values: object, kind: TypeAdapter[_T], where: str) -> Iterator[_T | Row]:
    """Each of a list of JSON values as a `kind`, or as a row that says why it is none.

    `where`: what the list is, for messages.
    """
    if not isinstance(values, list):
        yield bad_row(f"{where} is not a list")
        return
    for number, value in enumerate(values):
        try:
            yield kind.validator.validate_python(value)
        except ValidationError as error:
            yield bad_row(f"{where}[{number}]{problem_of(error)}")


def problem_of(error: ValidationError) -> str:
    """What is wrong with a JSON object, to follow its name: `.image_id: field required`."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return " is not an object"
    return f".{first['loc'][0]}: {first['msg'][0].lower()}{first['msg'][1:]}"
