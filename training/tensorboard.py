"""The same log for TensorBoard: `tensorboard --logdir runs` (run.tensorboard=true)."""

from pathlib import Path

import numpy as np
from PIL import Image

from utils import UserError


def require_tensorboard() -> type:
    """The class that writes TensorBoard's files; raises UserError if its package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "run.tensorboard=true needs tensorboard: pip install -r requirements-extra.txt, or use false"
        ) from None
    return SummaryWriter


class Board:
    """Writes the rows of the log into TensorBoard's files in the run folder."""

    def __init__(self, folder: Path, steps: int):
        """`steps`: steps of the run so far; what an earlier process logged after them is discarded."""
        self.writer = require_tensorboard()(str(folder), purge_step=steps + 1)

    def add(self, row: dict) -> None:
        """Add a row of loss_log.txt: `train_loss` to the chart loss/train, a score to scores/."""
        for name, value in row.items():
            if isinstance(value, float) and name != "seconds":
                split, _, measure = name.partition("_")
                group = f"{measure}/{split}" if measure else "lr" if name == "lr" else f"scores/{name}"
                self.writer.add_scalar(group, value, row["step"])
        self.writer.flush()

    def add_samples(self, sheet: Image.Image, step: int) -> None:
        self.writer.add_image("samples", np.asarray(sheet), step, dataformats="HWC")
        self.writer.flush()
