"""Which epoch is the best one, and whether training has waited long enough for a better one."""

import math
from pathlib import Path

from config import TrainConfig
from metrics.measures import find_monitor
from training.folder import BEST
from training.state import TrainingState
from utils import UserError


class Selection:
    """The epoch with the best finite value of train.monitor."""

    def __init__(self, config: TrainConfig):
        self.monitor, self.patience = find_monitor(config.monitor), config.patience
        self.best: float | None = None
        self.best_epoch = 0  # 0 as well if there is none
        self.patience_from = 0  # epoch from which the patience counts, if that is later than the best one

    def next_phase(self, config: TrainConfig, epochs: int) -> None:
        """Go on with the patience of the next phase, after so many epochs; the best epoch stays the best."""
        self.patience, self.patience_from = config.patience, epochs

    def is_best(self, epoch: int, value: float) -> bool:
        """Whether the value of this epoch is the best so far; if so, it is recorded."""
        is_best = math.isfinite(value) and (self.best is None or self.monitor.is_better(value, self.best))
        if is_best:
            self.best, self.best_epoch = value, epoch
        return is_best

    def out_of_patience(self, epoch: int) -> bool:
        """Whether no epoch before this one was better for `patience` epochs in a row."""
        waited = epoch - 1 - max(self.best_epoch, self.patience_from)
        return self.best is not None and waited >= self.patience

    def require_best(self, folder: Path) -> None:
        """Raise UserError if no epoch so far has a model worth keeping."""
        if self.best is None:
            raise UserError(
                f"{self.monitor.name} (train.monitor) was not finite in any epoch, so there is no "
                f"{folder / BEST}; start again with a lower train.lr"
            )

    def forget(self) -> None:
        """Start again: there is no best epoch."""
        self.best, self.best_epoch = None, 0

    def state_dict(self) -> dict:
        return {"best": self.best, "best_epoch": self.best_epoch, "patience_from": self.patience_from}

    def load_state(self, state: TrainingState) -> None:
        self.best, self.best_epoch, self.patience_from = state.best, state.best_epoch, state.patience_from
