"""Checkpoints from anywhere: nothing of one is used before all of it is checked, and no code in it is run."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import torch

from captioning import Captioner
from tests.helpers import CPU
from tests.hostile.attempt import Hostile, Outcome, either, nothing, refused, script
from tests.hostile.place import WORDS, small_captioner

# What a key may be instead of what it is.
_OTHERS = (
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [None],
    {},
    {"x": 1},
)


def content() -> dict:
    """A checkpoint as train.py writes it, to be changed."""
    return copy.deepcopy(small_captioner().checkpoint())


def sound(outcome: Outcome) -> None:
    """Refused by name, or a captioner that captions, with finite weights and one row per word."""
    either(outcome)
    if outcome.status == 2:
        refused("hostile.pth")(outcome)
        return
    captioner = outcome.value
    assert isinstance(captioner, Captioner)
    assert all(p.isfinite().all() for p in captioner.model.parameters()), "weights are not finite"
    assert all(isinstance(word, str) for word in captioner.vocabulary.words), "words that are no text"
    assert len(set(captioner.vocabulary.words)) == len(captioner.vocabulary), "a word twice"


def load(_: Path) -> Captioner:
    """Load hostile.pth, and caption an image with it."""
    captioner = Captioner.load("hostile.pth", compute=CPU)
    next(captioner(["data/images/00.png"]))
    return captioner


def _with(name: str, change: Callable[[dict], object], promise: Callable[[Outcome], None] = sound) -> Hostile:
    """A checkpoint with a change; `change` may return other content."""

    def prepare(folder: Path) -> None:
        checkpoint = content()
        changed = change(checkpoint)
        torch.save(checkpoint if changed is None else changed, folder / "hostile.pth")

    return Hostile(f"checkpoint: {name}", prepare, load, promise)


def _at(path: tuple[str, ...], value: object) -> Callable[[dict], None]:
    """The change that puts `value` at `path`."""

    def change(checkpoint: dict) -> None:
        *parents, last = path
        for parent in parents:
            checkpoint = checkpoint[parent]
        checkpoint[last] = value

    return change


def _without(path: tuple[str, ...]) -> Callable[[dict], None]:
    def change(checkpoint: dict) -> None:
        *parents, last = path
        for parent in parents:
            checkpoint = checkpoint[parent]
        del checkpoint[last]

    return change


def _keys() -> list[Hostile]:
    """Every key left out, and every key with a value of another type or size."""
    checkpoint = content()
    paths = [(key,) for key in checkpoint]
    paths += [("transform", key) for key in checkpoint["transform"]]
    paths += [("config", section) for section in ("encoder", "decoder")]
    found = [_with(f"without {'.'.join(path)}", _without(path)) for path in paths]
    for path in paths:
        found += [_with(f"{'.'.join(path)} is {str(other)[:12]}", _at(path, other)) for other in _OTHERS]
    sizes = [
        ("config", "decoder", key) for key in ("embed_dim", "hidden_dim", "attention_dim", "layers", "kind")
    ]
    sizes += [("config", "encoder", key) for key in ("image_size", "grid", "name", "layer")]
    for path in sizes:
        found += [_with(f"{'.'.join(path)} is {str(other)[:12]}", _at(path, other)) for other in _OTHERS[:9]]
    return found


def _vocabularies() -> list[Hostile]:
    lists: dict[str, list] = {
        "a word fewer": WORDS[:-1],
        "a word more": [*WORDS, "dog"],
        "a word twice": [*WORDS[:-1], "a"],
        "a number": [*WORDS[:-1], 7],
        "null": [*WORDS[:-1], None],
        "a list": [*WORDS[:-1], ["dog"]],
        "no special words": [*WORDS[4:], "w", "x", "y", "z"],
        "special words in another order": [WORDS[1], WORDS[0], *WORDS[2:]],
        "special words alone": WORDS[:4],
    }
    found = [
        _with(f"vocabulary: {n}", _at(("vocabulary",), words), refused("hostile.pth"))
        for n, words in lists.items()
    ]

    def with_escapes(folder: Path) -> None:
        checkpoint = content()
        checkpoint["vocabulary"] = [*WORDS[:-1], "\x1b]0;owned\x07"]
        for value in checkpoint["model"].values():
            if value.shape == (len(WORDS),):  # the bias of the words: this one is always said
                value[-1] = 100.0
        torch.save(checkpoint, folder / "hostile.pth")

    show = script("inference_visualize", "data/images/00.png", "--checkpoint", "hostile.pth")
    found.append(Hostile("checkpoint: a word of escape sequences", with_escapes, show, either))
    return found


def _tensors() -> list[Hostile]:
    """Weights of other shapes, types and values."""
    name = max(content()["model"], key=lambda key: content()["model"][key].dim() * ("decoder" in key))
    changes: dict[str, Callable[[torch.Tensor], object]] = {
        "NaN": lambda t: t.fill_(float("nan")),
        "one NaN": lambda t: t.index_fill(0, torch.tensor([0]), float("nan")),
        "infinity": lambda t: t.fill_(float("inf")),
        "a row more": lambda t: torch.cat([t, t[:1]]),
        "transposed": lambda t: t.T.contiguous(),
        "flat": lambda t: t.flatten(),
        "empty": lambda t: t[:0],
        "huge, of one number": lambda _: torch.zeros(1).expand(10**6, 10**6),
        "float64": lambda t: t.double(),
        "int64": lambda t: t.long(),
        "complex": lambda t: t.to(torch.complex64),
        "booleans": lambda t: t.bool(),
        "sparse": lambda t: t.to_sparse(),
        "on no device": lambda t: t.to("meta"),
        "a list": lambda t: t.tolist(),
        "a number": lambda _: 1.0,
        "null": lambda _: None,
    }

    def changed(change: Callable[[torch.Tensor], object]) -> Callable[[dict], None]:
        def apply(checkpoint: dict) -> None:
            checkpoint["model"][name] = change(checkpoint["model"][name])

        return apply

    found = [_with(f"weights: {kind}", changed(change)) for kind, change in changes.items()]
    found += [
        _with("weights: one is missing", _without(("model", name)), refused("hostile.pth")),
        _with("weights: one too many", _at(("model", "x"), torch.zeros(1)), refused("hostile.pth")),
        _with("weights: a number as name", lambda c: c["model"].update({7: torch.zeros(1)})),
        _with(
            "weights: of the encoder only",
            lambda c: c.update(model={k: v for k, v in c["model"].items() if "enc" in k}),
        ),
        _with(
            "weights: of the decoder only",
            lambda c: c.update(model={k: v for k, v in c["model"].items() if "dec" in k}),
        ),
    ]
    return found


class _Runs:
    """Pickled, it writes a file as soon as it is loaded."""

    def __reduce__(self):
        return os.system, ("touch it_ran",)


def no_code_ran(outcome: Outcome) -> None:
    refused("hostile.pth")(outcome)
    assert not (outcome.folder / "it_ran").exists(), "code from the file was run"


def _files() -> list[Hostile]:
    """Files that are no checkpoints."""
    found = [
        _with("code", lambda _: _Runs(), no_code_ran),
        _with("code in a key", lambda c: c["config"].update(run=_Runs()), no_code_ran),
        _with("a list", lambda _: [1], refused("hostile.pth")),
        _with("a tensor", lambda _: torch.zeros(1), refused("hostile.pth")),
        _with("weights alone", lambda c: c["model"], refused("hostile.pth")),
        _with("format 1 without what it had", lambda _: {"format": 1}, refused("hostile.pth")),
        _with(
            "format 1 with lists",
            lambda _: {"format": 1, "model": [], "training": []},
            refused("hostile.pth"),
        ),
        _with("format 1 with averages", lambda c: c.update(format=1, training={"average": 7}), sound),
        _with("format 99", _at(("format",), 99), refused("hostile.pth")),
    ]
    kinds: dict[str, Callable[[Path], object]] = {
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"not a checkpoint"),
        "an empty archive": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
        "zeros": lambda path: path.write_bytes(bytes(9999)),
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "loop": lambda path: path.symlink_to("hostile.pth"),
        "zero": lambda path: path.symlink_to("/dev/zero"),
        "absent": nothing,
    }
    for name, make in kinds.items():

        def prepare(folder: Path, make=make) -> None:
            make(folder / "hostile.pth")

        found.append(Hostile(f"checkpoint: {name}", prepare, load, refused("hostile.pth")))
    return found


_ALL_KEYS = _keys()
INPUTS = [*_ALL_KEYS[::6], *_vocabularies(), *_tensors(), *_files()]
MORE = [hostile for hostile in _ALL_KEYS if hostile not in INPUTS]
