"""Writing files completely or not at all, and reading and writing checkpoints."""

import contextlib
import os
from pathlib import Path

import torch

from utils import UserError

CHECKPOINT_FORMAT = 2


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    Readers find the old file or the new one, never half of one, even if the process is killed while writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a dictionary of plain types and tensors, atomically."""
    try:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
    except OSError as error:
        raise UserError(f"cannot write the checkpoint {path}: {error.strerror}") from None


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU without running code from it.

    Raises:
        UserError: there is no such file, or it is not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; train one with train.py or pass --checkpoint FILE")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        checkpoint = None  # the unpickler may raise anything for a file that is not a checkpoint
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this project (or is damaged); use a run's best.pth")
    if checkpoint["format"] == 1:
        _upgrade(checkpoint)
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {checkpoint['format']}, this code reads {CHECKPOINT_FORMAT}; "
            "use the version of the code that wrote it"
        )
    return checkpoint


def _upgrade(checkpoint: dict) -> None:
    """Format 1 -> 2: one layer of the LSTM decoder was renamed."""
    states = [checkpoint["model"], checkpoint.get("training", {}).get("average") or {}]
    for state in states:
        for key in [key for key in state if "decoder.picture." in key or key.startswith("module.picture.")]:
            state[key.replace("picture.", "project_image.")] = state.pop(key)
    checkpoint["format"] = 2


def newest_checkpoint(folder: Path) -> Path:
    """The most recent best.pth of the runs in `folder`; raises UserError if there is none."""
    found = sorted(folder.glob("*/best.pth"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            f"no checkpoint under {folder.absolute()}; train one with train.py or pass --checkpoint FILE"
        )
    print(f"checkpoint: {found[-1]}")
    return found[-1]
