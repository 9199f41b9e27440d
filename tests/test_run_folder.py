"""A run owns its folder: one training at a time, and nothing in it is lost."""

import subprocess
import sys
import time

import pytest

from tests.helpers import write_dataset
from tests.run_helpers import stopped_run
from tests.script_helpers import run, write_config
from training.folder import owned, require_unused, resume_command, run_to_resume, set_aside
from utils import UserError

# Holds the lock of a file until a line comes from the standard input.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
input()
"""


def touch(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"the old {name}")


@pytest.mark.parametrize("arguments", [["--overwrite"], ["--resume"]])
def test_a_second_training_in_the_folder_is_refused(dataset, tmp_path, arguments):
    pytest.importorskip("fcntl")
    folder, config = stopped_run(dataset).folder, write_config(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        text = run(tmp_path, "train", "--config", config, *arguments, status=2)
        assert "runs/tiny is in use by another training" in text
        assert {path: path.read_bytes() for path in folder.iterdir()} == files
    finally:
        holder.communicate(b"\n")


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    write_dataset(tmp_path / "data")
    config = write_config(tmp_path)
    run(tmp_path, "train", "--config", config, "data.captions=nowhere.csv", status=2)
    run(tmp_path, "train", "--config", config, "encoder.layer=nowhere", status=2)
    run(tmp_path, "train", "--resume", "runs/tiny", status=2)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_was_there_stays(tmp_path):
    touch(tmp_path / "mine", "notes.txt")
    with owned(tmp_path / "mine"):
        assert (tmp_path / "mine" / "lock").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_lock_stays_in_the_folder_of_a_run(tmp_path):
    """If it were removed, a training that waits for nothing could lock another file of that name."""
    with owned(tmp_path / "run"):
        touch(tmp_path / "run", "loss_log.txt")
    assert (tmp_path / "run" / "lock").exists()


def test_temporary_files_of_killed_trainings_are_removed(tmp_path):
    touch(tmp_path / "run", "loss_log.txt", ".4711-0.tmp")
    with owned(tmp_path / "run"):
        assert not (tmp_path / "run" / ".4711-0.tmp").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "best.pth", "vocab.json", "samples.png"])
def test_files_that_are_not_of_a_run_are_never_replaced(tmp_path, name, overwrite):
    touch(tmp_path, name)
    with pytest.raises(UserError, match=f"contains {name}, but is not the folder of a run"):
        require_unused(tmp_path, overwrite)


def test_a_run_is_started_again_only_with_overwrite(tmp_path):
    touch(tmp_path, "loss_log.txt")
    require_unused(tmp_path, overwrite=False)  # it was stopped before its first checkpoint
    touch(tmp_path, "best.pth")
    with pytest.raises(UserError, match="continue it with --resume, start again with --overwrite"):
        require_unused(tmp_path, overwrite=False)
    require_unused(tmp_path, overwrite=True)


def test_starting_again_sets_the_old_run_aside(tmp_path, capsys):
    names = ("checkpoints.pth", "best.pth", "loss_log.txt", "config.yaml", "events.out.tfevents.7")
    for number in (1, 2):
        touch(tmp_path, *names, "notes.txt")
        touch(tmp_path / "eval-test", "scores.json")
        set_aside(tmp_path)
        aside = tmp_path / f"before-{number}"
        assert f"the earlier run in {tmp_path} is now in {aside}" in capsys.readouterr().out
        assert {path.name for path in aside.iterdir()} == {*names, "eval-test"}
    assert {path.name for path in tmp_path.iterdir()} == {"before-1", "before-2", "notes.txt"}
    set_aside(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_run_that_was_started_again_and_killed_does_not_resume_the_old_one(dataset, tmp_path):
    folder = stopped_run(dataset).folder
    old = (folder / "checkpoints.pth").read_bytes()
    set_aside(folder)  # and killed before the first checkpoint
    text = run(tmp_path, "train", "--resume", folder, status=2)
    assert "has no checkpoints.pth" in text
    assert "start it again without --resume" in text
    assert (folder / "before-1" / "checkpoints.pth").read_bytes() == old


def test_overwrite_with_a_wrong_setting_leaves_the_old_run_in_its_place(dataset, tmp_path):
    folder = stopped_run(dataset).folder
    files = {path.name for path in folder.iterdir()}
    wrong = ("--overwrite", "encoder.layer=nowhere")
    run(tmp_path, "train", "--config", write_config(tmp_path), *wrong, status=2)
    assert {path.name for path in folder.iterdir()} - {"lock"} == files - {"lock"}


def test_a_run_is_named_by_its_folder_or_its_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "my run"
    touch(folder, "checkpoints.pth")
    assert run_to_resume(folder) == folder
    assert run_to_resume(folder / "checkpoints.pth") == folder
    monkeypatch.chdir(folder)
    for here in (".", "../my run/.", "checkpoints.pth", "../my run/../my run"):
        assert run_to_resume(type(folder)(here)).resolve() == folder.resolve()
        assert run_to_resume(type(folder)(here)).name == "my run"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "missing does not exist; pass the folder of a run"),
        ("missing/checkpoints.pth", "missing/checkpoints.pth does not exist; pass the folder of a run"),
        ("run/best.pth", "run/best.pth is a file, not the folder of a run"),
        ("run", "run has no checkpoints.pth"),
    ],
)
def test_what_cannot_be_resumed_is_said_without_options_that_train_py_does_not_have(
    tmp_path, monkeypatch, path, message
):
    touch(tmp_path / "run", "best.pth")
    monkeypatch.chdir(tmp_path)
    text = run(tmp_path, "train", "--resume", path, status=2)
    assert message in text
    assert "--checkpoint" not in text


def test_the_command_that_continues_a_run_can_be_pasted_into_a_shell(tmp_path):
    assert resume_command(tmp_path / "my run", "train.lr=1") == (
        f"python train.py --resume '{tmp_path}/my run' train.lr=1"
    )


def test_nothing_is_written_any_more_when_a_training_has_ended_with_an_error(dataset, monkeypatch):
    begun, written = [], []

    def slowly_saved(path, checkpoint):
        begun.append(path)
        time.sleep(0.3)
        written.append(path)

    def failing(run):
        raise UserError("an image is broken")

    monkeypatch.setattr("training.checkpoints.save_checkpoint", slowly_saved)
    monkeypatch.setattr("training.run.Run.train_epoch", failing)
    config = write_config(dataset.parent)
    run(dataset.parent, "train", "--config", config, status=2)
    assert len(begun) == len(written) == 1
