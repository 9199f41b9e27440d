"""A run that was stopped at any moment and resumed ends where the whole one ends."""

import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.helpers import write_dataset
from tests.script_helpers import ENVIRONMENT, command, run, weights, write_config


@pytest.mark.parametrize("features", ["cached features", "images"])
def test_a_killed_run_resumed_ends_bit_for_bit_where_the_whole_one_ends(tmp_path, features):
    write_dataset(tmp_path / "data")
    config = write_config(
        tmp_path,
        encoder={"fine_tune": "none" if features == "cached features" else "layer1"},
        data={"augment": ["crop"], "captions_per_image": 1, "workers": 1},
        train={
            "epochs": 4,
            "checkpoint_every": 1,
            "average": 0.9,
            "schedule": "plateau",
            "plateau_patience": 0,
            "scheduled_sampling": 0.5,
        },
    )
    kill_and_resume(tmp_path, config)


@pytest.mark.parametrize("objective", ["self_critical", "actor_critic"])
def test_a_killed_run_that_learns_from_scores_ends_where_the_whole_one_ends(trained, tmp_path, objective):
    write_dataset(tmp_path / "data")
    config = write_config(
        tmp_path,
        encoder={"fine_tune": "all"},
        train={
            "objective": objective,
            "init_from": str(trained / "runs" / "tiny" / "best.pth"),
            "epochs": 4,
            "checkpoint_every": 1,
        },
        rl={"samples": 2},
    )
    kill_and_resume(tmp_path, config)
    log = pd.read_csv(tmp_path / "runs" / "whole" / "loss_log.txt")
    assert log.loc[log["event"] == "epoch", "epoch"].tolist() == [0, 1, 2, 3, 4]
    assert log.loc[0, "CIDEr"] > 0  # what the run started from
    trained_epochs = log[(log["event"] == "epoch") & (log["epoch"] > 0)]
    measured = ["train_reward", "train_entropy", "train_actor_loss", "val_loss", "BLEU-4", "CIDEr"]
    assert trained_epochs[measured].notna().all(axis=None)
    assert ("train_critic_loss" in log) == (objective == "actor_critic")
    if objective == "actor_critic":
        assert trained_epochs["train_critic_loss"].notna().all()
    assert log["train_loss"].isna().all()


def kill_and_resume(folder: Path, config: Path) -> None:
    """Run `config` as a whole, and once more killed in its midst, moved and resumed: both end alike."""
    run(folder, "train", "--config", config, "run.name=whole")
    killed = folder / "runs" / "killed"
    process = subprocess.Popen(
        command("train", "--config", config, "run.name=killed"),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while steps_done(killed) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 3 <= steps_done(killed) < 16, "killed too early or too late"
    moved = folder / "elsewhere" / "moved"
    moved.parent.mkdir()
    killed.rename(moved)
    run(folder, "train", "--resume", moved)
    same_end(folder / "runs" / "whole", moved)
    assert (folder / "runs" / "whole" / "samples.png").read_bytes() == (moved / "samples.png").read_bytes()


def steps_done(run_folder: Path) -> int:
    """Steps of training behind the checkpoint; before the first one there is nothing to restore."""
    path = run_folder / "checkpoints.pth"
    return torch.load(path, weights_only=True)["training"]["steps"] if path.exists() else 0


def same_end(a: Path, b: Path) -> None:
    """Two run folders ended alike: the same weights, bit for bit, and the same figures in the log."""
    for name in ("checkpoints.pth", "best.pth"):
        one, other = weights(a / name), weights(b / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    logs = [pd.read_csv(folder / "loss_log.txt").drop(columns="seconds") for folder in (a, b)]
    logs = [log[log["event"] != "resume"].reset_index(drop=True) for log in logs]
    pd.testing.assert_frame_equal(*logs)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    write_dataset(tmp_path / "data")
    config = write_config(tmp_path, train={"epochs": 3, "log_every": 1})
    run(tmp_path, "train", "--config", config, "run.name=whole")
    process = subprocess.Popen(
        command("train", "--config", config, "run.name=stopped"), cwd=tmp_path, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    log = tmp_path / "runs" / "stopped" / "loss_log.txt"
    while not (log.exists() and len(log.read_text().splitlines()) > 2) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "python train.py --resume runs/stopped" in text
    run(tmp_path, "train", "--resume", "runs/stopped")
    same_end(tmp_path / "runs" / "whole", tmp_path / "runs" / "stopped")
