"""The same images and captions in every format give the same table."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.captions import read_captions
from data.formats import half_of, open_captions, split_of
from evaluate import image_ids, read_predictions
from utils import UserError

# What has gone wrong elsewhere: commas, quotes, bars, number signs, other letters, what looks like no value.
CAPTIONS = (
    'A dog, "Rex", runs .', "ein Hund läuft über die Straße", "一只狗 在 跑", "собака | бежит", "null",
    "a cat #1 on a mat's edge", "dos niños juegan; uno ríe",
)  # fmt: skip
Rows = list[tuple[str, str, str]]  # image, caption, split


def example(images: int = 200, captions: int = 5) -> Rows:
    """Rows of `images` images, the train split first, as COCO's two files have it."""
    splits = ["train"] * (images - 2 * (images // 5)) + ["val", "test"] * (images // 5)
    return [
        (f"image_{i:03}.jpg", f"{CAPTIONS[(i + k) % len(CAPTIONS)]} {i} {k}", split)
        for i, split in enumerate(splits)
        for k in range(captions)
    ]


def by_image(rows: Rows) -> dict[tuple[str, str], list[str]]:
    """(image, split) -> captions."""
    images = {}
    for image, caption, split in rows:
        images.setdefault((image, split), []).append(caption)
    return images


def write_csv(folder: Path, rows: Rows) -> list[Path]:
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return [folder / "captions.csv"]


def write_captions_txt(folder: Path, rows: Rows) -> list[Path]:
    with open(folder / "captions.txt", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *(row[:2] for row in rows)])
    return [folder / "captions.txt"]


def write_results(folder: Path, rows: Rows) -> list[Path]:
    lines = ["image_name| comment_number| comment"]
    for (image, _), captions in by_image(rows).items():
        lines += [f"{image}| {n}| {caption}" for n, caption in enumerate(captions)]
    image, number, caption = lines[9].split("| ", 2)
    lines[9] = f"{image}| {number}   {caption}"  # the row without its last bar
    (folder / "results.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return [folder / "results.csv"]


def write_token(folder: Path, rows: Rows) -> list[Path]:
    lines = []
    lists = {"train": [], "val": [], "test": []}
    for (image, split), captions in by_image(rows).items():
        name = image + ".1" * (image == "image_003.jpg")  # as one name of the real file is written
        lines += [f"{name}#{n}\t{caption}" for n, caption in enumerate(captions)]
        lists[split].append(image)
    lines.append("in_no_list.jpg#0\tset aside")
    (folder / "Flickr8k.token.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    for split, name in {"train": "train", "val": "dev", "test": "test"}.items():
        (folder / f"Flickr_8k.{name}Images.txt").write_bytes("\r\n".join([*lists[split], ""]).encode())
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
        mine = [row for row in rows if (row[2] == "train") == (kind == "train")]
        content = {
            "info": {},
            "images": [{"id": ids[image], "file_name": image} for image, _ in by_image(mine)],
            "annotations": [
                {"image_id": ids[image], "id": n, "caption": caption}
                for n, (image, caption, _) in enumerate(mine)
            ],
        }
        path = folder / f"captions_{kind}{year}.json"
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8-sig")
        paths.append(path)
    return paths


FORMATS = {
    "CSV with image,caption,split": write_csv,
    "CSV with image,caption": write_captions_txt,
    "Flickr30k's results.csv": write_results,
    "Flickr8k.token.txt and its lists": write_token,
    "Karpathy's JSON": write_karpathy,
    "COCO captions": write_coco,
}


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with a file for each image of `example`: whether it is an image is not read yet."""
    folder = tmp_path / "images"
    folder.mkdir()
    for image, _ in by_image(example()):
        (folder / image).touch()
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_table(tmp_path, images, capsys, name):
    rows = example()
    table = read_captions(FORMATS[name](tmp_path, rows), images, max_bad_rows=0)
    assert list(table[["image", "caption"]].itertuples(index=False, name=None)) == [r[:2] for r in rows]
    own = {
        "CSV with image,caption": [split_of(image) for image, _, _ in rows],
        "Flickr30k's results.csv": [split_of(image) for image, _, _ in rows],
        "COCO captions": [split if split == "train" else half_of(image) for image, _, split in rows],
    }
    assert table["split"].tolist() == own.get(name, [split for _, _, split in rows])
    said = capsys.readouterr().out
    assert f": {name}" in said
    assert "200 images" in said
    assert "1,000 captions" in said
    assert ("by hash" in said) == (name in ("CSV with image,caption", "Flickr30k's results.csv"))


@pytest.mark.parametrize(("name", "first"), [("Karpathy's JSON", 0), ("COCO captions", 1000)])
def test_images_keep_the_ids_of_the_source(tmp_path, images, name, first):
    table = read_captions(FORMATS[name](tmp_path, example()), images)
    assert table["image_id"].tolist() == [first + i for i in range(200) for _ in range(5)]


@pytest.mark.parametrize("write", [write_coco, lambda *args: write_karpathy(*args, filepath="train2014")])
def test_images_of_coco_lie_in_their_folders_or_flat(tmp_path, images, write):
    paths = write(tmp_path, example())
    flat = read_captions(paths, images)
    for folder in ("train2014", "val2014"):
        (images / folder).mkdir()
        for image in flat["image"].unique():
            (images / folder / image).touch()
    nested = read_captions(paths, images)
    assert nested["image"][0] == "train2014/image_000.jpg"
    assert nested["image"].map(lambda image: Path(image).name).tolist() == flat["image"].tolist()
    assert nested["split"].tolist() == flat["split"].tolist()


def test_one_coco_file_alone_is_split_by_hash(tmp_path, images):
    train, _ = write_coco(tmp_path, example(), year="2017")
    table = read_captions(train, images)
    assert table["split"].tolist() == table["image"].map(split_of).tolist()
    assert set(table["split"]) == {"train", "val", "test"}


def test_a_token_file_without_lists_is_split_by_hash_and_half_of_the_lists_is_an_error(tmp_path, images):
    [path] = write_token(tmp_path, example())
    (images / "in_no_list.jpg").touch()
    (tmp_path / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(UserError, match=r"Flickr_8k\.devImages\.txt is missing"):
        read_captions(path, images)
    for file in tmp_path.glob("Flickr_8k.*"):
        file.unlink()
    table = read_captions(path, images)
    assert table["split"].tolist() == table["image"].map(split_of).tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_predictions_may_be_in_every_format_and_by_name_or_id(tmp_path, images, name):
    table = read_captions(FORMATS[name](tmp_path, example()), images)
    predicted = {image: f"a prediction of {image}" for image in table["image"].unique()}
    ids = image_ids(table)
    for write in (write_csv, write_token, write_results, write_karpathy):
        [path] = write(tmp_path, [(image, caption, "test") for image, caption in predicted.items()])
        assert read_predictions(path, table) == predicted
    for key in (lambda image: image, ids.get):
        results = [{"image_id": key(image), "caption": caption} for image, caption in predicted.items()]
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert read_predictions(tmp_path / "results.json", table) == predicted


def test_two_predictions_for_an_image_and_rows_of_no_form_are_refused(tmp_path, images):
    table = read_captions(write_csv(tmp_path, example()), images)
    with pytest.raises(UserError, match=r"more than one caption for 'image_000\.jpg'"):
        read_predictions(tmp_path / "captions.csv", table)
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a dog, a cat\n")
    with pytest.raises(UserError, match="line 2 has 3 fields"):
        read_predictions(tmp_path / "captions.csv", table)


@given(st.text())
def test_every_name_has_a_split_and_those_of_val_and_test_stay_there_when_only_they_are_left(name):
    assert split_of(name) == split_of(name)
    assert split_of(name) in ("train", half_of(name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text\na,b\n", "no column 'image'"),
        ("\n", "is empty"),
        ("image,caption\na.jpg,x\n\xff", "is not text in UTF-8"),
        ('image,caption\na.jpg,x\nb.jpg,"y\n', "line 3: unexpected end of data"),
        ('{"images": [', "not valid JSON"),
        ("[1, 2]", "neither images with sentences nor annotations"),
        ('{"images": [{"sentences": []}]}', "an entry lacks 'split'"),
    ],
)
def test_what_is_in_no_format_says_why(tmp_path, content, message):
    path = tmp_path / "captions"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        [list(source.rows) for source in open_captions([path])]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="no captions file at"):
        open_captions([tmp_path / "none.csv"])
    with pytest.raises(UserError, match="cannot read"):
        open_captions([tmp_path])
