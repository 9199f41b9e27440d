"""Functions that several tests call."""

import csv
import json
from pathlib import Path

Rows = list[tuple[str, str, str]]  # image, caption, split


def by_image(rows: Rows) -> dict[tuple[str, str], list[str]]:
    """(image, split) -> captions."""
    captions = {}
    for image, caption, split in rows:
        captions.setdefault((image, split), []).append(caption)
    return captions


def write_csv(folder: Path, rows: Rows) -> list[Path]:
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return [folder / "captions.csv"]


def write_lists(folder: Path, rows: Rows) -> None:
    """Flickr8k's three lists of the images of each split."""
    for split, name in {"train": "train", "val": "dev", "test": "test"}.items():
        names = [image for image, of_image in by_image(rows) if of_image == split]
        (folder / f"Flickr_8k.{name}Images.txt").write_bytes("\r\n".join([*names, ""]).encode())


def write_token(folder: Path, rows: Rows) -> list[Path]:
    """Flickr8k.token.txt and the lists beside it."""
    lines = []
    for (image, _), captions in by_image(rows).items():
        name = image + ".1" * (image == "image_003.jpg")  # one name of the real file has this ending
        lines += [f"{name}#{n}\t{caption}" for n, caption in enumerate(captions)]
    lines.append("in_no_list.jpg#0\tset aside")
    (folder / "Flickr8k.token.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    write_lists(folder, rows)
    return [folder / "Flickr8k.token.txt"]


def write_karpathy(folder: Path, rows: Rows, **more) -> list[Path]:
    images = [
        {
            "filename": image,
            "imgid": i,
            "split": "restval" if image == "image_001.jpg" else split,
            "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
            **more,
        }
        for i, ((image, split), captions) in enumerate(by_image(rows).items())
    ]
    content = {"images": images, "dataset": "flickr8k"}
    (folder / "dataset_flickr8k.json").write_text(json.dumps(content), "utf-8")
    return [folder / "dataset_flickr8k.json"]


def write_coco(folder: Path, rows: Rows, year: str = "2014") -> list[Path]:
    paths, ids = [], {image: 1000 + i for i, (image, _) in enumerate(by_image(rows))}
    for kind in ("train", "val"):
        of_kind = [row for row in rows if (row[2] == "train") == (kind == "train")]
        content = {
            "info": {},
            "images": [{"id": ids[image], "file_name": image} for image, _ in by_image(of_kind)],
            "annotations": [
                {"image_id": ids[image], "id": n, "caption": caption}
                for n, (image, caption, _) in enumerate(of_kind)
            ],
        }
        path = folder / f"captions_{kind}{year}.json"
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8-sig")
        paths.append(path)
    return paths
