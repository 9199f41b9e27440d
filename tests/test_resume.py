"""A run that was stopped goes on, wherever its folder is. tests/killing kills runs at random moments."""

import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.helpers import write_dataset
from tests.script_helpers import ENVIRONMENT, command, run, weights, write_config


def test_a_run_that_was_moved_and_renamed_goes_on_in_its_new_folder(trained):
    moved = trained / "else where" / "other"
    moved.parent.mkdir()
    (trained / "runs" / "tiny").rename(moved)
    run(trained, "train", "--resume", moved, "train.epochs=13")
    log = pd.read_csv(moved / "loss_log.txt")
    assert log.loc[log["event"] == "epoch", "epoch"].tolist() == list(range(1, 14))
    assert not (trained / "runs" / "tiny").exists()


def same_end(a: Path, b: Path) -> None:
    """Two run folders ended alike: the same weights, bit for bit, and the same figures in the log."""
    for name in ("checkpoints.pth", "best.pth"):
        one, other = weights(a / name), weights(b / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    logs = [pd.read_csv(folder / "loss_log.txt").drop(columns="seconds") for folder in (a, b)]
    logs = [log[log["event"] != "resume"].reset_index(drop=True) for log in logs]
    pd.testing.assert_frame_equal(*logs)


@pytest.mark.slow
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
