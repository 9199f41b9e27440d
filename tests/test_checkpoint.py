"""A checkpoint is read as a whole and checked, or refused in one line; old ones are read."""

import copy
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioning import Captioner
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from models.checkpoint import find_checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from models.model import build_model
from models.tensors import write_compressed
from tests.helpers import CPU, IMAGES, tiny
from utils import UserError

WORDS = [*SPECIAL, "a", "dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
ENCODER = {"name": "squeezenet1_1", "layer": "features.3"}  # quick to build
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def make_captioner(folder: Path, **sections) -> Captioner:
    config = tiny(folder, **{"encoder": ENCODER, **sections})
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Captioner(build_model(config, len(WORDS)).eval(), Vocabulary(WORDS), transform, config, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def content(folder) -> dict:
    torch.manual_seed(0)
    return make_captioner(folder).checkpoint()


@pytest.fixture(scope="module")
def file(folder, content) -> bytes:
    save_checkpoint(folder / "good.pth", content)
    return (folder / "good.pth").read_bytes()


def caption(path: Path) -> str:
    """Load and caption: the end of a checkpoint that is accepted."""
    [result] = Captioner.load(path, compute=CPU)([PIXELS], beam=2, max_length=4, temperature=0.0)
    assert isinstance(result.caption, str)
    return result.caption


def refusal(path: Path) -> str:
    """The one line with which the checkpoint is refused; empty if it captions."""
    try:
        caption(path)
    except UserError as error:
        return str(error)
    return ""


def is_one_line(text: str) -> bool:
    return "\n" not in text and len(text) < 600


def refuse(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        caption(path)
    assert str(path) in str(caught.value)
    assert is_one_line(str(caught.value))


def change(content: dict, place: str, value: object) -> dict:
    """A copy with another value at `place`, such as config/decoder/hidden_dim."""
    content = copy.deepcopy(content)
    *keys, last = place.split("/")
    inner = content
    for key in keys:
        inner = inner[key]
    inner[last] = value
    return content


WEIGHT = "decoder.init.weight"  # (32, 16)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "2", "format number"),
        ("format", True, "format number"),
        ("format", 99, "format 99"),
        ("format", -(10**600), "format number"),
        ("config", [], "config"),
        ("config/decoder", 1, r"config\.decoder"),
        ("config/decoder/hidden_dim", {"a": 1}, r"decoder\.hidden_dim"),
        ("config/decoder/hidden_dim", 10**600, r"decoder\.hidden_dim"),
        ("config/decoder/hidden_dim", 8, "do not fit"),
        ("config/decoder/hidden_dim", 2 * 10**4, "do not fit"),
        ("config/decoder/hidden_dim", 2 * 10**12, r"decoder\.hidden_dim=2000000000000"),
        ("config/decoder/units", 8, "unknown key"),
        ("config/data/images", "a\x1b[31mb", r"data\.images"),
        ("config/encoder/layer", "features.4", "do not fit"),
        ("config/encoder/layer", "layer1", "no such stage"),
        ("config/encoder/grid", 10**6, r"encoder\.grid=1000000"),
        ("config/encoder/image_size", 64, "encoder.image_size=64: .* 32 pixels"),
        ("vocabulary", [*WORDS, "cat"], "do not fit"),
        ("vocabulary", [*SPECIAL, "a", "a"], "'a', is there twice"),
        ("vocabulary", ["a", "dog", *SPECIAL], "begins with <pad>"),
        ("vocabulary", [*SPECIAL, "a", "\x1b[2J"], "has control characters"),
        ("vocabulary", [*SPECIAL, "a", "\ud800"], "has control characters"),
        ("vocabulary", [*SPECIAL, "a", 7], r"vocabulary\.5"),
        ("vocabulary", "abcdef", "vocabulary"),
        ("transform/size", 10**6, r"transform\.size"),
        ("transform/size", 32.5, r"transform\.size"),
        ("transform/mean", [0.5, 0.5], r"transform\.mean"),
        ("transform/mean", [0.5, 0.5, float("nan")], r"transform\.mean"),
        ("transform/std", [0.5, 0.5, 0.0], r"transform\.std"),
        ("transform/std", [0.5, 0.5, float("inf")], r"transform\.std"),
        ("encoder_digest", "0" * 63, "encoder_digest"),
        ("encoder_digest", "0" * 64, "not those it was trained with"),
        ("model", {}, "is missing"),
        ("model/decoder.new", torch.zeros(1), "has no place"),
        (f"model/{WEIGHT}", None, WEIGHT),
        (f"model/{WEIGHT}", torch.zeros(1, 16), "shape"),
        (f"model/{WEIGHT}", torch.zeros(1).expand(32, 16), "do not suffice"),
        (f"model/{WEIGHT}", torch.zeros(1).expand(10**9, 10**9), "do not suffice"),
        (f"model/{WEIGHT}", torch.zeros(32, 16, dtype=torch.int64), "int64"),
        (f"model/{WEIGHT}", torch.zeros(32, 16, dtype=torch.complex64), "complex64"),
        (f"model/{WEIGHT}", torch.zeros(32, 16).to_sparse(), "not an ordinary tensor"),
        (f"model/{WEIGHT}", torch.zeros(32, 16, device="meta"), "not an ordinary tensor"),
        (f"model/{WEIGHT}", torch.full((32, 16), torch.nan), "not finite"),
        (f"model/{WEIGHT}", torch.full((32, 16), 1e300, dtype=torch.float64), "not finite"),
        ("training", [1], "training"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else "",
)
def test_what_is_wrong_in_a_checkpoint_is_named(tmp_path, content, place, value, message):
    path = tmp_path / "best.pth"
    torch.save(change(content, place, value), path)
    refuse(path, message)


def test_a_quantised_tensor_is_no_weight(tmp_path, content, recwarn):
    weight = torch.quantize_per_tensor(torch.zeros(32, 16), 0.1, 0, torch.qint8)
    torch.save(change(content, f"model/{WEIGHT}", weight), tmp_path / "best.pth")
    recwarn.clear()
    refuse(tmp_path / "best.pth", "not an ordinary tensor|torch.load")
    assert not recwarn.list


@pytest.mark.parametrize("key", ["format", "config", "vocabulary", "transform", "encoder_digest", "model"])
def test_every_key_is_needed(tmp_path, content, key):
    torch.save({name: value for name, value in content.items() if name != key}, tmp_path / "best.pth")
    refuse(tmp_path / "best.pth", key)


def test_weights_of_half_precision_are_read(tmp_path, content):
    model = {key: value.half() if key == WEIGHT else value for key, value in content["model"].items()}
    torch.save({**content, "model": model}, tmp_path / "best.pth")
    caption(tmp_path / "best.pth")


class Payload:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"just text\n",
        pickle.dumps({"format": 2}),
        pickle.dumps(10**5000),
        nested(10),
        nested(100_000),
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + (2**62).to_bytes(8, "little") + b"\x85R.",
    ],
    ids=["empty", "zeros", "text", "pickle", "number", "list", "deep list", "huge array"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, data):
    (tmp_path / "best.pth").write_bytes(data)
    refuse(tmp_path / "best.pth", "is not a checkpoint of this project")


def test_no_code_of_a_checkpoint_is_run(tmp_path, content, recwarn):
    torch.save({**content, "training": Payload(tmp_path / "ran")}, tmp_path / "best.pth")
    refuse(tmp_path / "best.pth", "is not a checkpoint of this project")
    assert not (tmp_path / "ran").exists()
    assert not recwarn.list


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "best.pth")
    refuse(tmp_path / "best.pth", "not a file")


def test_a_changed_number_is_noticed_by_its_checksum(tmp_path, file):
    """torch.load does not check: without the checksum, the model would caption something else."""
    data = bytearray(file)
    (tmp_path / "best.pth").write_bytes(file)
    with zipfile.ZipFile(tmp_path / "best.pth") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (tmp_path / "best.pth").write_bytes(data)
    refuse(tmp_path / "best.pth", "checksum of its part .* is wrong")


def test_a_compressed_checkpoint_is_read_and_its_bytes_depend_on_its_content_alone(tmp_path, file, content):
    for name in ("one.pth", "two.pth"):
        write_compressed(content, tmp_path / name)
    (tmp_path / "good.pth").write_bytes(file)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "two.pth").read_bytes()
    assert (tmp_path / "one.pth").stat().st_size < 0.95 * len(file)
    assert caption(tmp_path / "one.pth") == caption(tmp_path / "good.pth")


@pytest.mark.parametrize(
    ("kind", "message"), [(zipfile.ZIP_DEFLATED, "4 times its size"), (zipfile.ZIP_BZIP2, "compressed")]
)
def test_an_archive_of_a_small_file_with_much_in_it_is_not_unpacked(tmp_path, content, kind, message):
    save_checkpoint(tmp_path / "zeros.pth", {**content, "training": {"zeros": torch.zeros(10**6)}})
    with (
        zipfile.ZipFile(tmp_path / "zeros.pth") as good,
        zipfile.ZipFile(tmp_path / "best.pth", "w", kind) as bomb,
    ):
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    refuse(tmp_path / "best.pth", message)


def values() -> st.SearchStrategy:
    """Anything that a checkpoint may hold by mistake or intent."""
    odd = [None, True, -1, 0, 10**6, 2**70, 10**600, -0.5, float("nan"), float("inf"), "", "x", "\x1b[2J"]
    odd += ["\ud800", b"", [], [[[]]], {}, {"a": {"b": []}}, [0.5] * 3, torch.zeros(2), torch.zeros(0)]
    return st.sampled_from(odd)


def tensors() -> st.SearchStrategy:
    """Changes of a tensor."""
    changes = [
        lambda t: t.double(),
        lambda t: t.half(),
        lambda t: t.long(),
        lambda t: t[..., :1],
        lambda t: t.unsqueeze(0),
        lambda t: t.flatten(),
        lambda t: t.new_full(t.shape, torch.nan) if t.is_floating_point() else t,
        lambda t: t * 1e30,
        lambda t: -t,
        lambda t: t.to_sparse(),
        lambda t: t.new_zeros(1).expand(10**7, 10**7),
        lambda t: torch.cat([t, t]) if t.dim() else t,
    ]
    return st.sampled_from(changes)


@settings(FUZZ, max_examples=120)
@given(data=st.data())
def test_a_checkpoint_with_other_content_captions_or_is_refused(folder, content, data):
    changed = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 2))):
        inner, key = changed, data.draw(st.sampled_from(list(changed)))
        while isinstance(inner[key], dict) and inner[key] and data.draw(st.integers(0, 9)):
            inner = inner[key]
            key = data.draw(st.sampled_from(list(inner)))
        if isinstance(inner[key], torch.Tensor) and data.draw(st.booleans()):
            inner[key] = data.draw(tensors())(inner[key])
        elif isinstance(inner[key], list) and inner[key] and data.draw(st.booleans()):
            inner[key] = list(inner[key])
            inner[key][data.draw(st.integers(0, len(inner[key]) - 1))] = data.draw(values())
        elif type(inner[key]) in (int, float) and data.draw(st.booleans()):
            inner[key] *= data.draw(st.sampled_from([-1, 2, 1000, 10**9]))
        elif data.draw(st.booleans()):
            inner[key] = data.draw(values())
        elif len(inner) > 1:
            del inner[key]
    torch.save(changed, folder / "changed.pth")
    assert is_one_line(refusal(folder / "changed.pth"))


@settings(FUZZ, max_examples=150)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 3), part=st.sampled_from(["all", "end", "cut"]))
def test_a_damaged_file_is_refused_or_captions_as_before(folder, file, seed, flips, part):
    generator, damaged = random.Random(seed), bytearray(file)
    if part == "cut":
        del damaged[generator.randrange(len(damaged)) :]
    else:  # the end of the file lists its parts
        first = 0 if part == "all" else len(damaged) - 4000
        for _ in range(flips):
            damaged[generator.randrange(first, len(damaged))] ^= 1 << generator.randrange(8)
    path = folder / "damaged.pth"
    path.write_bytes(damaged)
    reason = refusal(path)
    assert is_one_line(reason)
    assert reason or caption(path) == caption(folder / "good.pth")


def test_the_newest_checkpoint_is_the_one_written_last(tmp_path, monkeypatch):
    monkeypatch.setattr("models.checkpoint.PRETRAINED", tmp_path / "pretrained.pth")
    with pytest.raises(UserError, match="no checkpoint under"):
        newest_checkpoint(tmp_path)
    for name in ("b", "a"):
        save_checkpoint(tmp_path / name / "best.pth", {"format": 2})
    os.utime(tmp_path / "b" / "best.pth", (1000, 1000))
    assert newest_checkpoint(tmp_path) == tmp_path / "a" / "best.pth"


def test_a_checkpoint_of_format_1_is_read(tmp_path):
    config = tiny(tmp_path, decoder={"kind": "lstm"})
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    captioner = Captioner(build_model(config, len(WORDS)).eval(), Vocabulary(WORDS), transform, config, CPU)
    new = captioner.checkpoint()
    old = {key.replace("project_image", "picture"): value for key, value in new["model"].items()}
    assert old.keys() != new["model"].keys()
    average = {f"module.{key.removeprefix('decoder.')}": value for key, value in old.items()}
    save_checkpoint(
        tmp_path / "old.pth", {**new, "format": 1, "model": old, "training": {"average": average}}
    )
    images, options = IMAGES[:2], captioner.options(beam=2)
    found = Captioner.load(tmp_path / "old.pth", compute=CPU).search(images, options)
    assert torch.equal(found.tokens, captioner.search(images, options).tokens)
    average = load_checkpoint(tmp_path / "old.pth").training["average"]
    assert "module.project_image.0.weight" in average
    assert not any("picture" in key for key in average)


def test_the_folder_of_a_run_stands_for_its_best_checkpoint(tmp_path, file):
    run = tmp_path / "my run"
    with pytest.raises(UserError, match="no checkpoint at"):
        Captioner.load(run, compute=CPU)
    run.mkdir()
    with pytest.raises(UserError, match=r"no checkpoint at .*my run/best\.pth"):
        Captioner.load(run, compute=CPU)
    (run / "best.pth").write_bytes(file)
    assert find_checkpoint(run) == run / "best.pth"
    caption(run)
    for path in ("nul\0byte", "long" * 1000):
        with pytest.raises(UserError, match="no checkpoint at"):
            Captioner.load(path, compute=CPU)
