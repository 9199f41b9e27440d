"""Trainings that are killed and resumed, compared with the same trainings left alone."""

import json
import multiprocessing
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml

from models.checkpoint import save_checkpoint
from tests.helpers import tiny, write_dataset
from tests.hostile.place import ENCODER, small_captioner
from tests.killing.child import Moment, moments_of, train_in

# What is trained: each kind of run has other files, other workers and another state.
SETTINGS: dict[str, dict] = {
    "cross entropy, features of several views": {
        "data": {"augment": ["crop"], "captions_per_image": 1},
        "features": {"views": 2},
        "train": {"scheduled_sampling": 0.5},
    },
    "cross entropy, images read by a worker": {
        "data": {"augment": ["crop"], "captions_per_image": 1, "workers": 1},
        "encoder": {"fine_tune": "features.1"},
        "train": {"average": 0.9, "schedule": "plateau", "plateau_patience": 0},
    },
    "self-critical": {
        "train": {"objective": "self_critical", "init_from": "model.pth"},
        "rl": {"samples": 2},
    },
    "actor-critic": {"train": {"objective": "actor_critic", "init_from": "model.pth"}, "rl": {"samples": 2}},
}
_COMMON = {
    "encoder": ENCODER,
    "decoder": {"embed_dim": 8, "hidden_dim": 8, "attention_dim": 8},
    "train": {"epochs": 2, "batch_size": 8, "log_every": 1, "checkpoint_every": 1},
}
_RUN = Path("runs/tiny")
_SECONDS = 300  # no run takes longer


class Differs(Exception):
    """A run that was killed and resumed did not end like the one left alone."""


@dataclass
class Whole:
    """A training left alone: its folder, how long it took, and how often it called each function."""

    folder: Path
    seconds: float
    calls: dict[str, int]

    def moment(self, draw: random.Random) -> Moment | float:
        """A random moment: at a call of one of the functions, or after some seconds."""
        if draw.random() < 1 / 4:
            return draw.uniform(0, self.seconds)
        function = draw.choice(list(self.calls))
        return Moment(function, draw.choice(moments_of(function)), draw.randint(1, self.calls[function]))


def prepare(folder: Path, name: str) -> Path:
    """A folder with data, a model to start from, and the configuration tiny.yaml of SETTINGS[name]."""
    write_dataset(folder / "data")
    sections = {
        key: {**_COMMON.get(key, {}), **SETTINGS[name].get(key, {})} for key in _COMMON | SETTINGS[name]
    }
    config = tiny(Path("data"), **sections)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config.as_dict()))
    save_checkpoint(folder / "model.pth", small_captioner().checkpoint())
    return folder


def run_alone(folder: Path) -> Whole:
    """Train in `folder`, which is prepared, from beginning to end."""
    counts = folder / "calls.json"
    status = _train(folder, None, counts)
    if status:
        raise Differs(f"the run left alone ended with {status}: {_last_words(folder)}")
    return Whole(folder, **json.loads(counts.read_text()))


def kill_and_resume(whole: Whole, folder: Path, moments: list[Moment | float]) -> int:
    """Train in `folder`, killed at each of the moments and then resumed; returns how often it was killed.

    Raises Differs if the run does not end like `whole`.
    """
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("runs", "cache", "out.txt"))
    kills = 0
    for moment in moments:
        status = _train(folder, moment)
        if status not in (0, -9):
            raise Differs(f"{moments}: it ended with {status}: {_last_words(folder)}")
        kills += status == -9
    if status := _train(folder, None):
        raise Differs(f"{moments}: resumed, it ended with {status}: {_last_words(folder)}")
    if found := difference(whole.folder, folder):
        raise Differs(f"{moments}: {found}")
    return kills


def draw_moments(whole: Whole, draw: random.Random) -> list[Moment | float]:
    """One moment, and for a third of the runs another one during their resumption, and so on."""
    moments = [whole.moment(draw)]
    while draw.random() < 1 / 3:
        moments.append(whole.moment(draw))
    return moments


def _train(folder: Path, moment: Moment | float | None, counts: Path | None = None) -> int:
    """Begin or resume the training in `folder`; returns its exit status, -9 if it was killed."""
    has_checkpoint = (folder / _RUN / "checkpoints.pth").exists()
    arguments = ["--resume", str(_RUN)] if has_checkpoint else ["--config", "tiny.yaml"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killing.child"])
    event = moment if isinstance(moment, Moment) else None
    process = context.Process(target=train_in, args=(str(folder), arguments, event, counts and str(counts)))
    process.start()
    process.join(moment if isinstance(moment, float) else _SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        if not isinstance(moment, float):
            return 124  # it waits for something
    assert process.exitcode is not None
    return process.exitcode


def difference(whole: Path, resumed: Path) -> str:
    """What is not alike in two folders of a run; empty if they ended alike, bit for bit."""
    a, b = whole / _RUN, resumed / _RUN
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (a, b)]
    if names[0] != names[1]:
        return f"other files: {set(names[0]) ^ set(names[1])}"
    for name in ("config.yaml", "samples.png"):  # loss_curve.png marks where the run was resumed
        if (a / name).read_bytes() != (b / name).read_bytes():
            return f"another {name}"
    words = [json.loads((folder / "vocab.json").read_text("utf-8"))["words"] for folder in (a, b)]
    if words[0] != words[1]:
        return "another vocab.json"
    for name in ("best.pth", "checkpoints.pth"):
        contents = [_timeless(torch.load(folder / name, weights_only=True)) for folder in (a, b)]
        if found := _first_difference(*contents):
            return f"{name}: another {found}"
    logs = [pd.read_csv(folder / "loss_log.txt").drop(columns="seconds") for folder in (a, b)]
    logs = [log[log["event"] != "resume"].reset_index(drop=True) for log in logs]
    return "" if logs[0].equals(logs[1]) else "another loss_log.txt"


def _timeless(checkpoint: dict) -> dict:
    """A checkpoint without times, without its place, and without the rows that record resumptions."""
    if training := checkpoint.get("training"):
        del training["seconds"], training["directory"]  # the directory in which the run was started
        rows = [row for row in training["history"] if row["event"] != "resume"]
        training["history"] = [{key: row[key] for key in row if key != "seconds"} for row in rows]
    return checkpoint


def _first_difference(a: object, b: object, at: str = "") -> str:
    """Where two nested structures of plain types and tensors differ; empty if they are the same."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return "" if same else at or "tensor"
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = (_first_difference(a[key], b[key], f"{at}.{key}") for key in a)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        found = (_first_difference(x, y, f"{at}.{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    else:
        return "" if a == b or (a != a and b != b) else at or "content"
    return next(filter(None, found), "")


def _last_words(folder: Path) -> str:
    return (folder / "out.txt").read_text("utf-8")[-1000:]
