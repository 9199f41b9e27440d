"""The files that inference writes, and the image files that it is given."""

from pathlib import Path

import pytest

from data.image_files import find_images
from outputs import OutputFolder
from reports.results import Results
from tests.page_helpers import draw_image
from utils import UserError


def stems(folder: Path, *paths: str) -> list[str]:
    return list(Results(folder, [Path(path) for path in paths], attention=True).stems.values())


def test_each_image_gets_files_of_its_own(tmp_path):
    assert stems(tmp_path, "a.jpg", "b/a.png", "A.png", "a-2.jpg", "c/a.jpg", "d/a-2.gif") == [
        "a", "a-2", "A-3", "a-2-2", "a-4", "a-2-3"
    ]  # fmt: skip
    assert stems(tmp_path, "e\u0301.jpg", "\u00e9.jpg") == ["e\u0301", "\u00e9-2"]  # one name on macOS


def test_a_long_name_is_shortened_to_what_file_systems_allow(tmp_path):
    long = ["ä" * 124 + ".png", "ä" * 124 + ".jpg", "x" + "ä" * 124 + ".jpg"]
    found = stems(tmp_path, *long)
    assert [len(f"{stem}_attention.jpg".encode()) for stem in found] == [254, 254, 255]
    assert len(set(found)) == 3


def test_control_characters_do_not_get_into_names_of_files(tmp_path):
    assert stems(tmp_path, "a\nb\x1b[31m\u2028.jpg", "\udce4.jpg") == ["a_b_[31m_", "_"]


def test_thousands_of_images_of_one_name_are_told_apart(tmp_path):
    found = stems(tmp_path, *(f"{i}/image.png" for i in range(3000)))
    assert found[-1] == "image-3000"
    assert len(set(found)) == 3000


def test_images_are_shown_by_their_paths_in_their_common_folder(tmp_path, monkeypatch):
    paths = [tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg"]
    assert list(Results(tmp_path / "out", paths, False).names.values()) == ["x/a.jpg", "y/a.jpg"]

    def fail(_):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", fail)
    assert list(Results(tmp_path / "out", paths, False).names.values()) == [str(path) for path in paths]


@pytest.mark.parametrize("link", [False, True])
def test_what_stands_in_the_place_of_the_thumbnails_is_an_error_before_the_work(tmp_path, link):
    (tmp_path / "folder").mkdir()
    place = tmp_path / "out" / "captions_result_files"
    place.parent.mkdir()
    place.symlink_to(tmp_path / "folder") if link else place.write_text("the user's")
    with pytest.raises(UserError, match="captions_result_files is not a folder"):
        Results(tmp_path / "out", [Path("a.jpg")], False)


def test_files_folders_and_globs_select_images_once_and_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.txt", "[1].gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw_image(4, 4).save(tmp_path / name, "PNG")

    def found(*arguments: str) -> list[str]:
        paths = find_images([str(tmp_path / argument) for argument in arguments])
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found(".") == ["[1].gif", "a.PNG", "b.jpg", "sub/c.webp"]
    assert found("b.jpg", ".") == ["b.jpg", "[1].gif", "a.PNG", "sub/c.webp"]
    assert found("*.*", "[1].gif", "**/c.*") == ["[1].gif", "a.PNG", "b.jpg", "notes.txt", "sub/c.webp"]


def test_a_folder_of_photographs_is_searched_but_for_hidden_files_and_what_cannot_be_read(tmp_path, capsys):
    names = (
        "2024/may/a.JPG",
        "b.jfif",
        "c.avif",
        "._a.jpg",
        ".thumbnails/a.jpg",
        "d.HEIC",
        "e/f.heic",
        "g.NEF",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.JPG", "b.jfif", "c.avif"]
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"skipped: in {tmp_path}, 2 .heic, 1 .nef cannot be read; export them as JPEG"
    with pytest.raises(UserError, match=r"no images in .*1 \.heic cannot be read; export them as JPEG"):
        find_images([str(tmp_path / "e")])
    assert len(find_images([str(tmp_path / ".thumbnails")])) == 1  # asked for by its name


def test_earlier_results_are_left_out_unless_they_are_named(tmp_path):
    outputs = OutputFolder(tmp_path)
    for name in ("a_captioned.jpg", "page_files/00001.jpg"):
        outputs.write_text(name, "ours")
    draw_image(4, 4).save(tmp_path / "a.jpg")
    assert find_images([str(tmp_path)]) == find_images([str(tmp_path / "*.jpg")]) == [tmp_path / "a.jpg"]
    assert find_images([str(tmp_path / "a_captioned.jpg")]) == [tmp_path / "a_captioned.jpg"]
    with pytest.raises(UserError, match="no images in the folder"):
        find_images([str(tmp_path / "page_files")])
    (tmp_path / "a_captioned.jpg").write_text("edited by the user")
    assert len(find_images([str(tmp_path)])) == 2
