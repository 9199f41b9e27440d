"""The same images and captions in every format give the same table."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from data.captions import read_captions
from data.formats import FORMATS, open_captions
from data.splits import half_of, split_of
from metrics.predictions import image_ids, read_predictions
from tests.helpers import Rows, by_image, write_coco, write_csv, write_karpathy, write_token
from utils import UserError

# What other readers have trouble with: commas, quotes, bars, number signs, other scripts, "null".
CAPTIONS = (
    'A dog, "Rex", runs .', "ein Hund läuft über die Straße", "一只狗 在 跑", "собака | бежит", "null",
    "a cat #1 on a mat's edge", "dos niños juegan; uno ríe",
)  # fmt: skip
FLICKR30K_TOKEN = "Flickr30k's results_20130124.token"


def example(name: str = "") -> Rows:
    """200 images with 5 captions each, the train split first, as COCO's two files have it.

    `name`: the format, since a token file is recognised by the names of its images.
    """
    number = "1000092{:03}.jpg" if name == FLICKR30K_TOKEN else "image_{:03}.jpg"
    splits = ["train"] * 120 + ["val", "test"] * 40
    return [
        (number.format(i), f"{CAPTIONS[(i + k) % len(CAPTIONS)]} {i} {k}", split)
        for i, split in enumerate(splits)
        for k in range(5)
    ]


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


def write_flickr30k_token(folder: Path, rows: Rows) -> list[Path]:
    """Flickr30k's token file, also among Flickr8k's lists, which name none of its images."""
    [path] = write_token(folder, rows)
    lines = path.read_text("utf-8").splitlines()[:-1]
    write_token(folder, [("1000268201_693b08cb0e.jpg", "a girl", "train")])
    (folder / "results_20130124.token").write_text("\n".join(lines), "utf-8")
    return [folder / "results_20130124.token"]


def write_json_lines(folder: Path, rows: Rows) -> list[Path]:
    lines = [json.dumps({"file_name": image, "text": caption}) for image, caption, _ in rows]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, ""]))
    return [folder / "metadata.jsonl"]


def write_coco_file(folder: Path, rows: Rows) -> list[Path]:
    """One of COCO's files, with all images."""
    return write_coco(folder, [(image, caption, "train") for image, caption, _ in rows])[:1]


WRITERS = {
    "Karpathy's JSON": write_karpathy,
    "COCO captions": write_coco_file,
    "COCO captions (split by the names of the files)": write_coco,
    "Hugging Face's metadata.jsonl": write_json_lines,
    "Flickr30k's results.csv": write_results,
    FLICKR30K_TOKEN: write_flickr30k_token,
    "Flickr8k.token.txt": write_token,
    "CSV with image,caption,split": write_csv,
    "CSV with image,caption": write_captions_txt,
}
NAMES = [known.name for known in FORMATS]
WITH_SPLITS = {"Karpathy's JSON", "Flickr8k.token.txt", "CSV with image,caption,split"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with a file for each image of `example`; the files are never read as images here."""
    folder = tmp_path_factory.mktemp("images")
    for image, _ in by_image(example() + example(FLICKR30K_TOKEN)):
        (folder / image).touch()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_table(tmp_path, images, capsys, name):
    rows = example(name)
    table = read_captions(WRITERS[name](tmp_path, rows), images, max_bad_rows=0)
    assert list(table[["image", "caption"]].itertuples(index=False, name=None)) == [r[:2] for r in rows]
    splits = [split if name in WITH_SPLITS else split_of(image) for image, _, split in rows]
    if name == "COCO captions (split by the names of the files)":
        splits = [split if split == "train" else half_of(image) for image, _, split in rows]
    assert table["split"].tolist() == splits
    printed = capsys.readouterr().out
    assert f": {name}" in printed
    assert "200 images" in printed
    assert "1,000 captions" in printed
    assert ("(split by hash of the names)" in printed) == (splits == [split_of(row[0]) for row in rows])
    assert (f"(split by the lists in {tmp_path})" in printed) == (name == "Flickr8k.token.txt")


@pytest.mark.parametrize("known", FORMATS, ids=NAMES)
def test_the_example_of_a_format_is_a_file_in_it(tmp_path, known):
    pair = [tmp_path / "captions_train.json", tmp_path / "captions_val.json"]
    for path in pair:
        path.write_text(known.example)
    opened = {source.format: source for paths in (pair, pair[:1]) for source in open_captions(paths)}
    [row] = opened[known.name].rows
    assert row.image in known.example
    assert re.fullmatch("A dog,? run.*", row.caption)


@pytest.mark.parametrize("image", ["image", "image_name", "filename", "file_name", "Image_Name"])
@pytest.mark.parametrize("caption", ["caption", "comment", "raw", "sentence", "text"])
def test_columns_may_have_the_names_that_are_common(tmp_path, images, image, caption):
    path = tmp_path / "captions.csv"
    path.write_text(f"number,{caption},split,{image}\n0,a dog,val,image_007.jpg\n")
    expected = [{"image": "image_007.jpg", "caption": "a dog", "split": "val"}]
    assert read_captions(path, images).to_dict("records") == expected
    path.write_text(json.dumps({caption: "a dog", "split": "val", image.lower(): "image_007.jpg"}))
    assert read_captions(path, images).to_dict("records") == expected


def test_the_usual_names_of_columns_come_first(tmp_path, images):
    (tmp_path / "captions.csv").write_text("text,filename,caption,image\nx,y.jpg,a dog,image_007.jpg\n")
    table = read_captions(tmp_path / "captions.csv", images)
    assert table[["image", "caption"]].values.tolist() == [["image_007.jpg", "a dog"]]


def test_a_row_may_have_a_list_of_captions(tmp_path, images):
    captions = ["a dog", 'a "big" dog, it runs']
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("raw", "filename"), (json.dumps(captions), "image_000.jpg")])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "image_000.jpg", "text": captions}))
    for name in ("captions.csv", "metadata.jsonl"):
        assert read_captions(tmp_path / name, images)["caption"].tolist() == captions


@pytest.mark.parametrize("cell", ["[1]", "[]", "[a dog", "null", "5"])
def test_a_cell_that_is_no_list_of_captions_is_one_caption(tmp_path, images, cell):
    (tmp_path / "captions.csv").write_text(f"raw,filename\n{cell},image_000.jpg\n")
    assert read_captions(tmp_path / "captions.csv", images)["caption"].tolist() == [cell]


def test_a_csv_of_captions_that_look_like_lists_stays_as_it_is(tmp_path, images):
    (tmp_path / "captions.csv").write_text('caption,filename\n"[""a dog""]",image_000.jpg\n')
    assert read_captions(tmp_path / "captions.csv", images)["caption"].tolist() == ['["a dog"]']


def test_json_lines_that_cannot_be_used_are_named_by_their_number(tmp_path, images, capsys):
    good = '{"file_name": "image_000.jpg", "text": "a dog", "split": "val"}'
    bad = [
        '{"file_name": "image_000.jpg"}',
        '{"file_name": 7, "text": "a"}',
        '{"file_name": "image_000.jpg",',
    ]
    set_aside = good.replace('"val"', "null")
    (tmp_path / "metadata.jsonl").write_text("\n".join([good, "", *bad, set_aside]))
    table = read_captions(tmp_path / "metadata.jsonl", images, max_bad_rows=1)
    assert table.to_dict("records") == [{"image": "image_000.jpg", "caption": "a dog", "split": "val"}]
    printed = capsys.readouterr().out
    assert "left out: 3 of " in printed
    assert "line 3.text: field required; line 4.file_name: input should be a valid string" in printed
    assert "line 5 is not valid JSON" in printed


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file_name": null, "text": "a dog"}', "a row without an image"),
        ('{"file_name": "image_000.jpg", "text": null}', "'image_000.jpg' has no caption"),
        ('{"file_name": "image_000.jpg", "text": []}', "'image_000.jpg' has no caption"),
    ],
)
def test_an_empty_field_of_json_lines_is_named(tmp_path, images, capsys, line, problem):
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "image_000.jpg", "text": "a dog"}}\n{line}\n')
    read_captions(tmp_path / "metadata.jsonl", images, max_bad_rows=1)
    assert problem in capsys.readouterr().out


@pytest.mark.parametrize(("write", "first"), [(write_karpathy, 0), (write_coco, 1000)])
def test_images_keep_the_ids_of_the_source(tmp_path, images, write, first):
    table = read_captions(write(tmp_path, example()), images)
    assert table["image_id"].tolist() == [first + i for i in range(200) for _ in range(5)]


@pytest.mark.parametrize("write", [write_coco, lambda *args: write_karpathy(*args, filepath="train2014")])
def test_images_of_coco_lie_in_their_folders_or_flat(tmp_path, images, write):
    paths = write(tmp_path, example())
    flat = read_captions(paths, images)
    for folder in ("train2014", "val2014"):
        shutil.copytree(images, tmp_path / "nested" / folder)
    nested = read_captions(paths, tmp_path / "nested")
    assert nested["image"][0] == "train2014/image_000.jpg"
    assert nested["image"].map(lambda image: Path(image).name).tolist() == flat["image"].tolist()
    assert nested["split"].tolist() == flat["split"].tolist()


def test_one_coco_file_alone_is_split_by_hash(tmp_path, images):
    train, _ = write_coco(tmp_path, example(), year="2017")
    table = read_captions(train, images)
    assert table["split"].tolist() == table["image"].map(split_of).tolist()
    assert set(table["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("name", NAMES)
def test_predictions_may_be_in_every_format_and_by_name_or_id(tmp_path, images, name):
    table = read_captions(WRITERS[name](tmp_path, example(name)), images)
    predicted = {image: f"a prediction of {image}" for image in table["image"].unique()}
    ids = image_ids(table)
    for write in (write_csv, write_token, write_results, write_karpathy, write_json_lines):
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,Words\na,b\n", r"unknown format \(columns found: name, words\); known formats: Karpathy"),
        ("a.jpg a dog\n", r"columns found: a\.jpg a dog\)"),
        ('{"picture": "a.jpg", "words": "a"}\n{"picture": "b.jpg"}\n', r"columns found: picture, words\)"),
        ('{"info": {},\n"categories": []}', r"columns found: info, categories\)"),
        ('{\n"image": "a.jpg",\n"caption": "a dog"\n}', r"columns found: image, caption\)"),
        ("\n", "is empty"),
        ("image,caption\na.jpg,x\n\xff", "is not text in UTF-8"),
        ('image,caption\na.jpg,x\nb.jpg,"y\n', "line 3: unexpected end of data"),
        ('{"images": [', "not valid JSON"),
        ("[1, 2]", r"columns found: \[1, 2\]\)"),
        ('{"images": [1]}', r"columns found: images\)"),
        ('{"images": [{"sentences": []}], "images": []}', "the key 'images' is repeated"),
        ("[" * 50_000, "not valid JSON .it is nested too deeply"),
        ("{" * 50_000, "not valid JSON"),
        ('{"images": ' + "[" * 100_000, "not valid JSON .it is nested too deeply"),
        ('{"images": ' + "9" * 5_000 + "}", "not valid JSON .*digits"),
        ("\xff\xfe{\0}\0", "is not text in UTF-8"),
        ("{\0}\0", "not valid JSON"),
        ("image,caption\na.jpg," + "x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, content, message):
    path = tmp_path / "captions"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        [list(source.rows) for source in open_captions([path])]


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none.csv", "no captions file at"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a pipe or a device"),
        (Path("/dev/zero"), "is a pipe or a device"),
        (Path("a\0b"), "cannot read"),
        (tmp_path / ("x" * 300), "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            open_captions([path])


IMAGE = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}
LONE = "\ud800"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([IMAGE, 7], "images[1] is not an object"),
        ([IMAGE, {"sentences": []}], "images[1].filename: field required"),
        ([IMAGE, {**IMAGE, "filename": None}], "images[1].filename: input should be a valid string"),
        ([IMAGE, {**IMAGE, "filename": LONE}], "images[1].filename: input should be a valid string"),
        ([IMAGE, {**IMAGE, "split": 3}], "images[1].split: input should be a valid string"),
        ([IMAGE, {**IMAGE, "sentences": {}}], "images[1].sentences: input should be a valid list"),
        ([IMAGE, {**IMAGE, "imgid": float("nan")}], "images[1].imgid: input should be a finite number"),
        ([IMAGE, {**IMAGE, "cocoid": [1]}], "images[1].cocoid: input should be a valid integer"),
        ([IMAGE, {**IMAGE, "cocoid": 10**30}], "images[1].cocoid: input should be less than"),
        ([IMAGE, {**IMAGE, "filepath": 1}], "images[1].filepath: input should be a valid string"),
        (
            [IMAGE, {**IMAGE, "sentences": [{"raw": 5}]}],
            "sentences of 'a.jpg'[0].raw: input should be a valid",
        ),
        ([IMAGE, {**IMAGE, "sentences": [{"raw": LONE}]}], "sentences of 'a.jpg'[0].raw: input should be a"),
        ([IMAGE, {**IMAGE, "sentences": [{}]}], "sentences of 'a.jpg'[0].raw: field required"),
        ([IMAGE, {**IMAGE, "sentences": [{"raw": None}]}], "'a.jpg' has no caption"),
    ],
)
def test_a_wrong_entry_of_karpathys_json_is_left_out_by_name(tmp_path, capsys, content, problem):
    (tmp_path / "dataset.json").write_text(json.dumps({"images": content}))
    table = read_captions(tmp_path / "dataset.json", tmp_path, 1, ())
    assert table["caption"].tolist() == ["a dog"]
    assert problem in capsys.readouterr().out
    with pytest.raises(UserError, match=re.escape(problem)):
        read_captions(tmp_path / "dataset.json", tmp_path, 0, ())


@pytest.mark.parametrize(
    ("images", "annotations", "problem"),
    [
        ([], [7], "annotations[1] is not an object"),
        ([], [{"image_id": 1}], "annotations[1].caption: field required"),
        ([], [{"image_id": 1, "caption": 3}], "annotations[1].caption: input should be a valid string"),
        ([], [{"image_id": 1, "caption": LONE}], "annotations[1].caption: input should be a valid string"),
        ([], [{"image_id": 1, "caption": None}], "'a.jpg' has no caption"),
        ([], [{"image_id": [], "caption": "x"}], "annotations[1].image_id: input should be a valid integer"),
        ([], [{"image_id": 2, "caption": "x"}], "an annotation of image 2, which the file does not list"),
        ([1], [], "images[1] is not an object"),
        ([{"id": {}, "file_name": "b.jpg"}], [], "images[1].id: input should be a valid integer"),
        ([{"id": 2, "file_name": None}], [], "images[1].file_name: input should be a valid string"),
        ([{"id": 1, "file_name": "b.jpg"}], [], "image 1 is both 'a.jpg' and 'b.jpg'"),
    ],
)
def test_a_wrong_entry_of_cocos_json_is_left_out_by_name(tmp_path, capsys, images, annotations, problem):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, *images],
        "annotations": [{"image_id": 1, "caption": "a dog"}, *annotations],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    table = read_captions(tmp_path / "captions.json", tmp_path, 1, ())
    assert table["caption"].tolist() == ["a dog"]
    assert problem in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("7", "line 2 is not an object"),
        ("[" * 100_000, "line 2 is not valid JSON (it is nested too deeply)"),
        ('{"file_name": "a.jpg", "text": ' + "9" * 5000 + "}", "line 2 is not valid JSON ("),
        (
            '{"file_name": "a.jpg", "text": "x", "text": "y"}',
            "line 2 is not valid JSON (the key 'text' is rep",
        ),
        ('{"file_name": "a.jpg", "text": NaN}', "line 2.text: input should be a valid string"),
        (
            '{"file_name": "a.jpg", "text": ["x", "\\udfff"], "split": "val"}',
            "line 2.text: input should be a valid string",
        ),
        ('{"file_name": "\\ud800", "text": "x"}', "line 2.file_name: input should be a valid string"),
        (
            '{"file_name": "a.jpg", "text": "x", "split": ["val"]}',
            "line 2.split: input should be a valid str",
        ),
        (
            '{"file_name": "a\\u0000.jpg", "text": "x", "split": "val"}',
            "the name 'a\\x00.jpg' has control characters",
        ),
        (
            '{"file_name": "a\\u001b[2J.jpg", "text": "x", "split": "val"}',
            "the name 'a\\x1b[2J.jpg' has control characters",
        ),
        (
            '{"file_name": "a.jpg", "text": "' + "x" * 100_000 + '", "split": "val"}',
            "a caption of more than 10,000 characters",
        ),
    ],
)
def test_a_wrong_line_of_json_lines_is_left_out_by_name(tmp_path, capsys, line, problem):
    first = '{"file_name": "a.jpg", "text": "a dog", "split": "val"}'
    (tmp_path / "metadata.jsonl").write_text(f"{first}\n{line}\n")
    table = read_captions(tmp_path / "metadata.jsonl", tmp_path, 1, ())
    assert table["caption"].tolist() == ["a dog"]
    printed = capsys.readouterr().out
    assert problem in printed
    assert len(printed) < 1000


@pytest.mark.parametrize("cell", ["[" * 100_000, '["\\ud800"]', "[" + "9" * 5_000 + "]", "[NaN]"])
def test_a_cell_of_broken_json_is_one_caption(tmp_path, cell):
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("raw", "filename"), (cell, "a.jpg")])
    [row] = next(iter(open_captions([tmp_path / "captions.csv"]))).rows
    assert row.caption == cell


def test_a_line_of_ten_million_characters_is_a_row_that_is_left_out(tmp_path, capsys):
    for line in ("b.jpg#0\t" + "x" * 10**7, "x" * 10**7):
        (tmp_path / "captions.token").write_text(f"a.jpg#0\ta dog\n{line}\n")
        assert len(read_captions(tmp_path / "captions.token", tmp_path, 1, ())) == 1
        assert "left out: 1 of 2 rows" in capsys.readouterr().out
