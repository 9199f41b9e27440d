"""A captions file -> one table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.captions import check_images, read_captions, references, split_of
from utils import UserError


def write(tmp_path, text: str, encoding="utf-8"):
    path = tmp_path / "captions.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_csv_is_read_with_or_without_byte_order_mark_and_carriage_returns(tmp_path, encoding, newline):
    lines = ["image,caption,split", 'a.jpg,"A dog, ""Rex"", runs .",train', "b.jpg,Ein Hund läuft,test", ""]
    table = read_captions(write(tmp_path, newline.join(lines), encoding))
    assert table.to_dict("records") == [
        {"image": "a.jpg", "caption": 'A dog, "Rex", runs .', "split": "train"},
        {"image": "b.jpg", "caption": "Ein Hund läuft", "split": "test"},
    ]


def test_rows_set_aside_by_an_empty_split_are_left_out(tmp_path):
    table = read_captions(write(tmp_path, "image,caption,split\na.jpg,x,train\nb.jpg,y,\n"))
    assert table["image"].tolist() == ["a.jpg"]


def test_a_caption_that_looks_like_no_value_is_a_caption(tmp_path):
    table = read_captions(write(tmp_path, "image,caption,split\nNA.jpg,null,train\n"))
    assert table["caption"].tolist() == ["null"]


def test_a_file_without_splits_gets_them_from_the_names(tmp_path):
    rows = "\n".join(f"{i}.jpg,a caption" for i in range(1000))
    table = read_captions(write(tmp_path, f"image,caption\n{rows}\n"))
    counts = table["split"].value_counts()
    assert 740 < counts["train"] < 860
    assert 60 < counts["val"] < 140
    more = read_captions(write(tmp_path, f"image,caption\nnew.jpg,x\n{rows}\n"))
    assert more.set_index("image")["split"].drop("new.jpg").equals(table.set_index("image")["split"])


@given(st.text(min_size=1))
def test_every_name_has_a_split(name):
    assert split_of(name) in ("train", "val", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,text\na,b\n", "no column 'caption'"),
        ("image,caption,split\na,b,dev\n", "split 'dev'"),
        ("image,caption\n", "no rows"),
        ("", "not a CSV file"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_captions(write(tmp_path, text))


def test_missing_pictures_are_counted_and_the_first_is_named(dataset):
    table = read_captions(dataset / "captions.csv")
    check_images(table, dataset / "images")
    (dataset / "images" / "03.png").unlink()
    with pytest.raises(UserError, match=r"1 of 24 pictures .* '03\.png'"):
        check_images(table, dataset / "images")


def test_references_are_those_of_the_split_in_order(dataset):
    truth = references(read_captions(dataset / "captions.csv"), "val")
    assert list(truth) == ["16.png", "17.png", "18.png", "19.png"]
    assert truth["17.png"] == ["A green half on the left.", "On the left, there is green!"]
