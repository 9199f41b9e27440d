"""Odd run folders: a resumption does what was asked, or is refused before anything is written."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from tests.hostile.attempt import Hostile, Outcome, either, nothing, refused, says, script, works

RUN = Path("runs/tiny")
_LATEST = RUN / "checkpoints.pth"
_OTHERS = (None, True, -1, 10**9, 1.5, float("nan"), "x", [None], {"x": 1})


def resume(*overrides: str) -> Callable[[Path], object]:
    """The action that resumes the run, without its curves, which take most of a second to draw."""
    return _resume_at(str(RUN), *overrides)


def _resume_at(run: str, *overrides: str) -> Callable[[Path], object]:
    return mock.patch("training.record.draw_curves", nothing)(script("train", "--resume", run, *overrides))


def _training(name: str, change: Callable[[dict], object]) -> Hostile:
    """A run whose checkpoint has another state of training."""

    def prepare(_: Path) -> None:
        checkpoint = torch.load(_LATEST, weights_only=True)
        change(checkpoint["training"])
        torch.save(checkpoint, _LATEST)

    return Hostile(f"run: {name}", prepare, resume("train.epochs=2"), _refused_or_finished)


def _refused_or_finished(outcome: Outcome) -> None:
    """Refused, or trained to a model whose weights are numbers."""
    either(outcome)
    if outcome.status == 0:
        for name in ("best.pth", "checkpoints.pth"):
            weights = torch.load(outcome.folder / RUN / name, weights_only=True)["model"].values()
            assert all(weight.isfinite().all() for weight in weights), f"{name} is not finite"


_STATE = (
    "optimizer", "objective", "schedule", "scaler", "average", "steps", "random", "epoch", "batch",
    "averages", "interval", "best", "best_epoch", "seconds", "history", "samples",
)  # fmt: skip


def _states() -> list[Hostile]:
    """Every part of the state with every other value, and without it."""
    found = []
    for key in _STATE:
        found += [
            _training(f"{key} is {str(other)[:9]}", lambda t, key=key, other=other: t.update({key: other}))
            for other in _OTHERS
        ]
        found.append(_training(f"training without {key}", lambda t, key=key: t.pop(key, None)))
    return found


def _changed(key_value: str, promise: Callable[[Outcome], None], *also: str) -> Hostile:
    return Hostile(f"run resumed with {key_value}", nothing, resume(key_value, *also), promise)


def _lr_is_applied(outcome: Outcome) -> None:
    """The learning rate that was asked for is announced, and is the one in the log."""
    says("train.lr", "0.0001")(outcome)
    with open(outcome.folder / RUN / "loss_log.txt") as file:
        last = [row for row in csv.DictReader(file) if row["event"] == "step"][-1]
    assert float(last["lr"]) <= 0.0001, f"the learning rate is {last['lr']}"


def _settings() -> list[Hostile]:
    """What may change in a resumption, and what may not."""
    refusals = (
        "data.min_freq=3", "encoder.image_size=64", "encoder.name=resnet18", "encoder.layer=features.4",
        "decoder.hidden_dim=9", "decoder.kind=lstm", "train.objective=self_critical", "train.monitor=loss",
        "run.seed=7",
    )  # fmt: skip
    found = [_changed(text, refused(text.split("=")[0]), "train.epochs=2") for text in refusals]
    found += [
        _changed("train.lr=0.0001", _lr_is_applied, "train.epochs=3"),
        _changed("train.epochs=2", says("train.epochs")),
        _changed("train.weight_decay=0.1", says("train.weight_decay"), "train.epochs=2"),
        _changed("data.captions_per_image=1", says("data.captions_per_image 2 -> 1"), "train.epochs=2"),
        _changed("train.patience=1", works, "train.epochs=2"),
        _changed("data.workers=1", works, "train.epochs=2"),
        _changed("train.batch_size=4", either, "train.epochs=2"),
    ]
    return found


def _changed_data(name: str, change: Callable[[Path], object]) -> Hostile:
    """The captions file changed since the run began."""
    captions = Path("data/captions.csv")
    return Hostile(f"run: {name}", lambda _: change(captions), resume("train.epochs=2"), refused("data"))


def _append(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text() + text)


def _replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


def _folders() -> list[Hostile]:
    def best_as_latest(_: Path) -> None:
        shutil.copy(RUN / "best.pth", _LATEST)

    def log_is(text: str | bytes) -> Callable[[Path], object]:
        content = text if isinstance(text, bytes) else text.encode()
        return lambda _: (RUN / "loss_log.txt").write_bytes(content)

    def moved_to(name: str) -> Callable[[Path], object]:
        return lambda folder: (folder / RUN).rename(folder / "runs" / name)

    draw = script("visualize_loss", str(RUN))
    logs = {
        "empty": "",
        "zeros": bytes(999),
        "not a log": "hello\n",
        "only a header": "event,epoch,step\n",
        "text for numbers": "event,epoch,step,lr\nepoch,one,two,three\n",
        "numbers that are none": "event,epoch,step,lr,val_loss\nepoch,1,2,nan,inf\nepoch,2,4,-inf,1e999\n",
        "huge numbers": f"event,epoch,step\nepoch,{'9' * 400},{'9' * 5000}\n",
        "negative numbers": "event,epoch,step\nepoch,-1,-2\n",
        "not UTF-8": b"event,epoch,step\nepoch,1,\xff\xfe\n",
        "columns that occur twice": "event,epoch,step,step\nepoch,1,2,3\n",
        "escape sequences": "event,epoch,step,train_\x1b[31m\nepoch,1,2,3\n",
        "an open quote": 'event,epoch,step\nepoch,1,"2\nepoch,2,4\n',
    }
    found = [Hostile(f"log: {name}", log_is(text), draw, either) for name, text in logs.items()]
    found += [
        Hostile("run: the log is damaged", log_is(bytes(999)), resume("train.epochs=2"), works),
        Hostile(
            "run: the log is gone", lambda _: (RUN / "loss_log.txt").unlink(), resume("train.epochs=2"), works
        ),
        Hostile("run: best.pth as checkpoints.pth", best_as_latest, resume(), refused("checkpoints.pth")),
        Hostile(
            "run: an empty checkpoint",
            lambda _: _LATEST.write_bytes(b""),
            resume(),
            refused("checkpoints.pth"),
        ),
        Hostile("run: no checkpoint", lambda _: _LATEST.unlink(), resume(), refused("runs/tiny")),
        Hostile("run: the file of the checkpoint", nothing, _resume_at(str(_LATEST)), either),
        Hostile(
            "run: a folder with a space",
            moved_to("a b"),
            _resume_at("runs/a b", "train.epochs=2"),
            either,
        ),
        Hostile(
            "run: a folder with brackets",
            moved_to("[x]"),
            _resume_at("runs/[x]", "train.epochs=2"),
            either,
        ),
        Hostile("run: from within its folder", nothing, _within, either),
        Hostile(
            "run: again without --resume",
            nothing,
            script("train", "--config", "tiny.yaml"),
            refused("runs/tiny"),
        ),
        _changed_data("a new image", _append("20.png,One more.,val\n")),
        _changed_data("another caption", _replace("A red half", "A blue half")),
        _changed_data("an image in another split", _replace("16.png,A", "16.png,B")),
        _changed_data("an image less", _replace("03.png", "02.png")),
    ]
    return found


def _within(folder: Path) -> object:
    return _resume_at(".", "train.epochs=2")(folder / RUN)


_ALL_STATES = _states()
INPUTS = [*_ALL_STATES[::20], *_settings(), *_folders()]
MORE = [hostile for hostile in _ALL_STATES if hostile not in INPUTS]
