"""Captions in columns: CSV and JSON Lines, with various names for the columns."""

import csv
from collections.abc import Iterator
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from data.captions_file import CaptionsFile, Row, Text, bad_row, parse_json, problem_of
from utils import UserError

# Names of the columns of a CSV and of the keys of JSON Lines. The first one that a file has is used.
IMAGE_COLUMNS = ("image", "image_name", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "comment", "raw")
_LIST_COLUMNS = ("captions", "raw")  # in a CSV, these may hold all captions of an image as a JSON list
_LIST = TypeAdapter(list[str])


def is_csv(file: CaptionsFile) -> bool:
    return not file.record and not file.content and _has_columns(file)


def is_json_lines(file: CaptionsFile) -> bool:
    return bool(file.record) and _has_columns(file)


def _has_columns(file: CaptionsFile) -> bool:
    return bool(file.column(IMAGE_COLUMNS) and file.column(CAPTION_COLUMNS))


def csv_rows(file: CaptionsFile) -> Iterator[Row]:
    """A CSV whose columns are in any order, possibly among others, quoted as in RFC 4180."""
    image_name, caption_name, split_name = map(file.column, (IMAGE_COLUMNS, CAPTION_COLUMNS, ["split"]))
    assert image_name  # `is_csv` has checked both
    assert caption_name
    image, caption = file.columns.index(image_name), file.columns.index(caption_name)
    split = file.columns.index(split_name) if split_name else None
    captions_of = _listed_captions if caption_name in _LIST_COLUMNS else lambda cell: [cell]
    with open(file.path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True, skipinitialspace=True)
        rows = filter(None, reader)
        try:
            next(rows)
            for fields in rows:
                if len(fields) == len(file.columns):
                    in_split = None if split is None else fields[split].strip()
                    yield from (Row(fields[image], text, in_split) for text in captions_of(fields[caption]))
                else:
                    number = f"{len(fields)} fields instead of {len(file.columns)}"
                    yield bad_row(f"line {reader.line_num} has {number} (a caption with commas needs quotes)")
        except csv.Error as error:
            raise UserError(f"{file.path}, line {reader.line_num}: {error}; check the quotes there") from None


def _listed_captions(cell: str) -> list[str]:
    """The captions in a field that holds a JSON list of strings; any other field is one caption."""
    try:
        return _LIST.validate_json(cell) or [cell]
    except ValidationError:
        return [cell]


def json_lines_rows(file: CaptionsFile) -> Iterator[Row]:
    """One object per line, with an image and one caption or a list of captions."""
    image, caption = file.column(IMAGE_COLUMNS), file.column(CAPTION_COLUMNS)
    fields = {image: Text | None, caption: CAPTIONS, "split": NotRequired[str | None]}
    kind: TypeAdapter[dict[str, Any]] = TypeAdapter(TypedDict("JsonLine", fields))  # type: ignore[operator]
    with open(file.path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found = kind.validator.validate_python(parse_json(line))
            except ValidationError as error:  # it is a ValueError, too
                yield bad_row(f"line {number}{problem_of(error)}")
            except ValueError as error:
                yield bad_row(f"line {number} is not valid JSON ({error})")
            else:
                split = (found.get("split") or "") if "split" in file.columns else None
                for text in found[caption] or [""]:
                    yield Row(found[image] or "", text or "", split)


def _as_list(captions: object) -> object:
    return captions if isinstance(captions, list) else [captions]


CAPTIONS = Annotated[list[Text | None], BeforeValidator(_as_list)]
