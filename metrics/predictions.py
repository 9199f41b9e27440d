"""Captions from a file, matched to the images of a captions table."""

from startup import one_line

import reprlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import AliasChoices, BaseModel, Field, StrictInt, StrictStr, ValidationError

from data.captions_file import parse_json
from data.formats import open_captions
from files import require_regular
from metrics.scores import some
from utils import UserError

_LONGEST_PATH = 4096  # characters, on any system


class _JSONRow(BaseModel):
    """One caption in a JSON file. Other keys are ignored."""

    image: StrictStr | StrictInt = Field(validation_alias=AliasChoices("image", "image_id"))
    caption: StrictStr


class _Prediction(NamedTuple):
    """One caption, and the image as the file names it."""

    image: str  # a name, a path, or an id as text
    caption: str
    image_id: str | None = None


def read_predictions(path: Path, table: pd.DataFrame) -> dict[str, str]:
    """Image name -> caption, in the order of the file.

    The file is a JSON object `{name: caption}`, a JSON list of objects with `caption` and `image_id` (COCO's
    results format) or `image` (as inference_visualize.py writes it), or any captions file with one caption
    per image. An image is found by the end of its path (`match_names`) or by its id in `table`; if it is not
    in `table`, it keeps its name in the file.

    Raises UserError if the file cannot be read, or has more than one caption for an image, even if it names
    the image once by its name and once by its id.
    """
    predictions = _read_file(path)
    if not predictions:
        raise UserError(f"{path} has no captions; pass a file with one caption per image")
    ids = {str(image_id): name for name, image_id in image_ids(table).items()}
    # The name has priority over the id: number 7 may be different images in two sources.
    names = match_names((row.image for row in predictions), list(ids.values()), str(path))
    captions: dict[str, str] = {}
    named: dict[str, str] = {}  # as in the file
    for row in predictions:
        name = names.get(row.image) or ids.get(row.image_id or row.image, row.image)
        if name in captions:
            both = f" (as {named[name]!r} and {row.image!r})" if named[name] != row.image else ""
            raise UserError(f"{path} has more than one caption for {name!r}{both}; keep one")
        captions[name], named[name] = row.caption, row.image
    return captions


def match_names(names: Iterable[str], known: Collection[str], where: str) -> dict[str, str]:
    """The known name that each name matches; names without a match are absent from the result.

    Two names match if one is the end of the other, in whole parts of a path: `a.jpg`, `images/a.jpg` and
    `C:\\images\\a.jpg` match. Of several known names, an equal one has priority, then the one with the most
    parts in common. `where`: the file or option to name in an error.

    Raises UserError if a name matches two known names equally well, or two names match the same known name.
    """
    whole: dict[str, list[str]] = defaultdict(list)
    by_end: dict[str, list[str]] = defaultdict(list)
    for name in known:
        whole[_ends(name)[0]].append(name)
        for end in _ends(name):
            by_end[end].append(name)
    matches: dict[str, str] = {}
    matched_by: dict[str, str] = {}
    for name in dict.fromkeys(names):
        ends = _ends(name)
        found = whole.get(ends[0]) or by_end.get(ends[0]) or next((whole[e] for e in ends if e in whole), [])
        if len(found) > 1:
            raise UserError(
                f"{where}: the image {name!r} may be {found[0]!r} or {found[1]!r}; give more of its path"
            )
        if found:
            other = matched_by.setdefault(found[0], name)
            if other != name:
                raise UserError(
                    f"{where}: {other!r} and {name!r} may both be the image {found[0]!r}; keep one of them"
                )
            matches[name] = found[0]
    return matches


def select_predictions(
    captions: Mapping[str, str], images: Collection[str], where: str, strict: bool = False
) -> dict[str, str]:
    """The captions of `images`; prints how many are missing or extra.

    Raises UserError if no caption is left or, with `strict`, if any caption is missing or extra.
    """
    kept = {image: caption for image, caption in captions.items() if image in images}
    if not kept:
        raise UserError(
            f"{where} has no captions for the {len(images):,} images to score: its names are "
            f"{some(captions)}, theirs are {some(images)}; check --split and data.captions"
        )
    missing = [image for image in images if image not in captions]
    extra = [image for image in captions if image not in kept]
    if missing or extra:
        found = [f"{where} has captions for {len(kept):,} of the {len(images):,} images to score"]
        found += [f"{len(missing):,} missing ({some(missing)})"] * bool(missing)
        found += [f"{len(extra):,} extra, for other images ({some(extra)})"] * bool(extra)
        if strict:
            raise UserError(f"{'; '.join(found)}; leave out --strict to score the captions that match")
        print(one_line("; ".join(found)))
    return kept


def read_same_images(path: Path, table: pd.DataFrame, images: Collection[str]) -> dict[str, str]:
    """`read_predictions`, for a file that must have the captions of `images` and of no others.

    Raises UserError as `read_predictions`, or if the images differ.
    """
    captions = read_predictions(path, table)
    missing = [image for image in images if image not in captions]
    extra = [image for image in captions if image not in images]
    if missing or extra:
        splits = table.loc[table["image"].isin(extra), "split"].unique()
        of_split = f" of the split {' and '.join(splits)}" if len(splits) else ""
        found = [f"{len(missing):,} missing ({some(missing)})"] * bool(missing)
        found += [f"{len(extra):,} others{of_split} ({some(extra)})"] * bool(extra)
        raise UserError(
            f"--against {path}: its images are not the {len(images):,} that are scored here: "
            f"{'; '.join(found)}; compare evaluations of the same images and split"
        )
    return captions


def image_ids(table: pd.DataFrame) -> dict[str, int | str]:
    """Image name -> its id in the captions file, or the name again if the file has no ids."""
    column = "image_id" if "image_id" in table else "image"
    return dict(zip(table["image"].tolist(), table[column].tolist(), strict=True))


def _read_file(path: Path) -> list[_Prediction]:
    content = _read_json(path)
    if isinstance(content, list):
        return [_from_json(path, row) for row in content]
    if isinstance(content, dict) and "images" not in content:
        return [_from_json(path, {"image": name, "caption": content[name]}) for name in content]
    rows = [row for row in open_captions([path])[0].rows if row.split != ""]
    if problems := [row.problem for row in rows if row.problem]:
        raise UserError(f"{path}: {problems[0]}")
    ids = [None if row.image_id is None else str(row.image_id) for row in rows]
    return [_Prediction(row.image, row.caption, image_id) for row, image_id in zip(rows, ids, strict=True)]


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None for a captions file that is not JSON, and for a broken file."""
    require_regular(path)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = getattr(error, "strerror", error)
        raise UserError(f"no predictions at {path} ({reason}); pass a file with captions") from None
    try:
        return parse_json(text)
    except ValueError:
        return None  # the reader of captions files reports what is wrong


def _from_json(path: Path, content: object) -> _Prediction:
    try:
        row = _JSONRow.model_validate(content)
    except ValidationError:
        raise UserError(
            f"{path}: {reprlib.repr(content)} is not the caption of an image; write "
            '{"name": "caption", …} or [{"image_id": …, "caption": "…"}, …]'
        ) from None
    return _Prediction(str(row.image), row.caption)


def _ends(name: str) -> list[str]:
    """The whole name with plain slashes, then without its first part, its first two, and so on."""
    if len(name) > _LONGEST_PATH:
        return [name]
    parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    return ["/".join(parts[i:]) for i in range(len(parts))] or [""]
