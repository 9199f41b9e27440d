"""evaluate.py: scores of a model, or of captions from a file."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from data.splits import half_of
from tests.helpers import write_coco
from tests.script_helpers import run
from training.validation import caption_split

pytestmark = pytest.mark.usefixtures("no_java")


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
    assert "COCO captions (split by the names of the files); 24 images" in text
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


def predict(folder: Path, captions: dict, *arguments, status: int = 0) -> str:
    """Run evaluate.py on captions for images of the test split."""
    (folder / "p.json").write_text(json.dumps(captions))
    return run(
        folder, "evaluate", "--config", "tiny.yaml", "--predictions", "p.json", *arguments, status=status
    )


def test_results_replace_earlier_results_and_no_file_of_the_user(trained, monkeypatch):
    captions = {"20.png": "a red half"}
    predict(trained, captions, "--output", "out")
    predict(trained, {"20.png": "red"}, "--output", "out")
    written = trained / "out" / "captions.json"
    assert json.loads(written.read_text()) == [{"image_id": "20.png", "caption": "red"}]

    written.write_text("mine")
    assert "captions.json exists" in predict(trained, captions, "--output", "out", status=2)
    assert written.read_text() == "mine"
    # A model does not caption first, only to find that out at the end.
    monkeypatch.setattr("captioning.Captioner.load", lambda *_: pytest.fail("it was loaded"))
    assert "captions.json exists" in run(trained, "evaluate", "--output", "out", status=2)
    (trained / "file").touch()
    assert "is not a folder" in run(trained, "evaluate", "--output", "file", status=2)


def test_predictions_are_not_overwritten_by_the_results(trained):
    (trained / "mine").mkdir()
    (trained / "mine" / "captions.json").write_text('{"20.png": "a red half"}')
    arguments = ("--config", "tiny.yaml", "--predictions", "mine/captions.json", "--output", "mine")
    assert "captions.json exists" in run(trained, "evaluate", *arguments, status=2)
    assert (trained / "mine" / "captions.json").read_text() == '{"20.png": "a red half"}'
    assert not (trained / "mine" / "scores.json").exists()


def test_odd_captions_are_scored_and_written_as_valid_json(trained):
    captions = {"20.png": "a \ud800 half\x1b[31m", "21.png": "", "22.png": "\n", "23.png": "red " * 2_000}
    text = predict(trained, captions, "--output", "odd")
    assert "\x1b" not in text
    content = (trained / "odd" / "captions.json").read_bytes()
    rows = json.loads(content, parse_constant=pytest.fail)
    assert {row["image_id"]: row["caption"] for row in rows} == captions
    json.loads((trained / "odd" / "scores.json").read_bytes(), parse_constant=pytest.fail)


def test_the_training_split_is_captioned_without_augmentation(trained, monkeypatch):
    seen = []

    def spy(captioner, dataset, options):
        seen.append(torch.stack([dataset.image(i) for i in range(len(dataset))]))
        return caption_split(captioner, dataset, options)

    monkeypatch.setattr("jobs.evaluate.caption_split", spy)
    for augment in ("[]", "[crop,flip]"):
        run(trained, "evaluate", "--split", "train", "--output", "train", f"data.augment={augment}")
    assert torch.equal(*seen)


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


def test_several_checkpoints_are_scored_together_and_beside_their_own_scores(trained):
    shutil.copy(trained / "runs/tiny/best.pth", trained / "other.pth")
    run(trained, "evaluate", "--split", "val", "search.beam=2")
    text = run(
        trained, "evaluate", "--split", "val", "--checkpoint", "runs/tiny", "other.pth", "search.beam=2"
    )
    folder = trained / "runs/tiny/eval-val-ensemble"
    assert str(folder.relative_to(trained)) in text
    alone = json.loads((trained / "runs/tiny/eval-val/captions.json").read_text())
    assert json.loads((folder / "captions.json").read_text()) == alone  # of two equal models
    assert "no checkpoint at none.pth" in run(
        trained, "evaluate", "--checkpoint", "runs/tiny", "none.pth", "--split", "val", status=2
    )
