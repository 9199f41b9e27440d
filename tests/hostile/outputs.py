"""Folders to write to: the user's own files stay, links are not followed, and a full disk loses nothing."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from reports.curves import draw_curves
from tests.hostile.attempt import Ended, Hostile, Outcome, either, nothing, refused, script, works
from tests.hostile.runs import RUN, resume

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MINE = b"my own file"
_CAPTION = ("inference_visualize", "data/images/00.png", "data/images/01.png", "--checkpoint", "model.pth")
_RESULTS = (
    "00_captioned.jpg", "00_attention.jpg", "captions.json", "captions.jsonl",
    "captions_result.html",
    "captions_result_files/0.jpg", "captions_result_files/mine.txt",
)  # fmt: skip


def _mine(path: str) -> Callable[[Path], None]:
    """A file of the user's."""

    def prepare(_: Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(_MINE)

    return prepare


def _link(path: str) -> Callable[[Path], None]:
    """A symbolic link to a file of the user's."""

    def prepare(folder: Path) -> None:
        (folder / "mine.txt").write_bytes(_MINE)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).symlink_to(folder / "mine.txt")

    return prepare


def _keeps(path: str) -> Callable[[Outcome], None]:
    """Whatever happens, the user's file is still there, as it was."""

    def check(outcome: Outcome) -> None:
        assert outcome.status in (0, 1, 2), outcome.text
        assert (outcome.folder / path).read_bytes() == _MINE, f"{path} was overwritten"

    return check


def _owned() -> list[Hostile]:
    """Results never replace a file that is not an earlier result."""
    found = []
    for name in _RESULTS:
        path, action = f"outputs/{name}", script(*_CAPTION, "--attention")
        found.append(Hostile(f"output: my own {name}", _mine(path), action, _keeps(path)))
        found.append(Hostile(f"output: a link as {name}", _link(path), action, _keeps("mine.txt")))
    rows, go_on = "outputs/captions.jsonl", script(*_CAPTION, "--resume")
    found.append(Hostile("output: my own rows to resume", _mine(rows), go_on, _keeps(rows)))
    found.append(Hostile("output: a link as rows to resume", _link(rows), go_on, _keeps("mine.txt")))
    into_images = script(
        "inference_visualize", "data/images", "--checkpoint", "model.pth", "--output", "data/images"
    )
    mine = "data/images/00_captioned.jpg"
    found.append(Hostile("output: into the images' folder", _mine(mine), into_images, _keeps(mine)))
    predictions = '{"20.png": "a dog"}'
    for name in ("scores.json", "captions.json"):
        path = f"eval/{name}"

        def prepare(folder: Path, path=path) -> None:
            (folder / "p.json").write_text(predictions)
            _mine(path)(folder)

        score = script("evaluate", "--config", "tiny.yaml", "--predictions", "p.json", "--output", "eval")
        found.append(Hostile(f"output: my own {name} of an evaluation", prepare, score, _keeps(path)))
    vocabulary = script("build_vocab", "--config", "tiny.yaml", "--output", "mine.json")
    found.append(
        Hostile("output: my own file as a vocabulary", _mine("mine.json"), vocabulary, _keeps("mine.json"))
    )
    figure = script("show_model", "--config", "tiny.yaml", "--output", "mine.png")
    found.append(Hostile("output: my own file as a figure", _mine("mine.png"), figure, _keeps("mine.png")))
    curves = script("visualize_loss", str(RUN), "--output", "mine.png")
    found.append(Hostile("output: my own file as curves", _mine("mine.png"), curves, _keeps("mine.png")))
    found.append(Hostile("output: a second time", _first_time, script(*_CAPTION), works))
    found.append(Hostile("output: a file as folder", _mine("outputs"), script(*_CAPTION), refused("outputs")))
    found.append(
        Hostile(
            "output: a link as folder", lambda f: Path("outputs").symlink_to(f), script(*_CAPTION), either
        )
    )
    return found


def _first_time(folder: Path) -> None:
    ended = script(*_CAPTION)(folder)
    assert ended.status == 0, ended.err


@contextlib.contextmanager
def file_size(limit: int) -> Iterator[None]:
    """No file may become larger than `limit` bytes: writes fail in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _full(name: str, action: Callable[[Path], object], limit: int) -> Hostile:
    """A disk that is full after `limit` bytes of a file."""

    def limited(folder: Path) -> object:
        with file_size(limit):
            return action(folder)

    return Hostile(f"disk full after {limit:,} bytes: {name}", nothing, limited, _whole)


def _failing(name: str, action: Callable[[Path], object], function: str, number: int) -> Hostile:
    """A disk on which the second flush or rename fails."""
    real, calls = getattr(os, function), []

    def fails(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    def failing(folder: Path) -> object:
        calls.clear()
        with mock.patch(f"os.{function}", fails):
            return action(folder)

    return Hostile(f"{errno.errorcode[number]} in {function}: {name}", nothing, failing, _whole)


def _whole(outcome: Outcome) -> None:
    """It works, or says what cannot be written; what was there before can still be read."""
    assert outcome.status == 0 or "cannot write" in outcome.text, outcome.text[-800:]
    for name in ("best.pth", "checkpoints.pth"):
        torch.load(outcome.folder / RUN / name, weights_only=True)
    leftovers = [path for path in outcome.changed if path.endswith(".tmp")]
    assert not leftovers, f"it left {leftovers}"


def _writers() -> dict[str, Callable[[Path], object]]:
    """All that writes files."""
    new = script("train", "--config", "tiny.yaml", "run.name=new")
    return {
        # With its curves, which tests/conftest.py takes from all other runs.
        "a new run": mock.patch("training.record.draw_curves", draw_curves)(new),
        "a resumed run": resume("train.epochs=2"),
        "a vocabulary": script("build_vocab", "--config", "tiny.yaml"),
        "captions": script(*_CAPTION),
        "scores": script("evaluate", "--checkpoint", "model.pth"),
        "curves": script("visualize_loss", str(RUN)),
        "a figure": script("show_model", "--config", "tiny.yaml"),
    }


def _disks() -> list[Hostile]:
    sizes = {
        "a new run": (0, 3000, 60_000),
        "a resumed run": (0, 60_000),
        "a vocabulary": (0, 50),
        "captions": (0, 3000),
        "scores": (0, 3000),
        "curves": (9000,),
        "a figure": (9000,),
    }
    found = []
    for name, action in _writers().items():
        if resource:
            found += [_full(name, action, size) for size in sizes[name]]
        found.append(_failing(name, action, "fsync", errno.ENOSPC))
        found.append(_failing(name, action, "replace", errno.EIO))
    small = mock.patch("shutil.disk_usage", return_value=shutil._ntuple_diskusage(10**9, 10**9, 1000))

    def on_a_full_disk(folder: Path) -> Ended:
        with small:
            return script("train", "--config", "tiny.yaml", "run.name=new")(folder)

    no_space = "disk with 1,000 free bytes: a new run is refused before it begins"
    found.append(Hostile(no_space, nothing, on_a_full_disk, refused("1.0 kB", written=True)))
    return found


INPUTS = [*_owned(), *_disks()]
