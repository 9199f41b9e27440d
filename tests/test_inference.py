"""inference_visualize.py: captions of any images."""

import contextlib
import io
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from captioning import Captioner
from reports.captioned import captioned_image
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


def test_words_that_must_occur_are_asked_for_on_the_command_line(trained):
    image = "data/images/20.png"
    run(trained, "inference_visualize", image, "search.include=[green,red]", "--output", "both")
    [row] = read_json(trained / "both" / "captions.json")
    assert {"green", "red"} <= set(row["caption"].split())
    for arguments, message in (
        (["search.include=[gren]"], "search.include=gren: .*did you mean 'green'"),
        (["search.include=[green]", "--top-k", "3"], "leave out --top-k and --top-p"),
        (["search.include=[green]", "--temperature", "1"], r"set search\.temperature=0"),
    ):
        assert re.search(message, run(trained, "inference_visualize", image, *arguments, status=2))


def test_a_list_of_checkpoints_ends_where_the_images_begin(trained):
    shutil.copy(trained / "runs/tiny/best.pth", trained / "other.pth")
    images = ("data/images/20.png", "data/images/21.png")
    run(trained, "inference_visualize", *images, "--checkpoint", "runs/tiny", "--output", "one")
    arguments = ("--checkpoint", "runs/tiny", "other.pth", *images, "--output", "two")
    run(trained, "inference_visualize", *arguments)
    one, two = (read_json(trained / output / "captions.json") for output in ("one", "two"))
    assert [row["caption"] for row in two] == [row["caption"] for row in one]
    assert len(two) == 2


# --- one bad item never spoils the batch ---

# The beginning of a PNG file that claims to have 50,000 x 50,000 pixels.
HEADER = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\r" + HEADER + struct.pack(">I", zlib.crc32(HEADER)) + b"\0\0\0\x09IDAT"


def png(size: tuple[int, int] = (30, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_odd_names_and_shapes_are_captioned_and_what_cannot_be_read_is_skipped(trained):
    good = {
        "a.png": png(),
        "A.png": png(),
        "ä" * 124 + ".png": png(),
        "ä" * 124 + ".jpg": png(),
        "line\nbreak\x1b[31m.png": png(),
        "wide.png": png((65_536, 2)),
    }
    with contextlib.suppress(OSError):  # some file systems have no such names
        (trained / "no utf-8 \udce4.png").write_bytes(png())
        (trained / "no utf-8 \udce4.png").unlink()
        good["no utf-8 \udce4.png"] = png()
    bad = {"bomb.png": BOMB, "cut off.png": png()[:50], "empty.jpg": b"", "text.gif": b"no image"}
    (trained / "images").mkdir()
    for name, content in {**good, **bad}.items():
        (trained / "images" / name).write_bytes(content)
    text = run(trained, "inference_visualize", "images", "--attention", "--output", "out", status=1)
    assert "\x1b" not in text
    assert "bomb.png: DecompressionBombError" in text
    assert [name for name in bad if f"skipped: images/{name} cannot be read" in text] == list(bad)
    assert text.count("skipped: ") == len(bad)
    rows = read_json(trained / "out" / "captions.json")
    assert {Path(row["image"]).name for row in rows} == set(good)
    names = [file.name for file in (trained / "out").iterdir()]
    for suffix in ("_captioned.jpg", "_attention.jpg"):
        assert len([name for name in names if name.endswith(suffix)]) == len(good)
    for file in (trained / "out").glob("*.jpg"):
        Image.open(file).load()


def test_an_image_that_is_gone_or_cannot_be_drawn_is_skipped_by_name(trained, monkeypatch):
    def draw(image, *arguments):
        (trained / "data" / "images" / "01.png").unlink(missing_ok=True)
        if image.getpixel((0, 2))[0] == 99:  # 02.png
            raise MemoryError("too large")
        return captioned_image(image, *arguments)

    monkeypatch.setattr("reports.results.captioned_image", draw)
    images = [f"data/images/0{i}.png" for i in range(4)]
    text = run(trained, "inference_visualize", *images, "--output", "out", status=1)
    assert "skipped: data/images/01.png cannot be read" in text
    assert "skipped: data/images/02.png: its caption cannot be drawn (MemoryError: too large)" in text
    rows = read_json(trained / "out" / "captions.json")
    assert [row["image"] for row in rows] == [images[0], images[3]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_skipped_and_not_waited_for(trained):
    os.mkfifo(trained / "fifo.jpg")
    text = run(trained, "inference_visualize", "fifo.jpg", "data/images/00.png", status=1)
    assert "skipped: fifo.jpg cannot be read" in text


# --- results ---


def test_a_file_of_the_user_s_is_not_replaced_which_is_said_before_the_work(trained, monkeypatch):
    monkeypatch.setattr("captioning.Captioner.load", None)
    user_s = trained / "data" / "images" / "00_captioned.jpg"
    user_s.write_text("the user's")
    text = run(trained, "inference_visualize", "data/images/00.png", "--output", "data/images", status=2)
    assert "00_captioned.jpg exists" in text
    (trained / "out").mkdir()
    (trained / "out" / "captions.json").symlink_to(user_s)
    assert "captions.json exists" in run(
        trained, "inference_visualize", "data/images/00.png", "--output", "out", status=2
    )
    for output in ("tiny.yaml", "tiny.yaml/out"):
        assert "tiny.yaml is not a folder" in run(
            trained, "inference_visualize", "data/images/00.png", "--output", output, status=2
        )
    assert user_s.read_text() == "the user's"
    assert [file.name for file in (trained / "out").iterdir()] == ["captions.json"]


def test_results_within_the_images_are_replaced_and_not_captioned_again(trained):
    write_images(trained / "images")
    for _ in range(2):
        run(trained, "inference_visualize", "images", "--output", "images")
        assert len(read_json(trained / "images" / "captions.json")) == 3
    run(trained, "inference_visualize", "images/*.???", "images/**/*.jpg", "--output", "elsewhere", status=2)
    run(trained, "inference_visualize", "images/*.???", "--output", "elsewhere")
    assert len(read_json(trained / "elsewhere" / "captions.json")) == 3


# --- many images ---


def captions(file: Path) -> list[tuple[str, str]]:
    """Image and caption of each row."""
    text = file.read_text("utf-8")
    rows = json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines())
    return [(row["image"], row["caption"]) for row in rows]


def test_a_run_that_was_stopped_goes_on_with_the_images_that_have_no_caption(trained, monkeypatch):
    whole = ("data/images", "--attention", "--temperature", "3", "--draw", "5", "--output")
    run(trained, "inference_visualize", *whole, "whole")
    text = run(trained, "inference_visualize", *whole, "parts", "--limit", "3")
    assert "wrote the captions of 3 images" in text
    rows = trained / "parts" / "captions.jsonl"
    with open(rows, "ab") as file:
        file.write(b'{"image": "data/images/03.png", "capt')  # the process is killed
    assert "captions.jsonl exists, perhaps of a run that was stopped" in run(
        trained, "inference_visualize", *whole, "parts", status=2
    )
    captioned, search = [], Captioner.search
    monkeypatch.setattr(Captioner, "search", lambda *a: captioned.append(len(a[1][0])) or search(*a))
    text = run(trained, "inference_visualize", *whole, "parts", "--resume")
    assert sum(captioned) == 21
    assert "wrote the captions of 24 images" in text
    assert "drew the first 5 images" in text
    for name in ("captions.json", "captions.jsonl"):
        assert captions(trained / "parts" / name) == captions(trained / "whole" / name)
    pages = [(trained / name / "captions_result.html").read_text("utf-8") for name in ("parts", "whole")]
    one, other = (re.findall(r'data-name="(.*?)"|alt="(.*?)"| data-map="(\S+)', page) for page in pages)
    assert one == other
    assert len(one) == 3 * 5
    assert sorted(os.listdir(trained / "parts")) == sorted(os.listdir(trained / "whole"))
    assert len(list((trained / "parts").glob("*_attention.jpg"))) == 5


def test_each_caption_is_in_a_file_before_the_next_batch_is_captioned(trained, monkeypatch):
    monkeypatch.setattr("jobs.inference_visualize.AT_ONCE", 4)
    written, search, rows = [], Captioner.search, trained / "out" / "captions.jsonl"

    def recorded(*arguments):
        written.append(rows.read_text().count("\n") if rows.exists() else 0)
        return search(*arguments)

    monkeypatch.setattr(Captioner, "search", recorded)
    run(trained, "inference_visualize", "data/images", "--draw", "0", "--output", "out")
    assert written == [0, 4, 8, 12, 16, 20]
    assert len(read_json(trained / "out" / "captions.json")) == 24
    assert "<article data-name" not in (trained / "out" / "captions_result.html").read_text("utf-8")


def test_rows_that_were_changed_are_an_error_with_their_line(trained):
    arguments = ("data/images/00.png", "data/images/01.png", "--output", "out")
    run(trained, "inference_visualize", *arguments)
    rows = trained / "out" / "captions.jsonl"
    first, second = rows.read_text().splitlines()
    for text, message in (
        (f"{first}\nnot JSON\n", "captions.jsonl: line 2 is not as this program wrote it"),
        (
            first + "\n" + second.replace('"log_prob"', '"log"') + "\n",
            "the row of data/images/01.png was changed",
        ),
    ):
        rows.write_text(text)
        assert message in run(trained, "inference_visualize", *arguments, "--resume", status=2)


# --- arguments ---


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["a\0b.jpg"],
        ["x" * 300],
        ["data/images/00.png", "--output", ""],
        ["data/images/00.png", "--output", "a\0b"],
        ["data/images/00.png", "--captions", ""],
        ["data/images/00.png", "--checkpoint", ""],
    ],
)
def test_an_argument_that_names_nothing_is_an_error_on_one_line(trained, arguments):
    run(trained, "inference_visualize", *arguments, status=2)


def test_images_are_found_in_a_captions_file_by_their_links_and_by_what_these_lead_to(trained):
    images = trained / "data" / "images"
    (trained / "store").mkdir()
    (images / "20.png").rename(trained / "store" / "0123abcd")
    (images / "20.png").symlink_to(trained / "store" / "0123abcd")  # as git-annex and DVC keep files
    (trained / "my link.png").symlink_to(images / "21.png")
    run(
        trained, "inference_visualize", "data/images/20.png", "my link.png", "--output", "out",
        "--captions", "data/captions.csv",
    )  # fmt: skip
    linked, link = read_json(trained / "out" / "captions.json")
    assert linked["references"] == ["A red half on the right.", "On the right, there is red!"]
    assert link["references"] == ["A green half on the right.", "On the right, there is green!"]


def test_top_k_samples_at_the_temperature_that_is_set_or_at_1(trained):
    def caption(output: str, *arguments) -> list[dict]:
        run(trained, "inference_visualize", "data/images/0?.png", *arguments, "--output", output)
        return read_json(trained / output / "captions.json")

    words = ("--top-k", "6", "--seed", "3")
    hot = caption("hot", "--temperature", "9", *words)
    assert caption("override", "search.temperature=9", *words) == hot
    assert caption("plain", *words) == caption("one", "--temperature", "1", *words) != hot
