"""Losses, gradients and weights that are not finite: steps are skipped, and nothing of the kind is kept."""

import math
from dataclasses import replace

import pytest
import torch

from data.dataset import collate
from reports.loss_log import read_log
from tests.run_helpers import after_steps, go_on, make_run, stopped_run
from tests.script_helpers import run, write_config
from training.objective import Part
from training.run import Run
from utils import UserError


def poison(run: Run, steps: range, value: float = math.nan, gradient: bool = False) -> None:
    """Make the loss, or only its gradient, not finite in these steps, counted from 0."""
    loss_of = run.objective.forward

    def forward(prepared, totals):
        loss = loss_of(prepared, totals)
        if run.trainer.steps not in steps:
            return loss
        if not gradient:
            return replace(loss, total=loss.total * value)
        weight = next(iter(run.trainer.parameters()))
        steep = (weight.flatten()[0] - weight.flatten()[0].detach()).sqrt()  # 0, with an infinite derivative
        return replace(loss, total=loss.total + steep)

    run.objective.forward = forward


def everything(run: Run) -> dict[str, torch.Tensor]:
    """All tensors that training changes."""
    state = run.trainer.optimizer.state_dict()["state"]
    return {
        **run.captioner.model.state_dict(),
        **run.trainer.evaluated.state_dict(prefix="average."),
        **{f"{i}.{key}": tensor for i, moments in state.items() for key, tensor in moments.items()},
    }


def one_step(run: Run) -> bool:
    """A step on the first images of the training set; returns whether it was finite."""
    items = [run.train_set[draw] for draw in [(0, 0), (1, 0)]]
    run.captioner.model.train()
    run.trainer.step([Part(collate(items), [0, 1])], 1)
    return bool(run.trainer.is_finite)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(dataset, gradient):
    run = make_run(dataset, encoder={"fine_tune": "all"}, train={"average": 0.5})
    poison(run, range(1, 3), gradient=gradient)
    assert one_step(run)
    before = {key: tensor.clone() for key, tensor in everything(run).items()}
    assert not one_step(run)
    assert not one_step(run)
    after = everything(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (run.trainer.steps, run.trainer.skipped_in_a_row) == (3, 2)
    assert one_step(run)
    assert run.trainer.skipped_in_a_row == 0


def test_a_batch_that_is_not_finite_does_not_reach_the_statistics_of_batch_norms(dataset):
    run = make_run(dataset, encoder={"fine_tune": "all"})
    image = run.train_set.image
    run.train_set.image = lambda i, seed=0: image(i, seed) * math.inf
    assert not one_step(run)
    assert all(buffer.isfinite().all() for buffer in run.captioner.model.buffers())


def test_skipped_steps_are_counted_and_left_out_of_the_means(dataset, capsys):
    whole, run = make_run(dataset), make_run(dataset, run={"name": "other"})
    poison(run, range(1, 2))
    for each in (whole, run):
        each.open_folder()
        each.train_epoch()
        each.record.draw = lambda step: None
        each.finish_epoch(*each.validate())
    assert ", 1 steps skipped, " in capsys.readouterr().out
    log = read_log(run.folder / "loss_log.txt")
    assert log["skipped"].tolist() == [1, 0, 1]  # two intervals, and the epoch
    assert log["train_loss"].notna().all()
    assert read_log(whole.folder / "loss_log.txt")["skipped"].tolist() == [0, 0, 0]
    first = read_log(whole.folder / "loss_log.txt")["train_loss"]
    assert first[0] != log["train_loss"][0]  # the mean of the first of two steps alone


def test_an_interval_without_a_finite_step_has_no_means(dataset):
    run = make_run(dataset)
    run.open_folder()
    poison(run, range(4))
    run.train_epoch()
    log = read_log(run.folder / "loss_log.txt")
    assert log["skipped"].tolist() == [2, 2]
    assert log["train_loss"].isna().all()


def test_counts_survive_a_resume(dataset):
    before = make_run(dataset, train={"log_every": 100})
    before.open_folder()
    poison(before, range(3))
    after_steps(before, 3)
    after, _ = go_on(before.folder)
    assert after.trainer.skipped_in_a_row == 3
    assert (after.averages.skipped, after.interval.skipped) == (3, 3)


def test_twenty_skipped_steps_in_a_row_end_the_run_with_what_to_do(dataset):
    run = make_run(dataset, train={"batch_size": 1, "epochs": 9, "checkpoint_every": 1})
    run.open_folder()
    poison(run, range(3, 99))
    run.train_epoch()
    run.epoch, run.batch = 2, 0
    with pytest.raises(UserError) as ended:
        run.train_epoch()
    message = str(ended.value)
    assert "not finite in 20 steps in a row (step 23, learning rate" in message
    assert "images of the last batch: " in message
    assert f"python train.py --resume {run.folder} train.lr=0.001" in message
    kept = torch.load(run.folder / "checkpoints.pth", weights_only=True)["training"]
    assert kept["steps"] == 3  # none was written while steps were skipped
    after, _ = go_on(run.folder, "train.lr=0.001")
    assert after.trainer.config.lr == 0.001


def test_a_validation_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(dataset):
    run = make_run(dataset)
    run.open_folder()
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with torch.no_grad():
        next(iter(run.trainer.parameters())).fill_(torch.inf)
    with pytest.raises(
        UserError, match=r"validation loss of epoch 1 is (nan|inf) .*train\.py --resume .* train\.lr=0\.001"
    ):
        run.validate_or_save()
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


@pytest.mark.parametrize("where", ["weights", "moments", "average"])
def test_nothing_that_is_not_finite_is_saved(dataset, where):
    run = stopped_run(dataset, train={"average": 0.5})
    kept = (run.folder / "checkpoints.pth").read_bytes()
    tensors = {
        "weights": run.captioner.model.decoder.embedding.weight,
        "moments": next(iter(run.trainer.optimizer.state.values()))["exp_avg"],
        "average": run.trainer.evaluated.decoder.embedding.weight,
    }
    with torch.no_grad():
        tensors[where].flatten()[0] = torch.nan
    with pytest.raises(UserError, match="has values that are not finite"):
        run.save()
    if where == "average":
        with pytest.raises(UserError, match="has values that are not finite"):
            run.write("best.pth", run.captioner.checkpoint(run.trainer.evaluated))
    assert (run.folder / "checkpoints.pth").read_bytes() == kept
    assert not (run.folder / "best.pth").exists()


def test_only_a_finite_value_is_the_best(dataset):
    selection = make_run(dataset, train={"monitor": "perplexity"}).selection
    assert not selection.is_best(1, math.inf)
    assert selection.is_best(2, 9.0)
    assert not selection.is_best(3, math.nan)
    assert (selection.best, selection.best_epoch) == (9.0, 2)


@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical", "actor_critic"])
def test_a_far_too_high_learning_rate_ends_with_one_line(dataset, tmp_path, objective):
    source = stopped_run(dataset, run={"name": "source"})
    config = write_config(tmp_path, train={"epochs": 9, "objective": objective, "scheduled_sampling": 0.9})
    text = run(
        tmp_path, "train", "--config", config, "train.lr=1e30", "train.batch_size=1", "rl.samples=2",
        f"train.init_from={source.folder}/checkpoints.pth", status=2,
    )  # fmt: skip
    assert "train.lr=1e+29" in text
    for path in (tmp_path / "runs" / "tiny").glob("*.pth"):
        model = torch.load(path, weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in model.values())
