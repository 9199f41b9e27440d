"""Captions files as people share them: recognised by their content and read into rows of one shape."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from utils import UserError

KNOWN = (
    "what is read: a CSV with image,caption[,split], Flickr30k's results.csv, Flickr8k.token.txt, Karpathy's "
    "dataset_*.json, COCO's captions_*.json"
)
TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t(.*)")
# One row of the file that everybody has lacks the second bar: "2199200615.jpg| 4   A dog runs ...".
RESULTS_LINE = re.compile(r"([^|]+)\|\s*\d+\s*[|\s]\s*(.*)")


class Row(NamedTuple):
    """One caption, or a row that cannot be read as one."""

    image: str
    caption: str
    split: str | None = None  # None where the format has no splits, "" for a caption that is set aside
    image_id: int | str | None = None
    folder: str = ""  # of COCO's images, as train2014; they may also lie without it
    problem: str = ""  # why the row cannot be used


class Source(NamedTuple):
    """What a file was recognised as, and its rows, read as they are asked for."""

    format: str
    rows: Iterator[Row]


def open_captions(paths: Sequence[Path]) -> list[Source]:
    """Recognise each file by its content.

    Raises:
        UserError: a file is missing, is not UTF-8 or is in no format known here. Reading the rows raises it
            where a file breaks off or lacks what its format has.
    """
    # COCO keeps the captions of its test images to itself, so its val file serves as val and as test. A
    # file that comes alone has no such role: it is split by hash, as any format without splits.
    paired = all(any(split in path.stem for path in paths) for split in ("train", "val"))
    sources = []
    for path in paths:
        source = recognise(path, paired)
        sources.append(Source(source.format, guarded(path, source)))
    return sources


def recognise(path: Path, paired: bool) -> Source:
    """`paired`: whether the names of the files say which of them is COCO's train and which its val."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read(1 << 16).strip().split("\n")
    except FileNotFoundError:
        raise UserError(f"no captions file at {path}; set data.captions to yours") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as UTF-8 ({KNOWN})") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); set data.captions to a file") from None
    if not lines[0]:
        raise UserError(f"{path} is empty; {KNOWN}")
    if lines[0].startswith(("{", "[")):
        return recognise_json(path, paired)
    if re.match(r"image_name\s*\|", lines[0]):
        return Source("Flickr30k's results.csv", results_rows(path))
    if any(TOKEN_LINE.fullmatch(line) for line in lines[:5]):
        splits = split_lists(path)
        return Source("Flickr8k.token.txt" + (" and its lists" if splits else ""), token_rows(path, splits))
    header = [name.strip().lower() for name in next(csv.reader(lines[:1]))]
    for column in ("image", "caption"):
        if column not in header:
            found = ", ".join(header[:5])
            raise UserError(f"{path}: no column {column!r} in its first line ({found}); {KNOWN}")
    columns = [column for column in ("image", "caption", "split") if column in header]
    return Source(f"CSV with {','.join(columns)}", csv_rows(path, header))


def recognise_json(path: Path, paired: bool) -> Source:
    def without_tokens(entry: dict) -> dict:
        entry.pop("tokens", None)  # Karpathy's: ten times the memory of the caption that they are
        return entry

    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=without_tokens)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); is it complete?") from None
    images = content.get("images") if isinstance(content, dict) else None
    if images and "sentences" in images[0]:
        return Source("Karpathy's JSON", karpathy_rows(content))
    if images and "annotations" in content:
        name = "COCO captions" + (" (the val file is val and test)" if paired else "")
        return Source(name, coco_rows(content, path.stem, paired))
    raise UserError(f"{path} is JSON, but has neither images with sentences nor annotations; {KNOWN}")


def guarded(path: Path, source: Source) -> Iterator[Row]:
    """The rows, with a UserError for what the reader stumbles over."""
    try:
        yield from source.rows
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} was read as {source.format}, but an entry lacks {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} was read as {source.format}, but {error}; save it as UTF-8") from None


def csv_rows(path: Path, header: list[str]) -> Iterator[Row]:
    """image,caption[,split] in any order among other columns, quoted as RFC 4180 has it."""
    image, caption = header.index("image"), header.index("caption")
    split = header.index("split") if "split" in header else None
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        lines = filter(None, reader)
        try:
            next(lines)
            for fields in lines:
                if len(fields) == len(header):
                    in_split = None if split is None else fields[split].strip()
                    yield Row(fields[image], fields[caption], in_split)
                else:
                    problem = f"line {reader.line_num} has {len(fields)} fields instead of {len(header)}"
                    yield Row("", "", problem=problem + " (a caption with commas needs quotes)")
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}; look at the quotes there") from None


def results_rows(path: Path) -> Iterator[Row]:
    """`image_name| comment_number| comment`; quotes are part of the caption."""
    return matched_rows(path, RESULTS_LINE, "is not image| number| caption", skip=1)


def token_rows(path: Path, splits: dict[str, str] | None) -> Iterator[Row]:
    """`image#number<TAB>caption`; an image in none of the lists is set aside."""
    for row in matched_rows(path, TOKEN_LINE, "is not image#number<TAB>caption"):
        # One image of Flickr8k is called ....jpg.1 in this file alone.
        image = re.sub(r"(\.jpe?g)\.\d+$", r"\1", row.image)
        yield row._replace(image=image, split=None if splits is None else splits.get(image, ""))


def matched_rows(path: Path, pattern: re.Pattern, otherwise: str, skip: int = 0) -> Iterator[Row]:
    """A row per line from the two groups of `pattern`, after a header of `skip` lines."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if number <= skip or not line.strip():
                continue
            match = pattern.fullmatch(line.rstrip("\n"))
            yield Row(*match.groups()) if match else Row("", "", problem=f"line {number} {otherwise}")


def split_lists(path: Path) -> dict[str, str] | None:
    """Image -> split from the Flickr_8k.*Images.txt beside Flickr8k.token.txt; None where there are none."""
    names = {"train": "train", "dev": "val", "test": "test"}
    lists = {path.with_name(f"Flickr_8k.{name}Images.txt"): split for name, split in names.items()}
    missing = [file.name for file in lists if not file.is_file()]
    if len(missing) == len(lists):
        return None
    if missing:
        raise UserError(f"{missing[0]} is missing beside {path}; put it there, or take the other lists away")
    return {
        image: split for file, split in lists.items() for image in file.read_text("utf-8-sig").splitlines()
    }


def karpathy_rows(content: dict) -> Iterator[Row]:
    """{"images": [{"filename", "split", "sentences": [{"raw"}], "imgid"; of COCO "filepath", "cocoid"}]}."""
    for image in content["images"]:
        # The 30,504 images of COCO's val that are in neither val nor test are for training.
        split = "train" if image["split"] == "restval" else image["split"]
        image_id = image.get("cocoid", image.get("imgid"))
        for sentence in image["sentences"]:
            caption = sentence["raw"] or ""
            yield Row(image["filename"], caption, split, image_id, image.get("filepath", ""))


def coco_rows(content: dict, stem: str, paired: bool) -> Iterator[Row]:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]} of a file named `stem`."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    folder = re.search(r"(train|val)\d{4}", stem)
    folder = folder[0] if folder else ""
    splits: dict[str, str | None] = dict.fromkeys(names.values())
    if paired:
        splits = {name: "train" if "train" in stem else half_of(name) for name in splits}
    for annotation in content["annotations"]:
        image_id, caption = annotation["image_id"], annotation["caption"] or ""
        if name := names.get(image_id):
            yield Row(name, caption, splits[name], image_id, folder)
        else:
            yield Row("", caption, problem=f"an annotation of image {image_id}, which the file does not list")


def split_of(image: str) -> str:
    """train (80 %), val (10 %) or test (10 %) from the name alone, so that adding images moves no other."""
    return {0: "val", 1: "test"}.get(bucket_of(image), "train")


def half_of(image: str) -> str:
    """val or test from the name alone; what `split_of` has in val or test is there, too."""
    return ("val", "test")[bucket_of(image) % 2]


def bucket_of(image: str) -> int:
    """0 to 9, as good as random."""
    return int.from_bytes(hashlib.sha256(image.encode("utf-8", "surrogatepass")).digest()[:8]) % 10
