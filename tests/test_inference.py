"""inference_visualize.py: captions of any images."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.script_helpers import run

pytestmark = pytest.mark.usefixtures("no_java")


def write_images(folder: Path) -> list[str]:
    """Three images with names that HTML has to escape; returns the names."""
    folder.mkdir()
    names = [f"a <b> {i}.png" for i in range(3)]
    for i, name in enumerate(names):
        Image.new("RGB", (60, 40), (200, 30 * i, 0)).save(folder / name)
    return names


def read_json(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))


def test_images_are_captioned_and_one_that_cannot_be_read_is_skipped(trained):
    names = write_images(trained / "images")
    (trained / "images" / "broken.jpg").write_bytes(b"no image")
    text = run(trained, "inference_visualize", "images", "--attention", "--output", "out", status=1)
    assert "broken.jpg" in text
    rows = read_json(trained / "out" / "captions.json")
    assert [Path(row["image"]).name for row in rows] == names
    for row in rows:
        assert row["caption"]
        assert row["caption"] == " ".join(word for word, _ in row["words"])
        assert all(0 < probability <= 1 for _, probability in row["words"])
    captioned = Image.open(trained / "out" / "a <b> 0_captioned.jpg")
    assert captioned.width >= 60
    assert (trained / "out" / "a <b> 0_attention.jpg").exists()
    page = (trained / "out" / "captions_result.html").read_text("utf-8")
    assert rows[0]["caption"] in page
    assert "a <b>" not in page


def test_images_may_be_files_and_globs_and_sampling_repeats_with_its_seed(trained):
    images = ("data/images/00.png", "data/images/0[1-3].png")
    sampling = ("--temperature", "5", "search.max_length=4")
    for output, seed in (("s1", 3), ("s2", 3), ("s3", 4)):
        run(trained, "inference_visualize", *images, *sampling, "--seed", seed, "--output", output)
    first, again, other = (read_json(trained / output / "captions.json") for output in ("s1", "s2", "s3"))
    assert [Path(row["image"]).name for row in first] == [f"{i:02}.png" for i in range(4)]
    assert first == again != other
    assert all(len(row["words"]) <= 4 for row in first)


def test_references_of_a_captions_file_are_shown_and_scored(trained):
    write_images(trained / "images")
    text = run(
        trained, "inference_visualize", "data/images/20.png", "images/a <b> 0.png", "--output", "scored",
        "--captions", "data/captions.csv",
    )  # fmt: skip
    assert "scores of the 1 captions with references" in text
    assert "CIDEr" in text
    known, unknown = read_json(trained / "scored" / "captions.json")
    assert known["references"] == ["A red half on the right.", "On the right, there is red!"]
    assert set(known["scores"]) == {"CIDEr", "BLEU-4", "ROUGE-L"}
    assert "references" not in unknown
    assert "A red half on the right." in (trained / "scored" / "captions_result.html").read_text("utf-8")
    beside = Image.open(trained / "scored" / "20_captioned.jpg").width
    assert beside > Image.open(trained / "scored" / "a <b> 0_captioned.jpg").width


def test_a_captions_file_of_other_images_is_an_error(trained):
    write_images(trained / "images")
    text = run(
        trained, "inference_visualize", "images/a <b> 0.png", "--captions", "data/captions.csv", status=2
    )
    assert "data/captions.csv" in text


def test_no_image_at_all_is_an_error(trained):
    assert "nowhere" in run(trained, "inference_visualize", "nowhere/*.jpg", status=2)


def test_the_same_pixels_give_the_same_caption_in_evaluation_and_inference(trained):
    run(trained, "evaluate", "--split", "val")
    evaluated = read_json(trained / "runs/tiny/eval-val/captions.json")
    assert len(evaluated) == 4
    images = [trained / "data/images" / row["image_id"] for row in evaluated]
    run(trained, "inference_visualize", *images, "--output", "same")
    captioned = read_json(trained / "same" / "captions.json")
    assert [row["caption"] for row in captioned] == [row["caption"] for row in evaluated]
