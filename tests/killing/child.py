"""A training in a forked process that kills itself at a moment, or counts the moments that it has.

The project's code knows nothing of this: functions are wrapped from outside.
"""

import functools
import importlib
import io
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import jobs.train  # noqa: F401  (imported once, for all processes that are forked)
import training.record

ROOT = Path(__file__).parents[2]
# Functions at whose beginning or end a run can be killed: those of the system that change files, and those
# of the project that lie between two changes of its state.
FUNCTIONS = (
    *("os:replace", "os:rename", "os:fsync", "os:unlink", "os:truncate"),
    *("torch:save", "data.feature_index:write_at", "data.feature_index:StoreWriter.append"),
    *("training.trainer:Trainer.step", "training.loss_log:LossLog.add", "training.loss_log:LossLog.write"),
    *("training.run:Run.open_folder", "training.resume:Resumption.restore", "training.run:Run.validate"),
    *("training.run:Run.finish_epoch", "training.run:Run.report_best", "training.record:Record.draw"),
)
_WRITERS = ("torch:save", "data.feature_index:write_at")  # in the middle of these, too


class Moment(NamedTuple):
    """The n-th call of a function: just before it, in the middle of what it writes, or just after it."""

    function: str
    when: str  # before, middle, after
    n: int


def train_in(folder: str, arguments: Sequence[str], moment: Moment | None, counts: str | None) -> None:
    """Run train.py in `folder`, in a process of its own. What it prints is added to out.txt.

    Args:
        moment: when to kill this process; None: never.
        counts: the file to write to, at the end, the seconds and how often each function was called.
    """
    os.chdir(folder)
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = map(os.fdopen, (1, 2), "ww")
    torch.set_num_threads(1)
    training.record.draw_curves = lambda logs, path: None  # takes longer than the rest of the run
    multiprocessing.set_start_method("fork", force=True)  # as in a program that was started by a shell
    sys.argv = ["train.py", *arguments]
    seen: Counter[str] = Counter()
    for name in FUNCTIONS:
        _watch(name, seen, moment)
    status, began = 0, time.monotonic()
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as error:
        status = int(error.code or 0)
    if counts:
        Path(counts).write_text(json.dumps({"seconds": time.monotonic() - began, "calls": seen}))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def moments_of(function: str) -> tuple[str, ...]:
    """When a run can be killed that is at this function."""
    return ("before", "middle", "after") if function in _WRITERS else ("before", "after")


def _watch(name: str, seen: Counter[str], moment: Moment | None) -> None:
    """Count the calls of a function, and kill this process at the moment."""
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original: Callable = getattr(owner, attribute)

    @functools.wraps(original)
    def watched(*args, **kwargs):
        seen[name] += 1
        when = moment.when if moment and (name, seen[name]) == (moment.function, moment.n) else ""
        if when == "middle":
            _write_half(original, *args)
        if when in ("before", "middle"):
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, watched)


def _write_half(function: Callable, *args) -> None:
    """Call torch.save or `write_at` with the first half of the bytes."""
    if function.__name__ == "save":
        content, path = args
        function(content, whole := io.BytesIO())
        Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    else:
        file, position, data = args
        function(file, position, data[: len(data) // 2])
