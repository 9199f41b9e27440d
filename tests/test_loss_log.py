"""loss_log.txt: rows by column, appended, and written anew by a resumed run."""

from pathlib import Path

import pytest

from reports.loss_log import COLUMNS
from training.loss_log import LossLog
from utils import UserError

FIGURES = ("loss", "reward")  # an objective's: one that every log has a column for, and one of its own


def rows(path) -> list[dict[str, str]]:
    header, *lines = path.read_text("utf-8").splitlines()
    columns = [*COLUMNS, "train_reward"]
    assert header == ",".join(columns)
    return [dict(zip(columns, line.split(","), strict=True)) for line in lines]


def test_rows_are_appended_in_the_order_of_the_columns_and_others_stay_empty(tmp_path):
    log = LossLog(tmp_path / "loss_log.txt", FIGURES)
    log.write()
    log.add(step=7, event="step", train_loss=1.23456789)
    log.add(event="epoch", step=8, train_reward=0.25, CIDEr=0.5)
    first, second = rows(log.path)
    assert {name: text for name, text in first.items() if text} == {
        "event": "step", "step": "7", "train_loss": "1.23457",
    }  # fmt: skip
    assert {name: text for name, text in second.items() if text} == {
        "event": "epoch", "step": "8", "CIDEr": "0.5", "train_reward": "0.25",
    }  # fmt: skip


def test_a_column_that_the_file_does_not_have_is_refused(tmp_path):
    log = LossLog(tmp_path / "loss_log.txt", FIGURES)
    with pytest.raises(ValueError, match="no column"):
        log.add(event="step", trian_loss=1.0)
    assert log.history == []


def test_rows_after_the_checkpoint_of_a_resume_are_dropped(tmp_path):
    log = LossLog(tmp_path / "loss_log.txt", FIGURES)
    log.write()
    log.add(event="step", step=1)
    saved = list(log.history)
    log.add(event="step", step=2)
    resumed = LossLog(log.path, FIGURES)
    resumed.history = saved
    resumed.write()
    resumed.add(event="resume", step=1)
    assert [(row["event"], row["step"]) for row in rows(log.path)] == [("step", "1"), ("resume", "1")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_full_disk_is_one_line_that_names_the_file():
    with pytest.raises(UserError, match=r"cannot write /dev/full: .*make room on the disk"):
        LossLog(Path("/dev/full"), FIGURES).add(event="step", step=1)
