"""Splits of images whose captions file has none: by lists, or by a hash of the name."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_reading import make_config
from data.captions import read_captions, read_table
from data.splits import half_of, is_flickr8k, split_of, splits_by_name
from tests.helpers import write_csv, write_karpathy, write_lists, write_token
from utils import UserError

ROWS = [("a.jpg", "a dog", "test"), ("b.jpg", "a cat", "train"), ("c.jpg", "a bird", "val")]
CSV = "image,caption\na.jpg,a dog\nb.jpg,a cat\nc.jpg,a bird\nin_no_list.jpg,set aside\n"


@given(st.text())
def test_a_split_depends_on_the_name_alone_and_halving_keeps_val_and_test(name):
    assert split_of(name) == split_of(name)
    assert split_of(name) in ("train", half_of(name))


def splits(paths, **options) -> dict[str, str]:
    """Image -> split, without looking for the images."""
    table = read_captions(paths, paths[0].parent, 0, (), **options)
    return dict(zip(table["image"], table["split"], strict=True))


BY_LISTS = {image: split for image, _, split in ROWS}
BY_HASH = {image: split_of(image) for image in (*BY_LISTS, "in_no_list.jpg")}


@pytest.fixture
def lists(tmp_path):
    """A folder with the lists of ROWS."""
    (tmp_path / "lists").mkdir()
    write_lists(tmp_path / "lists", ROWS)
    with open(tmp_path / "lists" / "Flickr_8k.devImages.txt", "a") as file:
        file.write("padded.jpg \n")  # lists that were edited may have spaces at the end
    return tmp_path / "lists"


def test_lists_in_another_folder_split_a_token_file(tmp_path, lists, capsys):
    [path] = write_token(tmp_path, ROWS)
    for file in tmp_path.glob("Flickr_8k.*"):
        file.unlink()
    assert splits([path]) == BY_HASH
    assert "(split by hash of the names)" in capsys.readouterr().out
    assert splits([path], lists=lists) == BY_LISTS
    assert f"Flickr8k.token.txt (split by the lists in {lists}); 3 images" in capsys.readouterr().out


def test_lists_split_every_format_that_has_no_splits(tmp_path, lists):
    (tmp_path / "captions.txt").write_text(CSV)
    assert splits([tmp_path / "captions.txt"]) == BY_HASH
    assert splits([tmp_path / "captions.txt"], lists=lists) == BY_LISTS
    (lists / "captions.txt").write_text(CSV)
    assert splits([lists / "captions.txt"]) == BY_LISTS


def test_the_lists_of_a_configuration_are_used(tmp_path, lists):
    (tmp_path / "captions.txt").write_text(CSV)
    overrides = [f"data.captions={tmp_path / 'captions.txt'}", f"data.lists={lists}"]
    table = read_table(make_config({}, overrides).data, splits_with_images=())
    assert dict(zip(table["image"], table["split"], strict=True)) == BY_LISTS


def test_spaces_around_the_names_do_not_matter(tmp_path, lists):
    (tmp_path / "captions.txt").write_text("image,caption\npadded.jpg ,a dog\n")
    assert splits([tmp_path / "captions.txt"], lists=lists) == {"padded.jpg": "val"}


def test_lists_of_other_images_are_ignored_beside_a_file_and_refused_as_an_option(tmp_path, lists):
    (lists / "captions.txt").write_text("image,caption\nother.jpg,a dog\n")
    assert splits([lists / "captions.txt"]) == {"other.jpg": split_of("other.jpg")}
    with pytest.raises(UserError, match=r"none of the images of .* is in the lists in .*data\.lists"):
        splits([lists / "captions.txt"], lists=lists)


@pytest.mark.parametrize("write", [write_csv, write_karpathy])
def test_splits_of_the_file_come_before_lists(tmp_path, lists, capsys, write):
    rows = [(image, caption, "train") for image, caption, _ in ROWS]
    assert set(splits(write(tmp_path, rows), lists=lists).values()) == {"train"}
    assert "(it has splits: data.lists is not used)" in capsys.readouterr().out
    assert set(splits(write(lists, rows)).values()) == {"train"}


def test_a_missing_list_is_named(tmp_path, lists):
    (tmp_path / "captions.txt").write_text(CSV)
    (lists / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(UserError, match=r"Flickr_8k\.devImages\.txt is missing in .*lists"):
        splits([tmp_path / "captions.txt"], lists=lists)
    [path] = write_token(tmp_path, ROWS)
    (tmp_path / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(UserError, match=r"Flickr_8k\.testImages\.txt is missing"):
        splits([path])
    with pytest.raises(UserError, match=r"Flickr_8k\.trainImages\.txt is missing in .*nowhere"):
        splits([path], lists=tmp_path / "nowhere")


def test_a_bad_row_does_not_make_a_file_with_splits_one_without(tmp_path, capsys):
    write_lists(tmp_path, ROWS)
    (tmp_path / "captions.csv").write_text("image,caption,split\na.jpg,a dog,val\nb.jpg,red, blue,val\n")
    table = read_captions(tmp_path / "captions.csv", tmp_path, 1, ())
    assert table["split"].tolist() == ["val"]
    assert "(split" not in capsys.readouterr().out


def test_the_message_says_by_hash_only_if_rows_that_are_used_were_split_by_hash(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("image,caption,split\na.jpg,a dog,val\n")
    (tmp_path / "b.csv").write_text("image,caption\nb.jpg,\n")
    read_captions([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path, 1, ())
    assert "(split" not in capsys.readouterr().out


def test_an_image_in_two_lists_and_a_list_in_another_encoding_are_refused(tmp_path, lists):
    (tmp_path / "captions.txt").write_text(CSV)
    with open(lists / "Flickr_8k.testImages.txt", "a") as file:
        file.write("b.jpg\n")
    with pytest.raises(UserError, match=r"have 'b\.jpg' in train and in test"):
        splits([tmp_path / "captions.txt"], lists=lists)
    (lists / "Flickr_8k.devImages.txt").write_bytes("größe.jpg".encode("latin-1"))
    with pytest.raises(UserError, match=r"cannot read the list .*devImages\.txt .*UTF-8"):
        splits([tmp_path / "captions.txt"], lists=lists)


def test_empty_lines_of_lists_name_no_image(tmp_path, lists):
    (lists / "Flickr_8k.testImages.txt").write_text("\n\n")
    (lists / "captions.csv").write_text("image,caption\nother.jpg,a dog\n,a row without an image\n")
    table = read_captions(lists / "captions.csv", lists, 1, ())
    assert table["image"].tolist() == ["other.jpg"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["captions_train2014", "captions_val2014"], [("train",), ("val", "test")]),
        (["val", "TRAIN"], [("val", "test"), ("train",)]),
        (["train", "val", "test"], [("train",), ("val",), ("test",)]),
        (["train2014", "train2017", "val"], [("train",), ("train",), ("val", "test")]),
        (["train", "test"], [("train",), ("test",)]),
        (["train", "val", "more"], [("train",), ("val", "test"), ()]),
        (["captions_trainval2014"], [()]),
        (["captions_trainval2014", "captions_val2014"], [(), ()]),
        (["train_val", "val"], [(), ()]),
        (["training", "values"], [(), ()]),
        (["captions_train2014"], [()]),
    ],
)
def test_splits_are_told_by_whole_words_in_the_names_of_files(names, expected):
    assert splits_by_name([Path(f"{name}.json") for name in names]) == expected


def test_the_images_of_a_test_file_are_the_test_split_and_val_stays_val(tmp_path, capsys):
    for split in ("train", "val", "test"):
        images = [{"id": i, "file_name": f"{split}{i}.jpg"} for i in range(20)]
        annotations = [{"image_id": i, "caption": "a dog"} for i in range(20)]
        content = {"images": images, "annotations": annotations}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    paths = [tmp_path / f"{split}.json" for split in ("train", "val", "test")]
    assert all(image.startswith(split) for image, split in splits(paths).items())
    assert (
        "(split by the names of the files); 60 images (train 20, val 20, test 20)" in capsys.readouterr().out
    )


def flickr8k_names(count: int) -> list[str]:
    return [f"{1000268201 + i}_{i:010x}.jpg" for i in range(count)]


def test_flickr8k_split_by_hash_is_warned_of_and_the_lists_end_that(tmp_path, capsys):
    names = flickr8k_names(8091)
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(["image,caption", *(f"{name},a dog" for name in names)]))
    splits([path])
    warning = capsys.readouterr().out.splitlines()[-1]
    assert warning.startswith("warning: these are Flickr8k's images, but not its standard split")
    assert warning.endswith("data.lists=FOLDER")
    write_lists(tmp_path, [(name, "", ("train", "val", "test")[i % 3]) for i, name in enumerate(names)])
    splits([path])
    assert "warning" not in capsys.readouterr().out


def test_flickr8k_is_known_by_form_and_number_of_the_names():
    assert is_flickr8k(flickr8k_names(8092))
    assert is_flickr8k([*flickr8k_names(8000), "one_more.jpg"])
    for names in (flickr8k_names(1000), flickr8k_names(9000), [f"{i}.jpg" for i in range(8092)]):
        assert not is_flickr8k(names)
