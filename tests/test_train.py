"""train.py: a run from the first epoch to the last, its files, and what it starts from."""

import json
import re
import sys

import pandas as pd
import pytest
import torch

from tests.helpers import write_dataset
from tests.script_helpers import run, weights, write_config


def test_training_ends_with_scores_and_the_next_commands(trained):
    text = (trained / "train.txt").read_text()
    assert "Validation scores with beam 2" in text
    assert "python inference_visualize.py" in text
    assert "python visualize_loss.py" in text
    files = {path.name for path in (trained / "runs" / "tiny").iterdir()}
    assert files >= {
        "config.yaml",
        "best.pth",
        "checkpoints.pth",
        "loss_log.txt",
        "vocab.json",
        "loss_curve.png",
        "samples.png",
    }


def test_the_log_has_a_row_per_interval_and_one_per_epoch(trained):
    log = pd.read_csv(trained / "runs" / "tiny" / "loss_log.txt")
    assert (log["event"] == "epoch").sum() == 12
    assert (log["event"] == "step").sum() == 12 * 4 // 2
    epochs = log[log["event"] == "epoch"]
    assert epochs["step"].tolist() == [4 * n for n in range(1, 13)]
    assert (
        epochs[["train_loss", "val_loss", "val_perplexity", "val_top5", "BLEU-4", "CIDEr"]]
        .notna()
        .all(axis=None)
    )
    assert epochs["train_loss"].iloc[-1] < epochs["train_loss"].iloc[0] / 2


def test_a_run_is_not_overwritten_by_mistake(trained):
    text = run(trained, "train", "--config", "tiny.yaml", status=2)
    assert "--resume" in text
    assert "--overwrite" in text


def test_tensorboard_gets_the_log(trained):
    pytest.importorskip("tensorboard")
    boards = ("run.folder=boards", "run.tensorboard=true", "train.epochs=1")
    run(trained, "train", "--config", "tiny.yaml", *boards)
    events = b"".join(path.read_bytes() for path in (trained / "boards" / "tiny").glob("events.*"))
    for name in (b"loss/train", b"loss/val", b"scores/CIDEr", b"lr", b"samples"):
        assert name in events
    assert b"seconds" not in events


def test_without_the_package_tensorboard_a_run_that_needs_it_does_not_begin(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    text = run(
        trained, "train", "--config", "tiny.yaml", "run.folder=boards", "run.tensorboard=true", status=2
    )  # fmt: skip
    assert text.splitlines()[-1].startswith("error: run.tensorboard=true")
    assert not (trained / "boards").exists()


def test_the_vocabulary_is_built_and_then_used_by_training(tmp_path):
    write_dataset(tmp_path / "data")
    config = write_config(tmp_path, train={"epochs": 1})
    text = run(tmp_path, "build_vocab", "--config", config, "data.min_freq=9")
    assert "cover" in text
    words = json.loads((tmp_path / "data" / "vocab.json").read_text())["words"]
    assert "the" in words
    assert "red" not in words  # 8 times in the captions of the training images
    run(tmp_path, "train", "--config", config, "data.min_freq=9")
    assert json.loads((tmp_path / "runs/tiny/vocab.json").read_text())["words"] == words
    text = run(tmp_path, "train", "--config", config, "run.name=other")
    assert "data.min_freq=9 instead of 1" in text
    assert len(json.loads((tmp_path / "runs/other/vocab.json").read_text())["words"]) > len(words)


def test_a_run_resumes_without_its_vectors_file(tmp_path):
    write_dataset(tmp_path / "data")
    (tmp_path / "vectors.txt").write_text("red 1 2 3\nwhite 2 1 0\n", encoding="utf-8")
    words = {"embeddings": "vectors.txt", "embed_dim": 3, "freeze_embeddings": True}
    config = write_config(tmp_path, decoder=words, train={"epochs": 1})
    text = run(tmp_path, "train", "--config", config)
    assert re.search(r"embeddings: 2 of \d+ words start from vectors\.txt", text)
    (tmp_path / "vectors.txt").unlink()
    run(tmp_path, "train", "--resume", "runs/tiny", "train.epochs=2")


def test_training_starts_from_another_runs_weights_and_words(trained):
    text = run(
        trained, "train", "--config", "tiny.yaml", "run.name=second", "train.epochs=1", "train.lr=1e-9",
        "train.encoder_lr=1e-9", "train.init_from=runs/tiny/best.pth",
    )  # fmt: skip
    first = pd.read_csv(trained / "runs" / "tiny" / "loss_log.txt")
    second = pd.read_csv(trained / "runs" / "second" / "loss_log.txt")
    best = first["CIDEr"].max()
    assert second["CIDEr"].max() == pytest.approx(best, abs=0.02), text


def test_learning_from_scores_starts_from_a_trained_model_and_keeps_nothing_worse(trained):
    scores = ("--config", "tiny.yaml", "run.name=worse", "train.objective=self_critical")
    assert "set train.init_from" in run(trained, "train", *scores, status=2)
    text = run(
        trained, "train", *scores, "train.epochs=1", "train.lr=1.0",
        "train.clip=1000", "train.init_from=runs/tiny/best.pth",
    )  # fmt: skip
    first, second = weights(trained / "runs/tiny/best.pth"), weights(trained / "runs/worse/best.pth")
    assert all(torch.equal(first[key], second[key]) for key in first), text


@pytest.mark.parametrize("objective", ["self_critical", "actor_critic"])
def test_learning_from_scores_logs_its_figures_from_the_model_it_starts_from_on(trained, objective):
    run(
        trained, "train", "--config", "tiny.yaml", "run.name=scores", f"train.objective={objective}",
        "train.epochs=2", "train.init_from=runs/tiny/best.pth", "rl.samples=2",
    )  # fmt: skip
    log = pd.read_csv(trained / "runs" / "scores" / "loss_log.txt")
    epochs = log[log["event"] == "epoch"].set_index("epoch")
    assert epochs.index.tolist() == [0, 1, 2]
    assert epochs.at[0, "CIDEr"] > 0  # what the run started from
    measured = ["train_reward", "train_entropy", "train_actor_loss", "val_loss", "BLEU-4", "CIDEr"]
    measured += ["train_critic_loss"] * (objective == "actor_critic")
    assert epochs.loc[1:, measured].notna().all(axis=None)
    assert ("train_critic_loss" in log) == (objective == "actor_critic")
    assert log["train_loss"].isna().all()


def test_weights_of_another_model_do_not_start_a_run(trained):
    text = run(
        trained, "train", "--config", "tiny.yaml", "run.name=third", "decoder.hidden_dim=8",
        "train.init_from=runs/tiny/best.pth", status=2,
    )  # fmt: skip
    assert "decoder.hidden_dim=8 contradicts train.init_from=runs/tiny/best.pth" in text


def test_no_data_says_where_it_looked_and_what_to_do(tmp_path):
    text = run(tmp_path, "train", status=2)
    assert str(tmp_path / "archive" / "captions.csv") in text
    assert "Flickr8k" in text
    assert "python train.py --config configs/sample.yaml" in text
