"""Resuming with other settings, from another place, or over other data."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from config_reading import all_keys
from data.captions import read_table
from tests.helpers import tiny
from tests.run_helpers import after_steps, go_on, make_run, stopped_run
from tests.script_helpers import run, weights
from training.changeable import CHANGEABLE
from training.folder import run_to_resume
from training.resume import resumed
from training.run import Run
from utils import UserError


def moments(run: Run) -> dict[str, torch.Tensor]:
    """The first moments of all parameters that have some, by name."""
    [names] = [[name for group in run.trainer.optimizer.param_groups for name in group["param_names"]]]
    parameters = zip(names, run.trainer.parameters(), strict=True)
    state = run.trainer.optimizer.state
    return {name: state[p]["exp_avg"].clone() for name, p in parameters if p in state}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def edit(folder: Path, change) -> None:
    """Change the training state in a checkpoint, as an earlier version or a broken disk might have."""
    content = torch.load(folder / "checkpoints.pth", weights_only=True)
    change(content["training"])
    torch.save(content, folder / "checkpoints.pth")


def test_every_key_that_may_change_exists():
    assert set(CHANGEABLE) < set(all_keys())
    assert len(set(CHANGEABLE)) == len(CHANGEABLE)


def test_learning_rates_and_weight_decay_change_and_moments_go_on(dataset, capsys):
    before = stopped_run(dataset, train={"schedule": "constant", "warmup": 0, "weight_decay": 0.3})
    after, _ = go_on(before.folder, "train.lr=0.0001", "train.weight_decay=0.1")
    assert "train.lr 0.01 -> 0.0001\ntrain.weight_decay 0.3 -> 0.1\n" in capsys.readouterr().out
    assert same(moments(before), moments(after))
    after_steps(after, 3)
    [group] = after.trainer.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.0001, 0.1)


def test_the_critics_learning_rate_changes(dataset):
    train = {"objective": "actor_critic", "init_from": "best.pth"}
    before = make_run(dataset, train=train, rl={"samples": 2})
    before.epoch = 1
    before.open_folder()
    after_steps(before, 1)
    after, _ = go_on(before.folder, "rl.critic_lr=0.5")
    assert after.objective.optimizers[0].param_groups[0]["peak"] == 0.5


def test_without_a_change_nothing_is_announced(dataset, capsys):
    folder = stopped_run(dataset).folder
    capsys.readouterr()
    _, resumption = go_on(folder, "train.lr=1e-2")
    assert resumption.changes == []
    assert "->" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "override",
    [
        "train.batch_size=2",
        "train.monitor=loss",
        "train.beam=3",
        "train.objective=self_critical",
        "encoder.image_size=64",
        "data.min_freq=3",
        "decoder.hidden_dim=8",
        "run.seed=9",
        "run.name=other",
        "search.length_penalty=0.1",
    ],
)
def test_any_other_change_is_refused_before_anything_is_written(dataset, override):
    folder = stopped_run(dataset).folder
    files = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        UserError, match=rf"^{override.split('=')[0]} cannot change from .* when a run is resumed"
    ):
        resumed(folder, ["train.lr=0.0001", override])
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_changes_are_kept_if_the_run_is_killed_before_its_next_checkpoint(dataset):
    run, _ = go_on(stopped_run(dataset).folder, "train.lr=0.0001")
    run.open_folder()
    assert resumed(run.folder, []).config.train.lr == 0.0001
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["train"]["lr"] == 0.0001


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_frozen_encoder_can_be_trained_later_and_the_decoder_goes_on(dataset, average):
    before = stopped_run(dataset, train={"average": average})
    after, _ = go_on(before.folder, "encoder.fine_tune=layer1")
    assert after.train_set.features is None
    assert same(moments(before), moments(after))  # those of the encoder start without any
    one, other = before.trainer.evaluated.state_dict(), after.trainer.evaluated.state_dict()
    assert same(one, other)
    after_steps(after, 3)
    names = moments(after).keys()
    assert names > moments(before).keys()
    assert all(name.startswith("encoder.") for name in names - moments(before).keys())
    encoder, trained = before.captioner.model.encoder.state_dict(), after.captioner.model.encoder.state_dict()
    assert not same(encoder, trained)
    assert [group["peak"] for group in after.trainer.optimizer.param_groups] == [0.01, 0.0001]


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_trained_encoder_can_be_frozen_again(dataset, average):
    before = stopped_run(dataset, encoder={"fine_tune": "layer1"}, train={"average": average})
    after, _ = go_on(before.folder, "encoder.fine_tune=none")
    assert after.train_set.features is not None
    decoder = {name: moment for name, moment in moments(before).items() if name.startswith("decoder.")}
    assert same(moments(after), decoder)
    one, other = before.trainer.evaluated.decoder, after.trainer.evaluated.decoder
    assert same(one.state_dict(), other.state_dict())
    assert same(before.captioner.model.encoder.state_dict(), after.captioner.model.encoder.state_dict())


def test_the_classic_recipe_trains_to_its_end(dataset, tmp_path):
    folder = stopped_run(dataset, train={"epochs": 1}).folder
    text = run(tmp_path, "train", "--resume", folder, "encoder.fine_tune=layer1", "train.epochs=2")
    assert "encoder.fine_tune none -> layer1" in text
    assert "best.pth is epoch" in text
    assert any(name.startswith("encoder.") for name in weights(folder / "checkpoints.pth"))


def test_the_best_epoch_is_scored_with_its_own_encoder(dataset, capsys, monkeypatch):
    """Not with the features of the encoder that the run ended with, which is frozen now."""
    tuned = stopped_run(dataset, encoder={"fine_tune": "layer1"}, train={"epochs": 1})
    tuned.selection.is_best(1, 0.5)
    tuned.write("best.pth", tuned.captioner.checkpoint())
    tuned.report_best()
    expected = capsys.readouterr().out.split("Validation scores")[1]
    tuned.save()
    tuned.finish_writing()
    frozen, _ = go_on(tuned.folder, "encoder.fine_tune=none")
    with torch.no_grad():
        for parameter in frozen.captioner.model.encoder.parameters():
            parameter.add_(1)  # the run went on with the encoder before it was frozen
    frozen.report_best()
    assert capsys.readouterr().out.split("Validation scores")[1] == expected


def test_patience_counts_anew_when_the_run_learns_differently(dataset):
    run = stopped_run(dataset, train={"epochs": 20, "patience": 2})
    run.selection.is_best(1, 0.5)
    run.epoch, run.batch = 9, 0
    run.write("best.pth", run.captioner.checkpoint())
    run.save()
    run.finish_writing()
    assert run.is_finished
    assert go_on(run.folder, "search.beam=4")[0].is_finished
    assert not go_on(run.folder, "train.lr=0.0001")[0].is_finished


def test_a_longer_schedule_says_what_the_learning_rate_will_do(dataset, capsys):
    folder = stopped_run(dataset, train={"epochs": 2, "warmup": 0}).folder
    capsys.readouterr()
    go_on(folder)
    assert "learning rate" not in capsys.readouterr().out
    run, _ = go_on(folder, "train.epochs=9")
    last, following = run.trainer.lr, 0.01 * run.trainer.schedule.factor(2)
    line = f"learning rate: {last:.3g} at the last step, {following:.3g} at the next one"
    assert line in capsys.readouterr().out


def test_a_configuration_that_names_a_run_does_not_change_it_and_says_so(dataset, tmp_path, capsys):
    folder = stopped_run(dataset).folder
    asked = tiny(dataset, train={"lr": 0.5})
    assert resumed(folder, [], asked).config.train.lr == 0.01
    assert "the run keeps its own settings: train.lr=0.01 (not 0.5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "is_same"),
    [
        ("01.png,One caption more.,train", False),
        ("16.png,One caption more.,val", False),
        ("23.png,One caption more.,test", True),  # no part of the training
    ],
)
def test_other_captions_are_refused(dataset, line, is_same):
    _, resumption = go_on(stopped_run(dataset).folder)
    with open(dataset / "captions.csv", "a") as file:
        file.write(line + "\n")
    table = read_table(resumption.config.data)
    with (
        contextlib.nullcontext()
        if is_same
        else pytest.raises(UserError, match="not those that the run began")
    ):
        resumption.require_same_captions(table)


def test_a_run_over_other_captions_is_not_lost(dataset, tmp_path):
    folder, captions = stopped_run(dataset).folder, dataset / "captions.csv"
    files = {path: path.read_bytes() for path in folder.iterdir()}
    captions.write_text(captions.read_text().replace("20.png,A", "19.png,One").replace(",test", ",val"))
    run(tmp_path, "train", "--resume", folder, "train.lr=0.1", status=2)
    (folder / "lock").unlink()
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_a_run_resumes_from_within_its_folder(dataset, tmp_path, capsys):
    with contextlib.chdir(tmp_path):
        folder = stopped_run(Path("data")).folder.resolve()
    with contextlib.chdir(folder):
        here = run_to_resume(Path("."))
        assert here == folder
        run, _ = go_on(here)
        run.open_folder()
    assert (
        f"paths of the data are relative to {tmp_path}, where the run was started" in capsys.readouterr().out
    )
    assert run.config.data.images == dataset / "images"
    assert not {path.name for path in folder.iterdir()} & {"cache", "runs"}


def test_data_that_are_nowhere_are_missed_with_the_place_where_the_run_was_started(dataset, tmp_path):
    with contextlib.chdir(tmp_path):
        folder = stopped_run(Path("data")).folder.resolve()
    moved = shutil.move(dataset, tmp_path / "moved")
    with contextlib.chdir(folder):
        with pytest.raises(UserError, match=f"data/captions.csv is neither here nor in {tmp_path}"):
            resumed(folder, [])
        assert resumed(folder, [f"data.captions={moved}/captions.csv", f"data.images={moved}/images"])


def test_a_checkpoint_of_an_earlier_version_resumes(dataset):
    before = stopped_run(dataset)

    def age(training: dict) -> None:
        for key in ("data", "directory", "skipped", "patience_from", "samples"):
            del training[key]
        for group in training["optimizer"]["param_groups"]:
            del group["param_names"]

    edit(before.folder, age)
    after, resumption = go_on(before.folder)
    assert same(moments(before), moments(after))
    resumption.require_same_captions(read_table(after.config.data))
    with pytest.raises(UserError, match="does not fit this run"):
        go_on(before.folder, "encoder.fine_tune=layer1")


BREAK = {
    "epoch": lambda t: t.update(epoch=-1),
    "steps": lambda t: t.update(steps="7"),
    "schedule.decay": lambda t: t["schedule"].update(decay=float("nan")),
    "history": lambda t: t.update(history=[{"event": "\x1b[31m"}]),
    "samples": lambda t: t.update(samples=["a dog"]),
    "optimizer": lambda t: t.pop("optimizer"),
    "optimizer.param_groups": lambda t: t["optimizer"].update(param_groups=[]),
    "random": lambda t: t.update(random={"cuda": torch.zeros(4, dtype=torch.uint8)}),
    "random: ": lambda t: t.update(random={"cpu": torch.zeros(4, dtype=torch.uint8)}),
    "averages": lambda t: t.update(averages=[1.0]),
    "exp_avg": lambda t: t["optimizer"]["state"][0].pop("exp_avg"),
    "has values that are not finite": lambda t: t["optimizer"]["state"][0]["exp_avg"].fill_(torch.nan),
    "other shapes": lambda t: t["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "instead of": lambda t: t["optimizer"]["param_groups"][0]["params"].pop(),
    "moments of decoder": lambda t: t["optimizer"]["param_groups"][0]["param_names"].__setitem__(0, "x"),
    "n_averaged is missing": lambda t: t["average"].pop("n_averaged"),
    "optimisers of the objective": lambda t: t["objective"].update(optimizers=[t["optimizer"]]),
}


@pytest.mark.parametrize("part", BREAK)
def test_a_damaged_training_state_is_one_line_that_names_the_part(dataset, part):
    folder = stopped_run(dataset, train={"average": 0.5}).folder
    edit(folder, BREAK[part])
    with pytest.raises(UserError, match=rf"{folder}/checkpoints\.pth: .*{part}"):
        go_on(folder)


def test_a_model_without_a_training_state_cannot_be_resumed(dataset):
    run = stopped_run(dataset)
    run.write("checkpoints.pth", run.captioner.checkpoint())
    run.finish_writing()
    with pytest.raises(UserError, match="holds a model but not the state of a run"):
        resumed(run.folder, [])
