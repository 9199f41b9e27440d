"""The formats of captions files: each is recognised by its content and read into the same kind of rows.

FORMATS, at the end, lists them. To add a format, add its reader and its entry here, and a function that
writes such a file to tests/test_formats.py.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.captions_file import CaptionsFile, Row, bad_row
from data.coco import COCO_EXAMPLE, KARPATHY_EXAMPLE, coco_rows, is_coco, is_karpathy, karpathy_rows
from data.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, csv_rows, is_csv, is_json_lines, json_lines_rows
from data.splits import split_by_lists, splits_by_name
from utils import UserError

_TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t(.*)")
# One row of Flickr30k's file lacks the second bar: "2199200615.jpg| 4   A dog runs ...".
_RESULTS_LINE = re.compile(r"([^|]+)\|\s*\d+\s*[|\s]\s*(.*)")


class Format(NamedTuple):
    """One format of captions files."""

    name: str
    example: str  # a whole file, as small as possible
    splits: str  # source of the splits, for the docs
    recognises: Callable[[CaptionsFile], bool]
    rows: Callable[[CaptionsFile], Iterator[Row]]


class Source(NamedTuple):
    """The format of a file, and its rows."""

    format: str
    rows: Iterable[Row]


def open_captions(paths: Sequence[Path], lists: Path | None = None) -> list[Source]:
    """Recognise each file by its content.

    Args:
        lists: folder of Flickr8k's split lists, for files without splits; None: lists beside each file.

    Raises:
        UserError: a file is missing, is not UTF-8 or has an unknown format, or the lists cannot be used.
            Reading the rows raises it if a file is incomplete.
    """
    sources = []
    for path, splits in zip(paths, splits_by_name(paths), strict=True):
        file = CaptionsFile(path, splits)
        found = _recognise(file)
        rows, remark = split_by_lists(_guarded(file, found), path, lists)
        sources.append(Source(found.name + remark, rows))
    return sources


def _recognise(file: CaptionsFile) -> Format:
    for known in FORMATS:
        if known.recognises(file):
            return known
    raise UserError(
        f"{file.path} has an unknown format (columns found: {', '.join(file.columns[:20])}); known formats: "
        + "; ".join(known.name for known in FORMATS)
    )


def _guarded(file: CaptionsFile, found: Format) -> Iterator[Row]:
    """The rows; raises UserError if the file cannot be read to its end."""
    try:
        yield from found.rows(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file.path} was read as {found.name}, but {error}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {file.path} ({error.strerror})") from None


def formats_table() -> str:
    """Markdown: a table of the formats, and the possible names of the columns."""
    lines = ["| format | example | splits |", "|---|---|---|"]
    for known in FORMATS:
        example = known.example.replace("|", r"\|").replace("\t", "<TAB>")
        code = "<br>".join(f"`{line}`" for line in example.split("\n"))
        lines.append(f"| {known.name} | {code} | {known.splits} |")
    image, caption = (", ".join(f"`{name}`" for name in names) for names in (IMAGE_COLUMNS, CAPTION_COLUMNS))
    return "\n".join(
        [
            *lines,
            "",
            f"Names of the image column in a CSV and in JSON Lines: {image}.",
            f"Names of the caption column: {caption}.",
            "If a file has several of them, the first in this order is used.",
        ]
    )


def _results_rows(file: CaptionsFile) -> Iterator[Row]:
    """`image_name| comment_number| comment`; quotes are part of the caption."""
    return _matched_rows(file, _RESULTS_LINE, "is not image| number| caption", skip=1)


def _token_images(file: CaptionsFile) -> list[str]:
    """The images in those of the first five lines that have the form of a token file."""
    return [match[1] for line in file.lines[:5] if (match := _TOKEN_LINE.fullmatch(line))]


def _is_flickr30k_token(file: CaptionsFile) -> bool:
    # By content, because files get renamed: image names have one part in Flickr30k and two in Flickr8k.
    images = _token_images(file)
    return bool(images) and all(re.fullmatch(r"\d{5,}\.jpg", image) for image in images)


def _token_rows(file: CaptionsFile) -> Iterator[Row]:
    """`image#number<TAB>caption`."""
    for row in _matched_rows(file, _TOKEN_LINE, "is not image#number<TAB>caption"):
        # In Flickr8k's file, one image name ends in ".jpg.1"; the image itself does not.
        yield row._replace(image=re.sub(r"(\.jpe?g)\.\d+$", r"\1", row.image))


def _matched_rows(file: CaptionsFile, pattern: re.Pattern, otherwise: str, skip: int = 0) -> Iterator[Row]:
    """A row for each line after the first `skip` lines, from the two groups of `pattern`."""
    with open(file.path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if number <= skip or not line.strip():
                continue
            match = pattern.fullmatch(line.rstrip("\n"))
            yield Row(*match.groups()) if match else bad_row(f"line {number} {otherwise}")


# A file is read by the first format that recognises it.
FORMATS = [
    Format(
        "Karpathy's JSON",
        KARPATHY_EXAMPLE,
        "the key `split`; `restval` is `train`",
        is_karpathy,
        karpathy_rows,
    ),
    Format(
        "COCO captions",
        COCO_EXAMPLE,
        "by lists or by hash",
        lambda file: is_coco(file) and not file.splits,
        coco_rows,
    ),
    Format(
        "COCO captions (split by the names of the files)",
        COCO_EXAMPLE,
        "`train`, `val` and `test` in the names of the files; without a test file, val is divided by hash",
        lambda file: is_coco(file) and bool(file.splits),
        coco_rows,
    ),
    Format(
        "Hugging Face's metadata.jsonl",
        '{"file_name": "dog.jpg", "text": "A dog runs ."}',
        "the key `split`, or by lists or by hash",
        is_json_lines,
        json_lines_rows,
    ),
    Format(
        "Flickr30k's results.csv",
        "image_name| comment_number| comment\ndog.jpg| 0| A dog runs .",
        "by lists or by hash",
        lambda file: bool(re.match(r"image_name\s*\|", file.lines[0])),
        _results_rows,
    ),
    Format(
        "Flickr30k's results_20130124.token",
        "1000092795.jpg#0\tA dog runs .",
        "by lists or by hash",
        _is_flickr30k_token,
        _token_rows,
    ),
    Format(
        "Flickr8k.token.txt",
        "1000268201_693b08cb0e.jpg#0\tA dog runs .",
        "by lists or by hash",
        lambda file: bool(_token_images(file)),
        _token_rows,
    ),
    Format(
        "CSV with image,caption,split",
        'image,caption,split\ndog.jpg,"A dog, running .",train',
        "the column `split`; rows where it is empty are left out",
        lambda file: is_csv(file) and "split" in file.columns,
        csv_rows,
    ),
    Format(
        "CSV with image,caption",
        "image,caption\ndog.jpg,A dog runs .",
        "by lists or by hash",
        is_csv,
        csv_rows,
    ),
]
