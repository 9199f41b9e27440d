"""The scripts, from the shell, on a tiny dataset."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from data.splits import half_of
from tests.helpers import tiny, write_coco, write_dataset

ROOT = Path(__file__).parents[1]
# One thread each: the tests themselves run side by side.
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def command(script: str, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]


def run(folder: Path, script: str, *arguments, status: int = 0) -> str:
    """Run a script in `folder`; returns what it printed, after checking its exit status."""
    done = subprocess.run(
        command(script, *arguments), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    if status == 2:
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("error: ")
    return done.stdout + done.stderr


def write_config(folder: Path, **sections) -> Path:
    """A tiny configuration over the dataset in `folder`/data, as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(folder / "data", **sections).as_dict()))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a dataset, tiny.yaml and a finished run in runs/tiny."""
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder / "data")
    config = write_config(
        folder, encoder={"fine_tune": "all"}, train={"epochs": 12, "patience": 12}, decoder={"dropout": 0.0}
    )
    text = run(folder, "train", "--config", config)
    (folder / "train.txt").write_text(text)
    return folder


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
    text = run(trained, "train", "--config", trained / "tiny.yaml", status=2)
    assert "--resume" in text
    assert "--overwrite" in text


def test_evaluation_writes_scores_and_captions(trained):
    text = run(trained, "evaluate", "--split", "test", "--beam", "3")
    scores = json.loads((trained / "runs/tiny/eval-test/scores.json").read_text())
    captions = json.loads((trained / "runs/tiny/eval-test/captions.json").read_text())
    assert [row["image_id"] for row in captions] == ["20.png", "21.png", "22.png", "23.png"]
    assert 0 < scores["BLEU-1"] <= 1
    assert re.search(rf"BLEU-4 +{scores['BLEU-4']:.3f}\n", text)
    # What the evaluation wrote scores the same as captions from anywhere.
    run(
        trained, "evaluate", "--config", "tiny.yaml", "--predictions", "runs/tiny/eval-test/captions.json",
        "--output", "again",
    )  # fmt: skip
    again = json.loads((trained / "again" / "scores.json").read_text())
    assert again["BLEU-4"] == scores["BLEU-4"]
    assert again["CIDEr"] == scores["CIDEr"]


def test_a_model_is_scored_on_coco_files_and_its_captions_carry_their_ids(trained):
    names = [f"{i:02}.png" for i in range(24)]
    rows = [(name, f"A half {k} is red.", "train" if name < "12" else "val") for name in names for k in "ab"]
    files = ",".join(map(str, write_coco(trained, rows)))
    text = run(trained, "evaluate", "--split", "val", "--output", "coco", f"data.captions=[{files}]")
    assert "COCO captions (the val file is val and test); 24 images" in text
    ids = [row["image_id"] for row in json.loads((trained / "coco" / "captions.json").read_text())]
    assert ids == [1000 + i for i in range(12, 24) if half_of(names[i]) == "val"]
    run(
        trained, "evaluate", "--config", "tiny.yaml", "--predictions", "coco/captions.json", "--split", "val",
        "--output", "coco2", f"data.captions=[{files}]",
    )  # fmt: skip
    scores = [json.loads((trained / name / "scores.json").read_text()) for name in ("coco", "coco2")]
    assert scores[0]["CIDEr"] == scores[1]["CIDEr"]
    # Captions of the whole val file, which is both val and test here.
    whole = [{"image_id": 1000 + i, "caption": "a half is red"} for i in range(12, 24)]
    (trained / "val2014.json").write_text(json.dumps(whole))
    text = run(
        trained, "evaluate", "--config", "tiny.yaml", "--predictions", "val2014.json", "--split", "val",
        "--output", "coco3", f"data.captions=[{files}]",
    )  # fmt: skip
    assert f"captions for {len(ids)} of the {len(ids)} images to score; {12 - len(ids)} extra" in text


def test_captions_of_some_images_are_scored_and_the_missing_ones_counted_or_refused(trained):
    predictions = {"20.png": "a red half", "/elsewhere/images/21.png": "green", "00.png": "a half"}
    (trained / "some.json").write_text(json.dumps(predictions))
    arguments = ("--config", "tiny.yaml", "--predictions", "some.json", "--output", "some")
    text = run(trained, "evaluate", *arguments)
    counts = (
        "some.json has captions for 2 of the 4 images to score; 2 missing (22.png, 23.png); 1 extra, for "
        "other images (00.png)"
    )
    assert counts in text
    assert "\n2 images\n" in text
    captions = json.loads((trained / "some" / "captions.json").read_text())
    assert [row["image_id"] for row in captions] == ["20.png", "21.png"]
    assert counts in run(trained, "evaluate", *arguments, "--strict", status=2)


def test_all_splits_are_scored_together(trained):
    run(trained, "evaluate", "--split", "all", "--output", "all")
    assert len(json.loads((trained / "all" / "captions.json").read_text())) == 24
    text = run(
        trained, "evaluate", "--config", "tiny.yaml", "--predictions", "all/captions.json", "--split", "all",
        "--strict", "--output", "all2",
    )  # fmt: skip
    assert "24 images" in text
    assert (trained / "all" / "captions.json").read_text() == (trained / "all2" / "captions.json").read_text()


def test_what_inference_writes_is_scored_like_what_evaluation_writes(trained):
    run(trained, "evaluate", "--split", "test", "--output", "e1")
    images = [f"data/images/{i}.png" for i in range(20, 24)]
    run(trained, "inference_visualize", *images, "--output", "i1")
    arguments = ("--config", "tiny.yaml", "--predictions", "i1/captions.json", "--strict", "--output", "e2")
    run(trained, "evaluate", *arguments)
    one, other = (json.loads((trained / name / "scores.json").read_text()) for name in ("e1", "e2"))
    assert {name: one[name] for name in other} == other


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--strict"], "--strict"),
        (["--config", "tiny.yaml"], "--config"),
        (["--predictions", "p.json", "--beam", "3"], "--beam"),
        (["--predictions", "p.json", "--checkpoint", "best.pth"], "--checkpoint"),
    ],
)
def test_options_of_evaluation_that_contradict_each_other_are_refused(tmp_path, arguments, option):
    assert option in run(tmp_path, "evaluate", *arguments, status=2)


def test_predictions_for_other_images_are_refused(trained):
    (trained / "p.json").write_text(json.dumps([{"image_id": "x.png", "caption": "a dog"}]))
    text = run(trained, "evaluate", "--config", "tiny.yaml", "--predictions", "p.json", status=2)
    assert "x.png" in text
    (trained / "p.json").write_text("{")
    assert "p.json" in run(trained, "evaluate", "--config", "tiny.yaml", "--predictions", "p.json", status=2)


def test_images_are_captioned_and_one_that_cannot_be_read_is_skipped(trained):
    folder = trained / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (60, 40), (200, 30 * i, 0)).save(folder / f"a <b> {i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    text = run(trained, "inference_visualize", "images", "--attention", "--output", "out", status=1)
    assert "broken.jpg" in text
    rows = json.loads((trained / "out" / "captions.json").read_text())
    assert [Path(row["image"]).name for row in rows] == [f"a <b> {i}.png" for i in range(3)]
    for row in rows:
        assert row["caption"] == " ".join(word for word, _ in row["words"])
        assert all(0 < probability <= 1 for _, probability in row["words"])
    captioned = Image.open(trained / "out" / "a <b> 0_captioned.jpg")
    assert captioned.width >= 60
    assert (trained / "out" / "a <b> 0_attention.jpg").exists()
    page = (trained / "out" / "captions_result.html").read_text()
    assert rows[0]["caption"] in page
    assert "a <b>" not in page


def test_images_may_be_files_folders_and_globs_and_sampling_repeats(trained):
    first = trained / "data" / "images" / "00.png"
    arguments = (
        first,
        "data/images/0[1-3].png",
        "--temperature",
        "1.0",
        "--seed",
        "3",
        "search.max_length=4",
    )
    for output in ("s1", "s2"):
        run(trained, "inference_visualize", *arguments, "--output", output)
    rows = [json.loads((trained / output / "captions.json").read_text()) for output in ("s1", "s2")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
    assert all(len(row["words"]) <= 4 for row in rows[0])


def test_references_of_a_captions_file_are_shown_and_scored(trained):
    text = run(
        trained, "inference_visualize", "data/images/20.png", "images/a <b> 0.png", "--output", "scored",
        "--captions", "data/captions.csv",
    )  # fmt: skip
    assert "scores of the 1 captions with references" in text
    assert "CIDEr" in text
    known, unknown = json.loads((trained / "scored" / "captions.json").read_text())
    assert known["references"] == ["A red half on the right.", "On the right, there is red!"]
    assert set(known["scores"]) == {"CIDEr", "BLEU-4", "ROUGE-L"}
    assert "references" not in unknown
    assert "A red half on the right." in (trained / "scored" / "captions_result.html").read_text()
    beside = Image.open(trained / "scored" / "20_captioned.jpg").width
    assert beside > Image.open(trained / "scored" / "a <b> 0_captioned.jpg").width


def test_a_captions_file_of_other_images_is_an_error(trained):
    text = run(
        trained, "inference_visualize", "images/a <b> 0.png", "--captions", "data/captions.csv", status=2
    )
    assert "data/captions.csv" in text


def test_tensorboard_gets_the_log_and_its_absence_is_said_at_once(trained):
    pytest.importorskip("tensorboard")
    hide = trained / "hide" / "tensorboard"
    hide.mkdir(parents=True)
    (hide / "__init__.py").write_text("raise ImportError")
    arguments = ("--config", "tiny.yaml", "run.folder=boards", "run.tensorboard=true", "train.epochs=1")
    done = subprocess.run(
        command("train", *arguments), cwd=trained, env={**ENVIRONMENT, "PYTHONPATH": str(hide.parent)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: run.tensorboard=true")
    assert not (trained / "boards").exists()
    run(trained, "train", *arguments)
    events = b"".join(path.read_bytes() for path in (trained / "boards" / "tiny").glob("events.*"))
    for name in (b"loss/train", b"loss/val", b"scores/CIDEr", b"lr", b"samples"):
        assert name in events


def test_no_image_at_all_is_an_error(trained):
    assert "nowhere" in run(trained, "inference_visualize", "nowhere/*.jpg", status=2)


def test_the_same_pixels_give_the_same_caption_in_evaluation_and_inference(trained):
    run(trained, "evaluate", "--split", "val")
    evaluated = json.loads((trained / "runs/tiny/eval-val/captions.json").read_text())
    images = [trained / "data/images" / row["image_id"] for row in evaluated]
    run(trained, "inference_visualize", *images, "--output", "same")
    captioned = json.loads((trained / "same" / "captions.json").read_text())
    assert [row["caption"] for row in captioned] == [row["caption"] for row in evaluated]


def test_the_curves_are_drawn_of_the_newest_run(trained):
    (trained / "runs/tiny/loss_curve.png").unlink()
    text = run(trained, "visualize_loss")
    assert "tiny" in text
    assert (trained / "runs/tiny/loss_curve.png").exists()


def test_the_vocabulary_is_built_and_then_used_by_training(tmp_path):
    write_dataset(tmp_path / "data")
    config = write_config(tmp_path, train={"epochs": 1})
    text = run(tmp_path, "build_vocab", "--config", config, "data.min_freq=6")
    assert "cover" in text
    words = json.loads((tmp_path / "data" / "vocab.json").read_text())["words"]
    assert "the" in words
    run(tmp_path, "train", "--config", config, "data.min_freq=6")
    assert json.loads((tmp_path / "runs/tiny/vocab.json").read_text())["words"] == words
    text = run(tmp_path, "train", "--config", config, "run.name=other")
    assert "data.min_freq=6 instead of 1" in text
    assert len(json.loads((tmp_path / "runs/other/vocab.json").read_text())["words"]) > len(words)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same_end(a: Path, b: Path) -> None:
    """Two run folders ended alike: the same weights, bit for bit, and the same figures in the log."""
    for name in ("checkpoints.pth", "best.pth"):
        one, other = weights(a / name), weights(b / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    logs = [pd.read_csv(folder / "loss_log.txt").drop(columns="seconds") for folder in (a, b)]
    logs = [log[log["event"] != "resume"].reset_index(drop=True) for log in logs]
    pd.testing.assert_frame_equal(*logs)


def test_a_run_resumes_without_its_vectors_file(tmp_path):
    write_dataset(tmp_path / "data")
    (tmp_path / "vectors.txt").write_text("red 1 2 3\nwhite 2 1 0\n", encoding="utf-8")
    words = {"embeddings": "vectors.txt", "embed_dim": 3, "freeze_embeddings": True}
    config = write_config(tmp_path, decoder=words, train={"epochs": 1})
    text = run(tmp_path, "train", "--config", config)
    assert re.search(r"embeddings: 2 of \d+ words start from vectors\.txt", text)
    (tmp_path / "vectors.txt").unlink()
    run(tmp_path, "train", "--resume", "runs/tiny", "train.epochs=2")


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
            "init_from": str(trained / "runs/tiny/best.pth"),
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
    assert trained_epochs["train_critic_loss"].notna().all() == (objective == "actor_critic")
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
    while (
        not (killed / "checkpoints.pth").exists() and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert torch.load(killed / "checkpoints.pth", weights_only=True)["training"]["epoch"] < 4, (
        "killed too late"
    )
    moved = folder / "elsewhere" / "moved"
    moved.parent.mkdir()
    killed.rename(moved)
    run(folder, "train", "--resume", moved)
    same_end(folder / "runs" / "whole", moved)
    assert (folder / "runs" / "whole" / "samples.png").read_bytes() == (moved / "samples.png").read_bytes()


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
    assert "python train.py --resume runs/stopped" in text.replace(f"{tmp_path}/", "")
    run(tmp_path, "train", "--resume", "runs/stopped")
    same_end(tmp_path / "runs" / "whole", tmp_path / "runs" / "stopped")


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
    text = run(trained, "train", "--config", "tiny.yaml", "train.objective=self_critical", status=2)
    assert "train.init_from" in text
    text = run(
        trained, "train", "--config", "tiny.yaml", "run.name=worse", "train.objective=self_critical",
        "train.epochs=1", "train.lr=1.0", "train.clip=1000", "train.init_from=runs/tiny/best.pth",
    )  # fmt: skip
    first, second = weights(trained / "runs/tiny/best.pth"), weights(trained / "runs/worse/best.pth")
    assert all(torch.equal(first[key], second[key]) for key in first), text


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


@pytest.mark.parametrize("script", ["train", "evaluate", "build_vocab"])
def test_a_misspelt_key_is_one_line_with_the_right_spelling(trained, script):
    assert "did you mean 'data.captions'" in run(trained, script, "data.caption=x", status=2)


@pytest.mark.parametrize(
    "script", ["train", "evaluate", "build_vocab", "inference_visualize", "visualize_loss", "show_model"]
)
def test_every_script_has_help(tmp_path, script):
    assert "usage:" in run(tmp_path, script, "--help")
