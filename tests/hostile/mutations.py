"""Valid files and configurations with random damage: bytes changed, keys dropped, types and sizes changed."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from config import Config
from config_reading import load_config, make_config
from data.transforms import read_image
from data.vocab import Vocabulary
from metrics.predictions import read_predictions
from reports.loss_log import read_log
from tests.hostile import captions, checkpoints, configurations, stores, texts
from tests.hostile.attempt import Hostile, Outcome, either, nothing
from tests.hostile.images import FORMATS, image_bytes
from tests.hostile.place import WORDS

_ODD = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e-300, 1e300, math.inf, math.nan),
        *("", "x", "\0", "\ud800", "\x1b[31m", "../x", "x" * 5000),
        *([], [None], [[]], {}, {"x": 1}, {"": None}),
    ]
)


@st.composite
def damaged_bytes(draw: DrawFn, content: bytes) -> bytes:
    """The content with a few bytes changed, cut out, repeated or put in."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(damaged)))
        length = draw(st.sampled_from([1, 1, 2, 4, 16, 200]))
        match draw(st.sampled_from(["flip", "set", "cut", "end", "repeat", "insert"])):
            case "flip" if at < len(damaged):
                damaged[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                damaged[at : at + length] = bytes([draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))]) * length
            case "cut":
                del damaged[at : at + length]
            case "end":
                del damaged[at:]
            case "repeat":
                damaged[at:at] = damaged[at : at + length] * draw(st.integers(1, 20))
            case "insert":
                damaged[at:at] = draw(st.binary(max_size=length))
    return bytes(damaged)


@st.composite
def damaged_value(draw: DrawFn, value: object) -> object:
    """A nested value in which one thing is dropped, doubled or replaced by something of another kind."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        changed: dict | list = value.copy()
        match draw(st.sampled_from(["deeper", "deeper", "deeper", "drop", "add"])):
            case "drop":
                del changed[key]
            case "add" if isinstance(changed, list):
                changed.insert(key, draw(st.sampled_from(value)))
            case "add" if isinstance(changed, dict):
                changed[draw(st.sampled_from(["x", "", "\0", key]))] = draw(_ODD)
            case _:
                changed[key] = draw(damaged_value(value[key]))
        return changed
    if isinstance(value, int | float) and not isinstance(value, bool) and draw(st.booleans()):
        return value * draw(st.sampled_from([-1, 0, 2, 10, 1000, 10**9]))
    return draw(_ODD)


class Door(NamedTuple):
    """A way in: damaged content, where it is put, how it is read, and what is promised."""

    name: str
    content: SearchStrategy
    hostile: Callable[[object], Hostile]
    examples: int  # tried every day


def _file(
    name: str, file: str, content: SearchStrategy, action: Callable, promise: Callable, examples: int
) -> Door:
    """A file with damaged bytes."""

    def write(content: object) -> Hostile:
        return Hostile(
            f"{name}: {content!r:.300}", lambda _: Path(file).write_bytes(content), action, promise
        )

    return Door(name, content, write, examples)


def _is_an_image(outcome: Outcome) -> None:
    """An RGB image, or an OSError that says why not."""
    either(outcome)
    value = outcome.value
    assert isinstance(value, OSError) or (value.mode == "RGB" and min(value.size) > 0), value  # type: ignore[attr-defined]


def _read_image(_: Path) -> object:
    try:
        return read_image("damaged")
    except OSError as error:
        return error


def _overrides(value: object) -> Hostile:
    return Hostile(
        f"override: {value!r:.300}",
        nothing,
        lambda _: make_config({}, [value]),  # type: ignore[list-item]
        configurations.is_a_configuration,
    )


def _checkpoint(value: object) -> Hostile:
    """A checkpoint in which something but its weights is damaged."""

    def write(_: Path) -> None:
        model = {"model": checkpoints.content()["model"]}
        torch.save({**model, **value} if isinstance(value, dict) else value, "hostile.pth")

    return Hostile(f"checkpoint: {value!r:.1000}", write, checkpoints.load, checkpoints.sound)


def _a_store(value: object) -> Hostile:
    """A store of which the bytes of one of the files are damaged: (the number of the file, a seed)."""
    part, seed = value  # type: ignore[misc]

    def damage(*paths: Path) -> None:
        content = bytearray(paths[part].read_bytes())
        generator = torch.Generator().manual_seed(seed)
        for at in torch.randint(len(content), (3,), generator=generator).tolist():
            content[at] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        paths[part].write_bytes(content)

    return stores.damaged(f"random damage {value}", damage)


def _of_checkpoints() -> list[Door]:
    checkpoint = checkpoints.content()
    file = io.BytesIO()
    torch.save(checkpoint, file)
    weights = checkpoint.pop("model")
    assert weights
    read = checkpoints.load, checkpoints.sound
    return [
        _file("bytes of a checkpoint", "hostile.pth", damaged_bytes(file.getvalue()), *read, 15),
        Door("values of a checkpoint", damaged_value(checkpoint), _checkpoint, 30),
    ]


def _of_settings() -> list[Door]:
    keys = st.sampled_from(configurations.keys())
    values = st.one_of(st.sampled_from(configurations.VALUES), st.text(max_size=20), st.floats().map(str))
    return [
        Door("overrides", st.builds("{}={}".format, keys, values), _overrides, 60),
        Door("overrides of any kind", st.text(max_size=30), _overrides, 30),
    ]


def _of_texts() -> list[Door]:
    """Files of text: first their bytes, then the values in those that are JSON or YAML."""
    vocabulary = {
        "built_from": {"captions": ["captions.csv"], "digest": "0" * 64, "min_freq": 1},
        "words": WORDS,
    }
    predictions = [{"image_id": 1, "caption": "A dog ."}, {"image": "b.jpg", "caption": "A cat ."}]
    log = "event,epoch,step,lr\nepoch,1,2,0.1\nstep,2,3,0.1\n"
    contents: dict[str, object] = {
        "v.json": vocabulary,
        "c.yaml": Config().as_dict(),
        "p.json": predictions,
        "log.txt": log,
        **captions.FILES,
        "karpathy.json": json.loads(captions.KARPATHY),
        "coco.json": json.loads(captions.COCO),
    }
    readers: dict[str, tuple[Callable, Callable]] = {
        "v.json": (lambda _: Vocabulary.load(Path("v.json")), either),
        "c.yaml": (lambda _: load_config(Path("c.yaml")), configurations.is_a_configuration),
        "p.json": (lambda _: read_predictions(Path("p.json"), texts.TABLE), either),
        "log.txt": (lambda _: read_log(Path("log.txt")), either),
    }
    doors = []
    for name, content in contents.items():
        reader = readers.get(name, (captions.read(name), captions.is_a_table))
        dump = yaml.safe_dump if name.endswith("yaml") else json.dumps
        text = content if isinstance(content, str) else dump(content)
        doors.append(_file(f"bytes of {name}", name, damaged_bytes(text.encode()), *reader, 20))
        if text is not content:
            values = damaged_value(content).map(dump).map(str.encode)
            doors.append(_file(f"values of {name}", name, values, *reader, 30))
    return doors


def _of_images() -> list[Door]:
    return [
        _file(
            f"bytes of a {kind}", "damaged", damaged_bytes(image_bytes(kind)), _read_image, _is_an_image, 20
        )
        for kind in FORMATS
    ]


_STORE = Door("bytes of a feature store", st.tuples(st.integers(0, 1), st.integers(0, 2**32)), _a_store, 15)
DOORS = {d.name: d for d in (*_of_checkpoints(), *_of_settings(), *_of_texts(), *_of_images(), _STORE)}
