"""A training in phases is one run: one log, one best model, and it can be stopped anywhere."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import yaml

from config_reading import make_config
from tests.helpers import write_dataset
from tests.script_helpers import run, write_config
from tests.test_resume import same_end
from training.phases import key_in_phase, phase_configs
from training.resume import resumed
from training.trainer import Trainer
from utils import UserError

PHASES = {
    "words": {"train": {"epochs": 1}},
    "images": {"train": {"epochs": 1, "encoder_lr": 0.01}, "encoder": {"fine_tune": "all"}},
    "scores": {"train": {"epochs": 1, "lr": 0.001, "objective": "self_critical"}, "rl": {"samples": 2}},
}


def write_phases(folder: Path) -> Path:
    """A configuration with three phases of one epoch, 4 steps each, and its data; returns its path."""
    write_dataset(folder / "data")
    path = write_config(folder, train={"log_every": 1})
    values = yaml.safe_load(path.read_text())
    del values["train"]["epochs"]
    path.write_text(yaml.safe_dump({**values, "phases": PHASES}, sort_keys=False))
    return path


@pytest.fixture
def config(tmp_path) -> Path:
    return write_phases(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a finished run in runs/whole, and what it printed in train.txt."""
    folder = tmp_path_factory.mktemp("phases")
    text = run(folder, "train", "--config", write_phases(folder), "run.name=whole")
    (folder / "train.txt").write_text(text)
    return folder


def test_a_phase_changes_what_it_names_and_starts_from_the_best_model_of_the_run():
    one, two, three = phase_configs(make_config({"run": {"name": "a"}, "phases": PHASES}))
    assert [c.train.epochs for c in (one, two, three)] == [1, 1, 1]
    assert [c.encoder.fine_tune for c in (one, two, three)] == ["none", "all", "none"]
    assert [c.train.objective for c in (one, two, three)] == [*["cross_entropy"] * 2, "self_critical"]
    assert [c.train.lr for c in (one, two, three)] == [0.001, 0.001, 0.001]
    assert one.train.init_from is None
    assert two.train.init_from == three.train.init_from == one.run_folder / "best.pth"


def test_a_training_without_phases_has_one():
    config = make_config({})
    assert phase_configs(config) == [config]


def test_all_phases_are_one_run_with_one_log_and_one_best_model(whole):
    text, folder = (whole / "train.txt").read_text(), whole / "runs" / "whole"
    assert "phase 1 of 3: words\n" in text
    assert "phase 2 of 3: images, from the model of epoch 1\n" in text
    assert "phase 3 of 3: scores, from the model of epoch " in text
    assert text.count("Validation scores") == 1
    log = pd.read_csv(folder / "loss_log.txt")
    assert log.loc[log["event"] == "epoch", "epoch"].tolist() == [1, 2, 3]
    assert log.loc[log["event"] == "phase", "step"].tolist() == [4, 8]
    assert log.loc[log["event"] == "step", "step"].tolist() == list(range(1, 13))
    steps = log[log["event"] == "step"].set_index("step")
    assert steps["train_loss"].notna().tolist() == [True] * 8 + [False] * 4
    assert steps["train_reward"].notna().tolist() == [False] * 8 + [True] * 4
    assert steps["lr"].max() <= 0.01
    assert steps.loc[9:, "lr"].max() <= 0.001
    assert yaml.safe_load((folder / "config.yaml").read_text())["phases"] == PHASES
    assert f"best.pth is epoch {log.set_index('epoch')['CIDEr'].idxmax()};" in text


def test_a_run_that_is_stopped_in_every_phase_ends_like_one_that_is_not(whole, monkeypatch):
    step, stops = Trainer.step, {2, 4, 6, 11}  # 4: the end of a phase

    def interrupted_step(self, *arguments):
        loss = step(self, *arguments)
        if self.steps in stops:
            stops.remove(self.steps)
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Trainer, "step", interrupted_step)
    run(whole, "train", "--config", "tiny.yaml", "run.name=stopped", status=130)
    for left in (2, 1, 0):
        run(whole, "train", "--resume", "runs/stopped", status=130)
        assert len(stops) == left
    run(whole, "train", "--resume", "runs/stopped")
    same_end(whole / "runs" / "whole", whole / "runs" / "stopped")


def test_a_resumed_phase_takes_changes_of_its_own_settings(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    folder = Path("runs/whole")
    resumption = resumed(folder, ["phases.scores.train.lr=1e-5"])
    assert "phases.scores.train.lr 0.001 -> 1e-5\n" in capsys.readouterr().out
    assert resumption.learns_differently
    assert phase_configs(resumption.config)[resumption.state.phase.number].train.lr == 1e-5
    for change, reason in (
        ("phases.scores.rl.samples=3", "phases.scores.rl.samples cannot change from 2 to 3"),
        ("train.epochs=9", "train.epochs has no effect"),
    ):
        with pytest.raises(UserError, match=reason):
            resumed(folder, [change])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.images.decoder.hidden_dim=32", "error: phases.images.decoder.hidden_dim: a phase cannot"),
        ("phases.images.train.monitor=loss", "error: phases.images.train.monitor: a phase cannot change"),
        ("phases.images.train.lr=fast", "error: phases.images: train.lr='fast'"),
        ("phases.images.train.epoch=3", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("phases.words.train.objective=self_critical", "starts from a trained model"),
        ("train.epochs=9", "error: train.epochs has no effect, because each phase sets its own; set phases."),
        ("phases=3", "error: "),
        ("phases.images=3", "error: "),
    ],
)
def test_a_phase_that_cannot_be_is_an_error_before_anything_starts(config, tmp_path, override, message):
    assert message in run(tmp_path, "train", "--config", config, override, status=2)
    assert not (tmp_path / "runs").exists()


def test_messages_name_the_key_that_is_in_force_in_a_phase():
    config = make_config({"phases": PHASES})
    assert key_in_phase(config, 2, "train.lr") == "phases.scores.train.lr"
    assert key_in_phase(config, 0, "train.lr") == "train.lr"
    assert key_in_phase(make_config({}), 0, "train.lr") == "train.lr"
