"""Captions files -> one table: what is read, what is left out, what is refused."""

import contextlib
import copy
import csv
import io
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.captions import read_captions, references
from tests.helpers import write_coco, write_csv, write_karpathy, write_token
from utils import UserError


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def read(folder, text: str, encoding="utf-8", **options):
    """The table of a captions file whose images are not looked for."""
    path = folder / "captions.csv"
    path.write_bytes(text.encode(encoding))
    return read_captions(path, folder, splits_with_images=(), **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_csv_is_read_with_or_without_byte_order_mark_and_carriage_returns(tmp_path, encoding, newline):
    lines = ["image,caption,split", 'a.jpg,"A dog, ""Rex"", runs .",train', "b.jpg,Ein Hund läuft,test", ""]
    table = read(tmp_path, newline.join(lines), encoding)
    assert table.to_dict("records") == [
        {"image": "a.jpg", "caption": 'A dog, "Rex", runs .', "split": "train"},
        {"image": "b.jpg", "caption": "Ein Hund läuft", "split": "test"},
    ]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_any_caption_survives_a_csv(tmp_path_factory, captions):
    captions = [f"x {caption}" for caption in captions]  # none is empty
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["image", "caption"], *(["a.jpg", caption] for caption in captions)])
    table = read(tmp_path_factory.getbasetemp(), file.getvalue())
    assert table["caption"].tolist() == [caption.strip() for caption in captions]


def test_columns_may_come_in_any_order_among_others(tmp_path):
    table = read(tmp_path, "number, Split , Caption, Image\n1, val , a dog, a.jpg\n")
    assert table.to_dict("records") == [{"image": "a.jpg", "caption": "a dog", "split": "val"}]


def test_rows_set_aside_by_an_empty_split_are_left_out_silently(tmp_path, capsys):
    table = read(tmp_path, "image,caption,split\na.jpg,x,train\nb.jpg,y,\n", max_bad_rows=0)
    assert table["image"].tolist() == ["a.jpg"]
    assert "left out" not in capsys.readouterr().out


def test_a_caption_that_looks_like_no_value_is_a_caption(tmp_path):
    assert read(tmp_path, "image,caption,split\nNA.jpg,null,train\n")["caption"].tolist() == ["null"]


def test_a_file_without_splits_gets_them_from_the_names(tmp_path):
    rows = "\n".join(f"{i}.jpg,a caption" for i in range(1000))
    table = read(tmp_path, f"image,caption\n{rows}\n")
    counts = table["split"].value_counts()
    assert 740 < counts["train"] < 860
    assert 60 < counts["val"] < 140
    more = read(tmp_path, f"image,caption\nnew.jpg,x\n{rows}\n")
    assert more.set_index("image")["split"].drop("new.jpg").equals(table.set_index("image")["split"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption,split\na,b,dev\n", "split 'dev'"),
        ("image,caption\n", "no rows"),
        ("image,caption,split\na,b,train\nc,d,train\na,e,test\n", "'a' is in train and test"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_rows_that_cannot_be_used_are_counted_and_the_first_are_named(tmp_path, images, capsys):
    rows = [f"{i}.jpg,a dog" for i in range(95)]
    for i in range(95):
        (images / f"{i}.jpg").touch()
    rows[10:10] = ["gone.jpg,a cat", "1.jpg, ", ",a bird", "2.jpg,red, blue", "lost.jpg,a fox"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    table = read_captions(tmp_path / "captions.csv", images)
    assert len(table) == 95
    said = capsys.readouterr().out
    assert "left out: 5 of 100 rows" in said
    assert "no image 'gone.jpg'; '1.jpg' has no caption; a row without an image; …" in said
    with pytest.raises(UserError, match=r"5 of 100 rows .* That is 5\.0%.*data\.max_bad_rows"):
        read_captions(tmp_path / "captions.csv", images, max_bad_rows=0.04)
    assert len(read_captions(tmp_path / "captions.csv", images, splits_with_images=())) == 97


def test_lines_that_do_not_have_the_form_are_named_by_their_number(tmp_path, images, capsys):
    (images / "a.jpg").touch()
    (tmp_path / "captions.txt").write_text('image,caption\na.jpg,a dog\na.jpg,"a\ncat"\na.jpg,red, blue\n')
    table = read_captions(tmp_path / "captions.txt", images, max_bad_rows=1)
    assert table["caption"].tolist() == ["a dog", "a\ncat"]
    assert "line 5 has 3 fields instead of 2" in capsys.readouterr().out
    (tmp_path / "token.txt").write_text("a.jpg#0\ta dog\na.jpg a cat\n")
    read_captions(tmp_path / "token.txt", images, max_bad_rows=1)
    assert "line 2 is not image#number<TAB>caption" in capsys.readouterr().out
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\na.jpg| 0| a dog\na.jpg\n")
    read_captions(tmp_path / "results.csv", images, max_bad_rows=1)
    assert "line 3 is not image| number| caption" in capsys.readouterr().out


def test_only_the_splits_with_images_the_wanted_splits_have_to_be_there(tmp_path, images):
    path = tmp_path / "captions.csv"
    path.write_text("image,caption,split\na.jpg,x,train\nb.jpg,y,val\nc.jpg,z,test\n")
    (images / "c.jpg").touch()
    assert len(read_captions(path, images, splits_with_images=["test"])) == 3
    with pytest.raises(UserError, match=r"no image 'b\.jpg'. That is 100\.0%"):
        read_captions(path, images, splits_with_images=["val"])
    with pytest.raises(UserError, match="no image folder"):
        read_captions(path, tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "y/" * 5000 + "a.jpg", "a.jpg/b.jpg", "dogs"])
def test_a_name_that_no_file_has_is_left_out_by_name(tmp_path, images, capsys, name):
    (images / "a.jpg").touch()
    (images / "dogs").mkdir()
    for write in (write_csv, lambda *args: write_karpathy(*args, filepath="z" * 5000)):
        paths = write(tmp_path, [("a.jpg", "a dog", "train"), (name, "a cat", "train")])
        assert read_captions(paths, images, max_bad_rows=1)["image"].tolist() == ["a.jpg"]
        printed = capsys.readouterr().out
        assert f"no image '{name[:50]}" in printed
        assert len(printed) < 1000


def test_an_image_folder_with_a_name_that_no_folder_has_is_named(tmp_path):
    paths = write_csv(tmp_path, [("a.jpg", "a dog", "train")])
    with pytest.raises(UserError, match="no image folder at"):
        read_captions(paths, tmp_path / ("x" * 300))


KEYS = "images annotations id image_id file_name filename split sentences raw cocoid filepath caption".split()
OUTSIDE = ["/etc/a.jpg", "../a.jpg", "b/../../a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\a.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("write", [write_csv, write_token, write_karpathy, write_coco])
def test_an_image_outside_of_the_folder_is_refused_in_every_format(tmp_path, images, name, write):
    paths = write(tmp_path, [("a.jpg", "a dog", "train"), (name, "a cat", "val")])
    with pytest.raises(UserError, match=r"may lie outside of data\.images"):
        read_captions(paths, images, max_bad_rows=1)


def test_the_folder_of_an_image_does_not_lead_outside_either(tmp_path, images):
    paths = write_karpathy(tmp_path, [("a.jpg", "a dog", "train")], filepath="..")
    with pytest.raises(UserError, match=r"may lie outside of data\.images"):
        read_captions(paths, images)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
VALID = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "filename": "a.jpg", "split": "val", "sentences": [{"raw": "x"}]}
    ],
    "annotations": [{"image_id": 1, "caption": "a dog"}],
}


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(["images", "annotations"]), st.sampled_from(KEYS), JSON, st.booleans(), st.booleans())
def test_any_json_gives_a_table_or_one_line(tmp_path_factory, part, key, value, lines, whole):
    """A valid file in which one value is any other, as one object or as JSON Lines."""
    content = copy.deepcopy(VALID)
    content[part][0][key] = value
    if whole:
        content[part] = value
    if lines:
        content = VALID["annotations"][0] | {"image": "a.jpg", key: value}
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    assert_table_or_one_line(path)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["image,caption,split\na.jpg,x,val\n", "a.jpg#0\ta dog\n", "", "{", "[", '{"image": "']),
    st.binary(),
)
def test_any_bytes_give_a_table_or_one_line(tmp_path_factory, start, rest):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(start.encode() + rest)
    assert_table_or_one_line(path)


def assert_table_or_one_line(path):
    """Nothing but a UserError is raised, and a table has only valid text."""
    with contextlib.suppress(UserError):
        table = read_captions(path, path.parent, 1, ())
        assert set(table["split"]) <= {"train", "val", "test"}
        assert all(text.encode() for text in [*table["image"], *table["caption"]])


def test_several_files_are_one_table(tmp_path, images):
    for name in "ab":
        (images / f"{name}.jpg").touch()
        (tmp_path / f"{name}.csv").write_text(f"image,caption,split\n{name}.jpg,a dog,train\n")
    table = read_captions([tmp_path / "b.csv", tmp_path / "a.csv"], images)
    assert table["image"].tolist() == ["b.jpg", "a.jpg"]


def test_ids_that_two_images_share_are_not_kept(tmp_path):
    paths = []
    for name in "ab":
        (tmp_path / name).mkdir()
        paths += write_karpathy(tmp_path / name, [(f"{name}.jpg", "a dog", "train")])
    assert "image_id" in read_captions(paths[0], tmp_path, splits_with_images=())
    assert "image_id" not in read_captions(paths, tmp_path, splits_with_images=())


def test_an_image_may_lie_in_a_folder_of_its_own(tmp_path, images):
    (images / "dogs").mkdir()
    (images / "dogs" / "größe 1.jpg").touch()
    (tmp_path / "captions.csv").write_text(f"image,caption\ndogs{os.sep}größe 1.jpg,a dog\n", "utf-8")
    assert len(read_captions(tmp_path / "captions.csv", images)) == 1


def test_references_are_those_of_the_split_in_order(dataset):
    truth = references(read_captions(dataset / "captions.csv", dataset / "images"), "val")
    assert list(truth) == ["16.png", "17.png", "18.png", "19.png"]
    assert truth["17.png"] == ["A green half on the left.", "On the left, there is green!"]
