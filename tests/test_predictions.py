"""metrics/predictions.py: captions from files find their images."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.predictions import match_names, read_predictions, select_predictions
from utils import UserError

TABLE = pd.DataFrame({"image": ["a.jpg", "b.jpg", "b.jpg", "sub/c.jpg"], "image_id": [7, 8, 8, 9]})
CAPTIONS = {"a.jpg": "a dog", "b.jpg": "two cats", "sub/c.jpg": "a boat"}


def read(folder: Path, content, table: pd.DataFrame = TABLE) -> dict[str, str]:
    path = folder / "predictions"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_predictions(path, table)


def as_rows(key: str, names: list) -> list[dict]:
    return [{key: name, "caption": caption} for name, caption in zip(names, CAPTIONS.values(), strict=True)]


# ---- Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        CAPTIONS,
        dict(zip(["7", "8", "9"], CAPTIONS.values(), strict=True)),
        as_rows("image_id", [7, 8, 9]),
        as_rows("image_id", ["7", "8", "9"]),
        as_rows("image_id", list(CAPTIONS)),
        as_rows("image", ["/data/a.jpg", "images/b.jpg", "c.jpg"]),
        [
            row | {"log_prob": -1.5, "words": []}
            for row in as_rows("image", ["./a.jpg", "b.jpg", "x/sub/c.jpg"])
        ],
        "image,caption\nimages/a.jpg,a dog\nimages/b.jpg,two cats\nimages/sub/c.jpg,a boat\n",
        "a.jpg#0\ta dog\nb.jpg#0\ttwo cats\nc.jpg#0\ta boat\n",
    ],
    ids=["object", "object of ids", "ids", "ids as text", "names", "paths", "captions.json", "csv", "token"],
)
def test_captions_are_read_in_every_form_and_named_as_in_the_table(tmp_path, content):
    assert read(tmp_path, content) == CAPTIONS


def test_an_image_that_the_table_does_not_have_keeps_its_name(tmp_path):
    assert read(tmp_path, {"a.jpg": "a dog", "x/z.jpg": "a cow"}) == {"a.jpg": "a dog", "x/z.jpg": "a cow"}


def test_a_row_that_a_captions_file_sets_aside_is_no_prediction(tmp_path):
    content = "image,caption,split\na.jpg,a dog,test\nb.jpg,two cats,\n"
    assert read(tmp_path, content) == {"a.jpg": "a dog"}


def test_images_of_a_coco_file_are_found_by_their_ids_where_their_names_differ(tmp_path):
    content = {
        "images": [{"id": image_id, "file_name": f"COCO_{image_id:012}.jpg"} for image_id in (7, 8, 9)],
        "annotations": [
            {"id": n, "image_id": 7 + n, "caption": caption} for n, caption in enumerate(CAPTIONS.values())
        ],
    }
    assert read(tmp_path, content) == CAPTIONS


def test_a_name_goes_before_an_id(tmp_path):
    table = pd.DataFrame({"image": ["7", "8"], "image_id": [8, 7]})
    assert read(tmp_path, [{"image_id": 7, "caption": "a dog"}], table) == {"7": "a dog"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image": "a.jpg", "caption": "x"}] * 2, r"more than one caption for 'a\.jpg'"),
        ([{"image_id": "a.jpg", "caption": "x"}, {"image_id": 7, "caption": "y"}], r"caption for 'a\.jpg'"),
        ({"x/a.jpg": "x", "y/a.jpg": "y"}, r"'x/a\.jpg' and 'y/a\.jpg' may both be the image 'a\.jpg'"),
        (
            [{"image": "a.jpg", "text": "x"}],
            r"{'image': 'a\.jpg', 'text': 'x'} is not the caption",
        ),
        ([{"caption": "x"}], "is not the caption of an image"),
        (["a dog"], "'a dog' is not the caption of an image"),
        ({"a.jpg": ["a dog", "a cat"]}, r"'a\.jpg'.*is not the caption of an image"),
        ({"a.jpg": None}, "is not the caption of an image"),
        ([], "has no captions"),
        ({}, "has no captions"),
        ("{", "is not valid JSON"),
        ("a poem\n", "column"),
        ("image,caption\na.jpg,a dog, a cat\n", "line 2 has 3 fields"),
        ('{"a.jpg": "x", "b.jpg": "y", "a.jpg": "z"}', r"the key 'a\.jpg' is repeated"),
        ({"7": "x", "a.jpg": "y"}, r"caption for 'a\.jpg' \(as '7' and 'a\.jpg'\)"),
        ([{"image": True, "caption": "x"}], "is not the caption of an image"),
        ([{"image": 7.5, "caption": "x"}], "is not the caption of an image"),
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ('[{"image_id": ' + "9" * 5000 + ', "caption": "x"}]', "is not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "predictions") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.json", "a" * 300, "a\0b"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"no predictions at .*{name}"):
        read_predictions(tmp_path / name, TABLE)


def test_what_is_no_file_of_text_is_refused_and_not_waited_for(tmp_path):
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_predictions(tmp_path, TABLE)
    (tmp_path / "latin").write_bytes('{"a.jpg": "un café"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin is not text in UTF-8"):
        read_predictions(tmp_path / "latin", TABLE)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="pipe is a pipe or a device"):
            read_predictions(tmp_path / "pipe", TABLE)


def test_odd_captions_and_names_are_read_as_they_are(tmp_path, capsys):
    texts = ["", "a \ud800 dog\n|||\x1b[31m", "dog " * 100_000, "x"]
    odd = dict(zip(["a.jpg", "b.jpg", "sub/c.jpg", "\ud800"], texts, strict=True))
    captions = read(tmp_path, odd)
    assert captions == odd
    select_predictions(captions, ["a.jpg"], "p.json")
    capsys.readouterr().out.encode()  # can be printed


def test_a_name_of_very_many_parts_is_no_match_and_takes_no_time(tmp_path):
    name = "a/" * 200_000
    assert read(tmp_path, {name: "a dog", "a.jpg": "two cats"}) == {name: "a dog", "a.jpg": "two cats"}


# ---- Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("a.jpg", ["a.jpg"], "a.jpg"),
        ("/data/images/a.jpg", ["a.jpg"], "a.jpg"),
        ("/data/images/a.jpg", ["images/a.jpg", "b.jpg"], "images/a.jpg"),
        ("a.jpg", ["val2014/a.jpg", "val2014/aa.jpg"], "val2014/a.jpg"),
        ("C:\\data\\a.jpg", ["a.jpg"], "a.jpg"),
        ("./a.jpg", ["a.jpg"], "a.jpg"),
        ("aa.jpg", ["a.jpg"], None),
        ("a.png", ["a.jpg"], None),
        ("x/a.jpg", ["y/a.jpg"], None),
        ("", ["a.jpg"], None),
        # An equal name wins, then the one with most parts in common.
        ("a.jpg", ["a.jpg", "x/a.jpg"], "a.jpg"),
        ("/data/x/a.jpg", ["a.jpg", "x/a.jpg"], "x/a.jpg"),
    ],
)
def test_a_name_is_matched_by_whole_parts_of_the_end_of_its_path(name, known, expected):
    assert match_names([name], known, "p.json") == ({name: expected} if expected else {})


def test_an_end_that_two_images_share_is_an_error_that_names_both():
    with pytest.raises(UserError, match=r"^p\.json: the image 'a\.jpg' may be 'x/a\.jpg' or 'y/a\.jpg'"):
        match_names(["a.jpg"], ["x/a.jpg", "y/a.jpg"], "p.json")


def test_two_paths_to_one_image_are_an_error_that_names_both():
    with pytest.raises(
        UserError, match=r"^p\.json: 'x/a\.jpg' and 'y/a\.jpg' may both be the image 'a\.jpg'"
    ):
        match_names(["x/a.jpg", "b.jpg", "y/a.jpg"], ["a.jpg", "b.jpg"], "p.json")


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@given(st.sets(NAMES), st.text("xy/", max_size=4))
def test_known_names_are_found_under_any_folder_each_as_itself(known, folder):
    # No name has a part x or y, so in a folder of these parts only the whole name has all parts in common.
    names = [f"{folder}/{name}" for name in known]
    assert match_names(names, known, "p.json") == dict(zip(names, known, strict=True))


# ---- Missing and extra captions --------------------------------------------------------------------


def test_a_complete_set_is_kept_and_nothing_is_printed(capsys):
    assert select_predictions(CAPTIONS, list(CAPTIONS), "p.json", strict=True) == CAPTIONS
    assert capsys.readouterr().out == ""


def test_missing_and_extra_captions_are_counted_and_named(capsys):
    images = ["b.jpg", "sub/c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg"]
    assert list(select_predictions(CAPTIONS, images, "p.json")) == ["b.jpg", "sub/c.jpg"]
    assert capsys.readouterr().out == (
        "p.json has captions for 2 of the 6 images to score; 4 missing (d.jpg, e.jpg, f.jpg and 1 more); "
        "1 extra, for other images (a.jpg)\n"
    )


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ([*CAPTIONS, "d.jpg"], r"1 missing \(d\.jpg\)"),
        (["a.jpg", "b.jpg"], r"1 extra, for other images"),
    ],
)
def test_strict_refuses_missing_captions_and_extra_ones(images, problem):
    with pytest.raises(UserError, match=rf"^p\.json .*{problem}.*leave out --strict"):
        select_predictions(CAPTIONS, images, "p.json", strict=True)


def test_captions_of_none_of_the_images_are_an_error_that_shows_the_names_of_both():
    with pytest.raises(UserError, match=r"p\.json has no captions .* 2 images .*sub/c\.jpg.*x\.jpg, y\.jpg"):
        select_predictions(CAPTIONS, ["x.jpg", "y.jpg"], "p.json")
