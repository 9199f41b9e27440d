"""Captions in one JSON object: COCO's own files, and Karpathy's, which hold the splits of the literature."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from data.captions_file import CaptionsFile, Row, Text, bad_row, typed
from data.splits import half_of

KARPATHY_EXAMPLE = (
    '{"images": [{"filename": "dog.jpg", "split": "train", "sentences": [{"raw": "A dog runs ."}]}]}'
)
COCO_EXAMPLE = (
    '{"images": [{"id": 42, "file_name": "dog.jpg"}], '
    '"annotations": [{"image_id": 42, "caption": "A dog runs ."}]}'
)

_Id = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Text


class _Sentence(TypedDict):
    raw: Text | None


class _KarpathyImage(TypedDict):
    filename: Text
    split: Text
    sentences: list[Any]
    imgid: NotRequired[_Id | None]
    cocoid: NotRequired[_Id | None]
    filepath: NotRequired[Text]  # of COCO


class _CocoImage(TypedDict):
    id: _Id
    file_name: Text


class _CocoCaption(TypedDict):
    image_id: _Id
    caption: Text | None


# Dictionaries instead of models: COCO has 600,000 captions, and these take a fifth of the time.
_SENTENCE, _KARPATHY_IMAGE = TypeAdapter(_Sentence), TypeAdapter(_KarpathyImage)
_COCO_IMAGE, _COCO_CAPTION = TypeAdapter(_CocoImage), TypeAdapter(_CocoCaption)


def is_karpathy(file: CaptionsFile) -> bool:
    match file.content.get("images"):
        case [{"sentences": _}, *_]:
            return True
    return False


def karpathy_rows(file: CaptionsFile) -> Iterator[Row]:
    """{"images": [{"filename", "split", "sentences": [{"raw"}], "imgid"; of COCO "filepath", "cocoid"}]}."""
    for image in typed(file.content["images"], _KARPATHY_IMAGE, "images"):
        if isinstance(image, Row):
            yield image
            continue
        # restval: 30,504 images of COCO's val that Karpathy's split uses for training.
        split = "train" if image["split"] == "restval" else image["split"]
        image_id = image.get("cocoid", image.get("imgid"))
        for sentence in typed(image["sentences"], _SENTENCE, f"sentences of {image['filename']!r}"):
            if isinstance(sentence, Row):
                yield sentence
            else:
                caption, folder = sentence["raw"] or "", image.get("filepath", "")
                yield Row(image["filename"], caption, split, image_id, folder)


def is_coco(file: CaptionsFile) -> bool:
    return {"images", "annotations"} <= file.content.keys()


def coco_rows(file: CaptionsFile) -> Iterator[Row]:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    names: dict[int | str, str] = {}
    for image in typed(file.content["images"], _COCO_IMAGE, "images"):
        if isinstance(image, Row):
            yield image
        elif names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            yield bad_row(f"image {image['id']!r} is both {names[image['id']]!r} and {image['file_name']!r}")
    match = re.search(r"(train|val)\d{4}", file.path.stem)
    folder = match[0] if match else ""
    splits = {name: _split_of(name, file) for name in names.values()}
    for entry in typed(file.content["annotations"], _COCO_CAPTION, "annotations"):
        if isinstance(entry, Row):
            yield entry
        elif name := names.get(entry["image_id"]):
            yield Row(name, entry["caption"] or "", splits[name], entry["image_id"], folder)
        else:
            yield bad_row(f"an annotation of image {entry['image_id']!r}, which the file does not list")


def _split_of(name: str, file: CaptionsFile) -> str | None:
    """The split of an image from the name of the file; None if that does not tell the split."""
    match file.splits:
        case []:
            return None
        case [split]:
            return split
    return half_of(name)
