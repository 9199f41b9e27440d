"""The folder of a run: used by one training at a time, and never written over."""

import contextlib
import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from files import cannot_write, locked, remove_leftovers
from models.checkpoint import size_of
from processes import is_main
from utils import UserError

CHECKPOINT, BEST, LOG = "checkpoints.pth", "best.pth", "loss_log.txt"
_LOCK = "lock"
# In the order in which they are set aside: a run without its checkpoint cannot be resumed by mistake, and
# the log, which shows that a folder is a run's, goes last.
_WRITTEN = (
    *(CHECKPOINT, BEST, "config.yaml", "vocab.json", "loss_curve.png", "samples.png"),
    *("eval-*", "events.out.tfevents.*", LOG),
)


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder. A folder that stays without a run is removed again.

    Raises:
        UserError: another training uses the folder, or it cannot be written to.
    """
    if not is_main():  # which owns it for the others
        yield
        return
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    busy = f"{folder} is in use by another training; wait until it ends, or choose another run.name"
    with locked(folder / _LOCK, busy):
        remove_leftovers(folder)
        try:
            yield
        finally:
            if not _written(folder):
                with contextlib.suppress(OSError):  # a folder with other files stays
                    (folder / _LOCK).unlink()
                    for path in created:
                        path.rmdir()


def require_unused(folder: Path, overwrite: bool) -> None:
    """Raise UserError if a new run would write over files; `overwrite` allows it in the folder of a run."""
    names = {path.name for path in _written(folder)}
    if names and not names & {CHECKPOINT, LOG}:
        raise UserError(
            f"{folder} contains {sorted(names)[0]}, but is not the folder of a run; choose another name with "
            "run.name=NAME, or move the file"
        )
    if names & {CHECKPOINT, BEST} and not overwrite:
        raise UserError(
            f"{folder} already contains a run; continue it with --resume, start again with --overwrite, "
            "which sets it aside, or choose another name with run.name=NAME"
        )


def set_aside(folder: Path) -> None:
    """Move the files of an earlier run into `before-1/`, or the next free number, and say so.

    What a run has written that was killed before its first checkpoint is of no use, and is written over.
    """
    if not any((folder / name).exists() for name in (CHECKPOINT, BEST)):
        return
    written = _written(folder)
    names = (folder / f"before-{number}" for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    try:
        aside.mkdir()
        for path in written:
            path.rename(aside / path.name)
    except OSError as error:
        raise cannot_write(aside, error) from None
    print(f"the earlier run in {folder} is now in {aside}")


def checkpoint_space(folder: Path, model: dict, average: dict | None, trained: Sequence[torch.Tensor]) -> int:
    """Bytes that the checkpoints of a run will need in addition to those that exist, at their peak.

    Args:
        model: what is written to best.pth; `average` the moving average of its weights, if there is one.
        trained: the parameters that AdamW keeps two moments of.
    """
    best = size_of(model)
    latest = best + size_of(average) + 2 * size_of(list(trained))
    existing = [folder / name for name in (CHECKPOINT, BEST)]
    # A new file is written beside the old one.
    return max(0, 2 * latest + best - sum(path.stat().st_size for path in existing if path.exists()))


def run_to_resume(path: Path) -> Path:
    """The run folder that `--resume` names, directly or by its checkpoints.pth.

    Raises:
        UserError: there is no run, or it has no checkpoint.
    """
    folder = path.parent if path.name == CHECKPOINT else path
    if not folder.is_dir():
        what = "is a file, not the folder of a run" if folder.is_file() else "does not exist"
        raise UserError(f"--resume: {path} {what}; pass the folder of a run, such as runs/NAME")
    if not (folder / CHECKPOINT).exists():
        raise UserError(
            f"--resume: {folder} has no {CHECKPOINT}; if its training stopped before the first checkpoint, "
            "start it again without --resume"
        )
    return folder if folder.name.strip(".") else folder.resolve()


def resume_command(folder: Path, *overrides: str) -> str:
    """The command that continues the run, for a shell."""
    return shlex.join(["python", "train.py", "--resume", str(folder), *overrides])


def _written(folder: Path) -> list[Path]:
    """What trainings, and evaluations of their models, have written into the folder."""
    return [path for name in _WRITTEN for path in sorted(folder.glob(name))]
