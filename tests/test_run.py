"""A run, epoch by epoch, with a training and a validation that are played."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from captioning import Captioner
from data.captions import read_table, references
from data.transforms import transform_for
from data.vocab import Vocabulary
from models.model import build_model
from tests.helpers import CPU, tiny
from training.datasets import make_datasets
from training.run import Run
from training.validation import caption_split
from utils import UserError


@pytest.fixture
def make(dataset: Path):
    """A function from sections of the configuration to a run that has not begun."""

    def run(**sections) -> Run:
        config = tiny(dataset, **sections)
        table = read_table(config.data)
        vocabulary = Vocabulary.build(table["caption"], 1)
        model = build_model(config, len(vocabulary))
        captioner = Captioner(model, vocabulary, transform_for(config.encoder), config, CPU)
        return Run(captioner, *make_datasets(captioner, table, ("train", "val")), references(table, "val"))

    return run


def play(run: Run, monkeypatch, values: list[float]) -> list[float]:
    """Train with these values of CIDEr, one an epoch; returns those of the epochs that became best.pth."""
    values, kept = iter(values), []
    names = ("loss", "perplexity", "top5", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")

    def validate():
        run.value = next(values)
        return dict.fromkeys(names, run.value), dict.fromkeys(run.val_set.names, "a dog")

    def save(path: Path, checkpoint: dict) -> None:
        if path.name == "best.pth":
            kept.append(run.value)

    for name in ("train_epoch", "draw", "report_best"):
        monkeypatch.setattr(run, name, lambda: None)
    monkeypatch.setattr("training.run.signal.signal", lambda number, handler: None)
    monkeypatch.setattr(run, "validate", validate)
    monkeypatch.setattr("training.run.save_checkpoint", save)
    assert run.train() == 0
    return kept


def test_the_best_epoch_is_kept_and_training_stops_when_patience_ends(make, monkeypatch, capsys):
    run = make(train={"epochs": 9, "patience": 2})
    assert play(run, monkeypatch, [0.1, 0.3, 0.3, 0.2, 0.9]) == [0.1, 0.3]
    assert (run.epoch, run.best_epoch) == (5, 2)
    assert "stopped early: no better CIDEr for 2 epochs" in capsys.readouterr().out


def test_a_lower_loss_is_better(make, monkeypatch, capsys):
    run = make(train={"epochs": 4, "monitor": "loss"})
    assert play(run, monkeypatch, [0.4, 0.5, 0.3, 0.6]) == [0.4, 0.3]
    assert "stopped early" not in capsys.readouterr().out


def test_learning_from_scores_keeps_the_model_it_started_from_if_nothing_is_better(make, monkeypatch):
    train = {"objective": "self_critical", "init_from": "best.pth", "epochs": 2}
    run = make(train=train)
    assert play(run, monkeypatch, [0.4, 0.3, 0.2]) == [0.4]
    assert run.best_epoch == 0
    assert [row["epoch"] for row in run.log.history] == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_do(make, value):
    run = make()
    run.open_folder()
    sums = {"nll": torch.tensor(value), "top5": torch.tensor(0), "tokens": torch.tensor(3)}
    run.interval.add(sums)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 0; .*lower train\.lr"):
        run.log_interval()


def test_validation_never_samples_and_has_the_beam_of_training(make):
    run = make(search={"temperature": 0.7, "beam": 4}, train={"beam": 2})
    options = run.search_options(run.config.train.beam)
    assert (options.temperature, options.beam) == (0, 2)


def test_what_is_validated_and_kept_is_the_moving_average(make, monkeypatch):
    run = make(train={"average": 0.5, "epochs": 1})
    with torch.no_grad():
        run.captioner.model.decoder.output.score.bias.fill_(7)  # the average has not followed yet
    saved = {}
    monkeypatch.setattr("training.run.save_checkpoint", saved.__setitem__)
    monkeypatch.setattr(run, "draw", lambda: None)
    run.open_folder()
    run.finish_epoch()
    biases = {path.name: content["model"]["decoder.output.score.bias"] for path, content in saved.items()}
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
        search=lambda images, options: images.float().sum(dim=(1, 2)),
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

    def step(batch, indices, epoch):
        done.append(indices)
        run.trainer.steps += 1
        return SimpleNamespace(sums=dict.fromkeys(run.averages.names, torch.tensor(1.0)))

    monkeypatch.setattr(run.trainer, "step", step)
    monkeypatch.setattr(run, "save", lambda: saved.append(run.batch))
    run.train_epoch()
    assert sorted(i for indices in done for i in indices) == list(range(16))
    assert saved == [1, 2, 3]  # the end of an epoch is saved after its validation
    whole, done[:] = list(done), []
    run.batch = 2
    run.train_epoch()
    assert done == whole[2:]
