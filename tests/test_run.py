"""A run, epoch by epoch, with a training and a validation that are played."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.checkpoint import size_of
from tests.helpers import CPU
from tests.run_helpers import go_on, make_run
from training.run import Run
from training.validation import caption_split
from utils import UserError


@pytest.fixture
def make(dataset: Path):
    """A function from sections of the configuration to a run that has not begun."""
    return partial(make_run, dataset)


def play(run: Run, monkeypatch, values: list[float]) -> list[float]:
    """Train with these values of CIDEr, one an epoch; returns those of the epochs that became best.pth."""
    values, kept = iter(values), []
    names = ("loss", "perplexity", "top5", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")

    def validate():
        run.value = next(values)
        return dict.fromkeys(names, run.value), dict.fromkeys(run.val_set.names, "a dog")

    def write(name: str, checkpoint: dict) -> None:
        if name == "best.pth":
            kept.append(run.value)

    for name in ("train_epoch", "report_best"):
        monkeypatch.setattr(run, name, lambda: None)
    monkeypatch.setattr(run.record, "draw", lambda step: None)
    monkeypatch.setattr(run, "validate", validate)
    monkeypatch.setattr(run.checkpoints, "write", write)
    assert run.train() == 0
    return kept


def test_the_best_epoch_is_kept_and_training_stops_when_patience_ends(make, monkeypatch, capsys):
    run = make(train={"epochs": 9, "patience": 2})
    assert play(run, monkeypatch, [0.1, 0.3, 0.3, 0.2, 0.9]) == [0.1, 0.3]
    assert (run.epoch, run.selection.best_epoch) == (5, 2)
    assert "stopped early: no better CIDEr for 2 epochs" in capsys.readouterr().out


def test_a_lower_loss_is_better(make, monkeypatch, capsys):
    run = make(train={"epochs": 4, "monitor": "loss"})
    assert play(run, monkeypatch, [0.4, 0.5, 0.3, 0.6]) == [0.4, 0.3]
    assert "stopped early" not in capsys.readouterr().out


def test_learning_from_scores_keeps_the_model_it_started_from_if_nothing_is_better(make, monkeypatch):
    train = {"objective": "self_critical", "init_from": "best.pth", "epochs": 2}
    run = make(train=train)
    assert play(run, monkeypatch, [0.4, 0.3, 0.2]) == [0.4]
    assert run.selection.best_epoch == 0
    assert [row["epoch"] for row in run.record.log.history] == [0, 1, 2]


def test_validation_never_samples_and_has_the_beam_of_training(make):
    run = make(search={"temperature": 0.7, "beam": 4}, train={"beam": 2})
    options = run.search_options(run.config.train.beam)
    assert (options.temperature, options.beam) == (0, 2)


def test_what_is_validated_and_kept_is_the_moving_average(make, monkeypatch):
    run = make(train={"average": 0.5, "epochs": 1})
    with torch.no_grad():
        run.captioner.model.decoder.output.score.bias.fill_(7)  # the average has not followed yet
    saved = {}
    monkeypatch.setattr(run.checkpoints, "write", saved.__setitem__)
    monkeypatch.setattr(run.record, "draw", lambda step: None)
    run.open_folder()
    run.finish_epoch(*run.validate())
    biases = {name: content["model"]["decoder.output.score.bias"] for name, content in saved.items()}
    assert (biases["best.pth"] == 0).all()
    assert (biases["checkpoints.pth"] == 7).all()


def test_the_moving_average_is_what_is_validated(make):
    run = make(train={"average": 0.5})
    first = run.validate()
    with torch.no_grad():
        run.captioner.model.decoder.output.score.bias.normal_(std=10)
    assert run.validate() == first
    run.trainer.average = None
    assert run.validate() != first


def test_each_caption_belongs_to_the_image_of_its_name(make):
    run = make(train={"batch_size": 3})  # more than one batch
    seen = SimpleNamespace(
        config=run.config,
        compute=CPU,
        search=lambda grids, options, indices: grids[0].float().sum(dim=(1, 2)),
        texts=lambda sums: sums.tolist(),
    )
    captions = caption_split(seen, run.val_set, run.search_options(1))
    expected = {name: float(run.val_set.image(i).float().sum()) for i, name in enumerate(run.val_set.names)}
    assert captions == pytest.approx(expected, rel=1e-4)
    assert len({round(value) for value in expected.values()}) == 4


def test_validation_runs_without_dropout_and_repeats(make):
    run = make(decoder={"dropout": 0.9})
    run.captioner.model.train()
    first, captions = run.validate()
    run.captioner.model.train()
    assert run.validate() == (first, captions)
    assert list(captions) == [f"{i}.png" for i in range(16, 20)]


def test_an_epoch_continues_behind_the_batches_that_are_done(make, monkeypatch):
    run = make(train={"checkpoint_every": 1})
    run.open_folder()
    done, saved = [], []

    def step(parts, epoch):
        done.extend(part.indices for part in parts)
        run.trainer.steps += 1
        return dict.fromkeys(run.averages.names, torch.tensor(1.0))

    monkeypatch.setattr(run.trainer, "step", step)
    monkeypatch.setattr(run, "save", lambda: saved.append(run.batch))
    run.train_epoch()
    assert sorted(i for indices in done for i in indices) == list(range(16))
    assert saved == [1, 2, 3]  # the end of an epoch is saved after its validation
    whole, done[:] = list(done), []
    run.batch = 2
    run.train_epoch()
    assert done == whole[2:]


def test_a_figure_that_cannot_be_drawn_does_not_end_the_run(make, monkeypatch, capsys):
    run = make()
    run.open_folder()

    def fail(*_):
        raise UserError("cannot write loss_curve.png: no space")

    monkeypatch.setattr("training.record.draw_curves", fail)
    (run.config.data.images / run.record.samples.names[0]).unlink()
    run.finish_epoch(*run.validate())
    run.finish_writing()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warnings[0] == "warning: cannot write loss_curve.png: no space"
    assert run.record.samples.names[0] in warnings[1]
    assert (run.folder / "checkpoints.pth").exists()


def test_figures_that_a_killed_run_did_not_draw_are_drawn_by_the_resumed_one(dataset, curves):
    killed = make_run(dataset, train={"epochs": 1})
    killed.open_folder()
    killed.record.draw = lambda step: None  # killed after its last checkpoint
    killed.finish_epoch(*killed.validate())
    killed.finish_writing()
    assert not (killed.folder / "samples.png").exists()
    log = (killed.folder / "loss_log.txt").read_text()
    run, _ = go_on(killed.folder)
    assert run.train() == 0
    assert (killed.folder / "samples.png").exists()
    assert (killed.folder / "loss_curve.png").exists()
    assert (killed.folder / "loss_log.txt").read_text() == log  # nothing was left to train


def test_a_disk_that_cannot_hold_the_checkpoints_is_noticed_before_training(make, monkeypatch):
    run = make(train={"average": 0.5})
    trained = sum(p.numel() for p in run.trainer.parameters()) * 4
    model = size_of(run.captioner.checkpoint())
    # The latest checkpoint with its successor, each with the average and two moments, and best.pth.
    assert run.size() == pytest.approx(2 * (model + 3 * trained) + model, rel=0.01)
    monkeypatch.setattr("files.free_space", lambda folder: run.size() - 1)
    with pytest.raises(UserError, match="not enough space for the checkpoints of this run"):
        run.open_folder()
    assert not run.folder.exists()
    monkeypatch.setattr("files.free_space", lambda folder: run.size())
    run.open_folder()
    run.save()
    run.finish_writing()
    assert run.size() < 2 * (model + 3 * trained) + model  # that file is there already
