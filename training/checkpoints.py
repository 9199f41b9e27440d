"""What the checkpoints of a run contain, and writing them while its training goes on."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from training.run import Run


class CheckpointWriter:
    """Copies a checkpoint in memory, and writes the copy in a thread. At most one copy exists at a time."""

    def __init__(self, folder: Path):
        self.folder, self.thread = folder, ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def write(self, name: str, checkpoint: dict) -> None:
        """Begin to write a file. Raises UserError if the one before it could not be written."""
        self.wait()
        self.pending = self.thread.submit(save_checkpoint, self.folder / name, _copied(checkpoint))

    def wait(self) -> None:
        """Wait until everything is written; raises UserError if it cannot be."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Let the thread end, however the training has ended: others may use the folder from then on."""
        self.thread.shutdown()


def _copied(content: Any) -> Any:
    """Nested dictionaries and lists with copies of all tensors in main memory."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_copied(value) for value in content]
    return content


def state_of(run: "Run") -> dict[str, Any]:
    """Everything but the model that a run continues from; see TrainingState and `Resumption.restore`."""
    phase, compute = run.phase, run.compute
    return {
        **run.trainer.state_dict(),
        "epoch": run.epoch,
        "batch": run.batch,
        "phase": {"number": phase.number, "epochs": phase.epochs, "steps": phase.steps},
        "averages": compute.sum(run.averages.sums).tolist(),
        "interval": compute.sum(run.interval.sums).tolist(),
        "skipped": {
            "epoch": run.averages.skipped,
            "interval": run.interval.skipped,
            "in_a_row": int(run.trainer.skipped_in_a_row),
        },
        **run.selection.state_dict(),
        **run.record.state_dict(),
        "threads": torch.get_num_threads(),
        "data": run.data,
        "directory": os.getcwd(),
    }
