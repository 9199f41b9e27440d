"""Shards are written, indexed and read; what is wrong with them is one line."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from data.captions import read_table
from data.shard_index import index_shards, read_index_of
from data.shard_paths import caption_paths, shard_split
from data.shard_set import open_images, open_shards
from data.shard_writer import write_shards
from files import replacing
from tests.helpers import tiny, write_dataset, write_karpathy
from tests.script_helpers import run, write_config
from tests.shard_helpers import PATTERN, data_of, sharded, write_tar
from utils import UserError

IMAGE = io.BytesIO()
Image.new("RGB", (8, 8), (0, 90, 200)).save(IMAGE, "JPEG")
JPEG = IMAGE.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with the tiny dataset in data/ and its shards in shards/. Tests do not change it."""
    folder = tmp_path_factory.mktemp("written")
    write_dataset(folder / "data")
    sharded(folder, folder / "data")
    return folder


def test_shards_have_the_same_images_captions_and_splits_as_the_files(written):
    data = data_of(written, f"shards/{PATTERN}")
    table, original = read_table(data), read_table(tiny(written / "data").data)
    by_image = ["split", "image", "caption"]
    assert sorted(table[by_image].values.tolist()) == sorted(original[by_image].values.tolist())
    images = open_images(data, ["train", "val", "test"])
    for name in original["image"].unique():
        with Image.open(written / "data" / "images" / name) as image:
            assert images.read(name).tobytes() == image.convert("RGB").tobytes()


def test_webdataset_reads_the_shards(written):
    shards = str(written / "shards" / "train-{000..003}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 16
    for sample in samples:
        record = json.loads(sample["json"])
        assert sample["__key__"] == record["image"].removesuffix(".png")
        assert sample["png"] == (written / "data" / "images" / record["image"]).read_bytes()
        assert len(record["captions"]) == 2


def test_the_same_captions_are_written_as_the_same_bytes(written, tmp_path):
    write_shards(tiny(written / "data").data, tmp_path, 4)
    for path in (written / "shards").glob("*.tar"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_names_that_are_no_keys_of_webdataset_come_back(tmp_path):
    names = [
        "a.b.jpg",
        "a_b.jpg",
        "deep/er/c.JPG",
        "ä.png",
        "ö.png",
        "__x__/y.png",
        "noend",
        "n" * 200 + ".jpg",
    ]
    rows = [(name, f"a dog on {i} legs", "train") for i, name in enumerate(names)]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(JPEG)
    paths = write_karpathy(tmp_path, rows)
    write_shards(data_of(tmp_path, paths[0].name, images=tmp_path / "images"), tmp_path, 3)
    table = read_table(data_of(tmp_path, "train-{000..002}.tar"))
    assert dict(zip(table["image"], table["caption"], strict=True)) == {row[0]: row[1] for row in rows}
    assert sorted(table["image_id"]) == list(range(len(names)))  # imgid


def test_captions_are_read_from_json_or_text(tmp_path):
    files = {
        "a.jpg": JPEG, "a.txt": b"A dog.\n\n Two dogs. \n",
        "b.png": JPEG, "b.json": b'{"caption": "A cat.", "width": 8}', "b.txt": b"not this",
        "c.jpg": JPEG, "c.json": b'{"captions": ["One.", null, "Two."]}', "c.mask.png": b"",
        "d.webp": JPEG, "d.json": b'{"width": 8}', "d.txt": "Ein süßer Hund.".encode(), "__notes__": b"x",
    }  # fmt: skip
    write_tar(tmp_path / "train-0.tar", files)
    table = read_table(data_of(tmp_path, "train-0.tar"))
    assert table[["image", "caption"]].values.tolist() == [
        ["a.jpg", "A dog."], ["a.jpg", "Two dogs."], ["b.png", "A cat."],
        ["c.jpg", "One."], ["c.jpg", "Two."], ["d.webp", "Ein süßer Hund."],
    ]  # fmt: skip


BROKEN = {
    "has no image": {"x.txt": b"A dog."},
    "has neither .txt nor .json with": {"x.jpg": JPEG, "x.json": b'{"width": 8}'},
    "has no caption": {"x.jpg": JPEG, "x.txt": b" \n"},
    "has a caption of more than 10,000": {"x.jpg": JPEG, "x.txt": b"a" * 10_001},
    "has a text that is not UTF-8": {"x.jpg": JPEG, "x.txt": b"\xff\xfe\xfd"},
    "has broken JSON": {"x.jpg": JPEG, "x.json": b'{"caption": '},
    "has JSON that is not an object": {"x.jpg": JPEG, "x.json": b"[1]"},
    "has captions that are not texts": {"x.jpg": JPEG, "x.json": b'{"caption": 7}'},
    "is there twice": {"x.jpg": JPEG, "x.json": b'{"image": "ok.jpg", "caption": "Again."}'},
}


@pytest.mark.parametrize("problem", BROKEN)
def test_samples_that_cannot_be_used_are_counted_and_too_many_are_an_error(problem, tmp_path, capsys):
    write_tar(tmp_path / "train-0.tar", {"ok.jpg": JPEG, "ok.txt": b"A dog.", **BROKEN[problem]})
    with pytest.raises(UserError, match=f"1 of 2 samples .*{problem}.*50.0%.*data.max_bad_rows"):
        read_table(data_of(tmp_path, "train-0.tar"))
    assert len(read_table(data_of(tmp_path, "train-0.tar", max_bad_rows=0.5))) == 1
    assert "left out: 1 of 2 samples" in capsys.readouterr().out


def test_a_shard_that_is_no_tar_file_is_one_line(written, tmp_path):
    whole = (written / "shards" / "train-000.tar").read_bytes()
    damaged = bytearray(whole)
    damaged[1024 + 100] ^= 1  # in the header of the second file
    for content in (whole[:3000], whole[:1024], bytes(damaged), b"not a tar file" * 100, b""):
        (tmp_path / "train-0.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"train-0\.tar is not a whole tar file"):
            read_table(data_of(tmp_path, "train-0.tar"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.tar", "captions.csv"], "shards .* and captions files; pass one or the other"),
        (["train-{0..1}.tar"], r"no shard at .*train-1\.tar; set data.captions"),
        (["train-{0..1.tar"], "a brace has no partner"),
        (["train-0.tar", "train-{0..0}.tar"], "names .*train-0.tar twice"),
        (["of/shard.tar"], "the name of a shard.*says the split"),
        (["train-0.tar", "val-0.tar"], "'ok.jpg' is in two shards"),
    ],
)
def test_wrong_lists_of_shards_are_one_line(names, message, tmp_path):
    for name in ("train-0.tar", "val-0.tar", "of/shard.tar"):
        write_tar(tmp_path / name, {"ok.jpg": JPEG, "ok.txt": b"A dog."})
    with pytest.raises(UserError, match=message):
        read_table(data_of(tmp_path, *names))


def test_the_name_of_a_shard_or_of_its_folder_says_its_split():
    assert shard_split(Path("coco-val-00.tar")) == "val"
    assert shard_split(Path("shards/test/00000.tar")) == "test"
    assert shard_split(Path("val/train-00000.tar")) == "train"


def test_braces_stand_for_files():
    data = data_of(Path("s"), "{train-{08..10},val-0}.tar")
    assert [path.name for path in caption_paths(data)] == [
        "train-08.tar", "train-09.tar", "train-10.tar", "val-0.tar",
    ]  # fmt: skip


def test_an_index_is_made_once_and_again_when_the_shard_changes_or_the_index_is_damaged(
    tmp_path, monkeypatch
):
    shard, folder = tmp_path / "train-0.tar", tmp_path / "index"
    write_tar(shard, {"a.jpg": JPEG, "a.txt": b"A dog."})
    assert list(read_index_of(shard, folder).names) == ["a.jpg"]
    [path] = folder.iterdir()
    made = path.stat().st_mtime_ns
    assert list(read_index_of(shard, folder).captions) == ["A dog."]
    assert path.stat().st_mtime_ns == made
    content = bytearray(path.read_bytes())
    content[content.index(b"A dog.")] ^= 1
    path.write_bytes(content)
    assert list(read_index_of(shard, folder).captions) == ["A dog."]
    with replacing(shard) as temporary:
        write_tar(temporary, {"b.jpg": JPEG, "b.txt": b"A cat."})
    assert list(read_index_of(shard, folder).captions) == ["A cat."]


def test_the_processes_of_a_training_begin_to_index_different_shards(written, tmp_path, monkeypatch):
    paths = [written / "shards" / f"train-{i:03}.tar" for i in range(4)]
    order: list[str] = []
    monkeypatch.setattr("data.shard_index.replacing", lambda path: order.append(path.name) or replacing(path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        index_shards(paths, tmp_path / str(rank))
    assert [name[:9] for name in order] == [f"train-{i:03}" for i in (0, 1, 2, 3, 2, 3, 0, 1)]
    index_shards(paths, tmp_path / "0")
    assert len(order) == 8


def test_a_shard_that_changes_while_it_is_in_use_is_one_line(written, tmp_path):
    shutil.copytree(written / "shards", tmp_path / "shards")
    shards = open_shards(data_of(tmp_path, f"shards/{PATTERN}"), ["val"])
    name = next(iter(shards.names()))
    os.utime(tmp_path / "shards" / "val-000.tar")
    with pytest.raises(UserError, match=r"val-000\.tar has changed while it was in use"):
        shards.read(name)


def test_a_broken_image_names_its_shard(tmp_path):
    write_tar(tmp_path / "val-0.tar", {"a.jpg": b"no image", "a.txt": b"A dog."})
    shards = open_shards(data_of(tmp_path, "val-0.tar"), ["val"])
    with pytest.raises(
        UserError, match=r"a\.jpg in .*val-0\.tar cannot be read \(cannot identify image file\);"
    ):
        shards.read("a.jpg")


def test_without_the_package_one_line_says_what_to_install(written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    for use in (
        lambda: read_table(data_of(written, f"shards/{PATTERN}")),
        lambda: write_shards(tiny(written / "data").data, tmp_path / "new", 4),
    ):
        with pytest.raises(UserError, match=r"need webdataset: pip install -r requirements-extra\.txt"):
            use()


def test_shards_are_not_written_over_others(written):
    with pytest.raises(UserError, match="has shards already"):
        write_shards(tiny(written / "data").data, written / "shards", 4)
    with pytest.raises(UserError, match="names shards already"):
        write_shards(data_of(written, f"shards/{PATTERN}"), written / "more", 4)


def test_the_scripts_write_shards_train_on_them_and_score_them(tmp_path, no_java):
    write_dataset(tmp_path / "data")
    write_config(tmp_path, data={"index_folder": "index"}, train={"epochs": 1})
    shards = f"data.captions=shards/{PATTERN}"
    text = run(tmp_path, "data/shards", "--config", "tiny.yaml", "--images-per-shard", 4)
    assert f"python train.py '{shards}'" in text
    shutil.rmtree(tmp_path / "data")
    text = run(tmp_path, "train", "--config", "tiny.yaml", shards)
    assert "WebDataset, 6 shards; 24 images (train 16, val 4, test 4), 48 captions" in text
    assert "python evaluate.py --checkpoint runs/tiny/best.pth" in text
    assert (tmp_path / "runs" / "tiny" / "samples.png").stat().st_size > 1000
    assert "32 training captions" in run(tmp_path, "build_vocab", "--config", "tiny.yaml", shards)
    for split, count in (("test", 4), ("all", 24)):
        text = run(tmp_path, "evaluate", "--checkpoint", "runs/tiny", "--split", split, "--analyse")
        assert f"\n{count} images\n" in text
    page = (tmp_path / "runs" / "tiny" / "eval-all" / "analysis.html").read_text()
    assert page.count("data:image/jpeg") == 24
    predictions = tmp_path / "runs" / "tiny" / "eval-test" / "captions.json"
    text = run(tmp_path, "evaluate", "--predictions", predictions, "--config", "tiny.yaml", shards)
    assert "\n4 images\n" in text


def test_braces_that_the_shell_has_expanded_are_one_line(tmp_path):
    names = [f"data.captions=shards/train-{i}.tar" for i in range(3)]
    text = run(tmp_path, "train", *names, status=2)
    assert "data.captions is given 3 times; put it into quotes" in text
