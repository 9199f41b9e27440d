"""Results never replace a file that is not an earlier result."""

import pytest

from outputs import OutputFolder
from utils import UserError


def test_an_earlier_result_is_replaced(tmp_path):
    OutputFolder(tmp_path / "new").write_text("captions.json", "one")
    OutputFolder(tmp_path / "new").write_text("captions.json", "two")
    assert (tmp_path / "new" / "captions.json").read_text() == "two"


def test_a_file_of_the_user_s_is_not_replaced(tmp_path):
    (tmp_path / "a_captioned.jpg").write_text("the user's")
    outputs = OutputFolder(tmp_path)
    with pytest.raises(UserError, match=r"a_captioned\.jpg exists, and this program did not write it"):
        outputs.check(["b_captioned.jpg", "a_captioned.jpg"])
    with pytest.raises(UserError, match="did not write it"):
        outputs.write_text("a_captioned.jpg", "ours")
    outputs.remove("a_captioned.jpg")
    assert (tmp_path / "a_captioned.jpg").read_text() == "the user's"


def test_a_result_that_the_user_has_edited_is_not_replaced(tmp_path):
    outputs = OutputFolder(tmp_path)
    outputs.write_text("vocab.json", "ours")
    (tmp_path / "vocab.json").write_text("edited")
    with pytest.raises(UserError, match="changed since"):
        outputs.check(["vocab.json"])


def test_nothing_is_written_through_a_symbolic_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "page_files").symlink_to(tmp_path / "elsewhere")
    outputs = OutputFolder(tmp_path / "outputs")
    outputs.write_text("page.html", "ours")
    (tmp_path / "outputs" / "page.html").rename(tmp_path / "moved.html")
    (tmp_path / "outputs" / "page.html").symlink_to(tmp_path / "moved.html")
    for name in ("page.html", "page_files/1.jpg"):
        with pytest.raises(UserError, match="choose another --output"):
            outputs.write_text(name, "ours, again")
    assert (tmp_path / "moved.html").read_text() == "ours"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_own_files_are_known_after_the_program_was_killed(tmp_path):
    outputs = OutputFolder(tmp_path)
    outputs.write_text("a.jpg", "a")  # the list is written at once, not when all is done
    (tmp_path / "b.jpg").write_text("the user's")
    assert [name for name in ("a.jpg", "b.jpg") if OutputFolder(tmp_path).is_own(name)] == ["a.jpg"]


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        OutputFolder(tmp_path / "file").check([])


def test_a_name_that_is_no_valid_utf_8_is_listed(tmp_path):
    OutputFolder(tmp_path).write_text("\udce4.txt", "ours")
    assert OutputFolder(tmp_path).is_own("\udce4.txt")


def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        OutputFolder(tmp_path).write_text("x" * 300, "ours")
    assert not list(tmp_path.iterdir())
