"""Captions in columns: CSV and JSON Lines, with various names for the columns."""

import csv
import json
from collections.abc import Iterator

from data.captions_file import CaptionsFile, Row
from utils import UserError

# Names of the columns of a CSV and of the keys of JSON Lines. The first one that a file has is used.
IMAGE_COLUMNS = ("image", "image_name", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "comment", "raw")
_LIST_COLUMNS = ("captions", "raw")  # in a CSV, these may hold all captions of an image as a JSON list


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
                    problem = f"line {reader.line_num} has {number} (a caption with commas needs quotes)"
                    yield Row("", "", problem=problem)
        except csv.Error as error:
            raise UserError(f"{file.path}, line {reader.line_num}: {error}; check the quotes there") from None


def _listed_captions(cell: str) -> list[str]:
    """The captions in a field that holds a JSON list of strings; any other field is one caption."""
    try:
        captions = json.loads(cell)
    except ValueError:
        return [cell]
    is_list = isinstance(captions, list) and all(isinstance(text, str) for text in captions)
    return captions if is_list and captions else [cell]


def json_lines_rows(file: CaptionsFile) -> Iterator[Row]:
    """One object per line, with an image and one caption or a list of captions."""
    image, caption = file.column(IMAGE_COLUMNS), file.column(CAPTION_COLUMNS)
    with open(file.path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name, captions = record[image] or "", record[caption] or ""
            except (ValueError, KeyError, TypeError):
                yield Row("", "", problem=f"line {number} is not JSON with {image!r} and {caption!r}")
                continue
            captions = captions if isinstance(captions, list) else [captions]
            split = str(record.get("split") or "") if "split" in file.columns else None
            if all(isinstance(text, str) for text in (name, *captions)):
                yield from (Row(name, text, split) for text in captions)
            else:
                yield Row("", "", problem=f"line {number}: {image!r} and {caption!r} are not text")
