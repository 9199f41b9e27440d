"""Files are written whole or not at all; locks, disk space, and what is never opened."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from files import (
    locked,
    remove_leftovers,
    replacing,
    require_regular,
    require_space,
    write_text,
)
from models.checkpoint import save_checkpoint
from utils import UserError

ROOT = Path(__file__).parents[1]


def interrupted_write(path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_symbolic_link_is_replaced_and_its_target_is_not_touched(tmp_path):
    (tmp_path / "target").write_text("the user's")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "ours")
    assert (tmp_path / "target").read_text() == "the user's"
    assert (tmp_path / "link").read_text() == "ours"
    assert not (tmp_path / "link").is_symlink()


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_one_line_and_the_last_version_stays(tmp_path, monkeypatch, error):
    path = tmp_path / "best.pth"
    save_checkpoint(path, {"format": 1})

    def fail(content, file):
        file.write_bytes(b"the first bytes")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"best\.pth: No space left on device for 4\.0 MB .*make room"):
        save_checkpoint(path, {"model": {"weight": torch.zeros(1000, 1000)}})
    assert torch.load(path) == {"format": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["best.pth"]


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), replacing(tmp_path / "file"):
        raise RuntimeError("a bug")


def test_space_that_is_not_there_is_noticed_before_it_is_used(tmp_path):
    require_space(tmp_path / "new" / "folder", 1, "a checkpoint")
    with pytest.raises(UserError, match=r"not enough space for a checkpoint: 1000000\.0 TB needed"):
        require_space(tmp_path / "new", 10**18, "a checkpoint")


def test_a_lock_is_held_by_one_process_and_released_when_it_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from files import locked\n"
        "with locked(Path(sys.argv[1]), 'busy'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lock"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use"), locked(tmp_path / "lock", "in use"):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "lock", "in use"):
        pass


def test_what_is_not_a_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe or a device"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=f"is {kind}, not a file"):
            require_regular(path)
    require_regular(tmp_path / "missing")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (".77-0.tmp", ".checkpoints.pth.77.tmp", "mine.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tmp"]
