"""Splits of images whose captions file has none: by lists, or by a hash of the name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_reading import make_config
from data.captions import read_captions, read_table
from data.splits import half_of, is_flickr8k, split_of
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
