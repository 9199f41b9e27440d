"""A captions file, with what its format is recognised by, and the rows that are read from it."""

import csv
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from utils import UserError


class Row(NamedTuple):
    """One caption, or a row that cannot be used."""

    image: str
    caption: str
    split: str | None = None  # None: the file has no splits; "": the caption is left out
    image_id: int | str | None = None
    folder: str = ""  # where COCO's images may be, such as train2014
    problem: str = ""  # why the row cannot be used


class CaptionsFile:
    """A captions file of which the beginning has been read."""

    def __init__(self, path: Path, paired: bool = False):
        """`paired`: this is one of several files whose names contain `train` and `val`, as COCO's do.

        Raises:
            UserError: the file is missing, empty or not UTF-8.
        """
        self.path, self.paired = path, paired
        try:
            with open(path, encoding="utf-8-sig") as file:
                self.lines = file.read(1 << 16).strip().split("\n")
        except FileNotFoundError:
            raise UserError(f"no captions file at {path}; set data.captions to a captions file") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text in UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise UserError(
                f"cannot read {path} ({error.strerror}); set data.captions to a captions file"
            ) from None
        if not self.lines[0]:
            raise UserError(f"{path} is empty; set data.captions to a captions file")

    @cached_property
    def record(self) -> dict[str, Any]:
        """The JSON object on the first line; empty if there is none."""
        try:
            record = json.loads(self.lines[0])
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    @cached_property
    def content(self) -> dict[str, Any]:
        """The whole file as a JSON object; empty for other files. Raises UserError for broken JSON."""
        is_json_lines = self.record and len(self.lines) > 1
        if is_json_lines or not self.lines[0].startswith(("{", "[")):
            return {}

        def without_tokens(entry: dict) -> dict:
            entry.pop("tokens", None)  # Karpathy's; they take ten times the memory of the caption
            return entry

        try:
            with open(self.path, encoding="utf-8-sig") as file:
                content = json.load(file, object_hook=without_tokens)
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
