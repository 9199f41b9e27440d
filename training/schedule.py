"""The learning rate: warm-up, then cosine, plateau or constant."""

import math

from config import TrainConfig


class Schedule:
    """A factor in (0, 1] on each group's peak learning rate."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int, first_step: int = 0):
        """`first_step`: how many steps came before this schedule, in earlier phases of the training."""
        self.first_step = first_step
        self.kind, self.patience = config.schedule, config.plateau_patience
        self.warmup = max(1, round(config.warmup * steps_per_epoch))
        self.total = max(config.epochs * steps_per_epoch, self.warmup + 1)
        self.decay, self.waited = 1.0, 0

    def factor(self, step: int) -> float:
        """The factor for optimiser step `step`, counted from 0 over all phases."""
        step -= self.first_step
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "cosine":
            progress = min(1.0, (step - self.warmup) / (self.total - self.warmup))
            # It ends at 1 %, not at 0, so that the last steps still learn something.
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        return self.decay

    def epoch_ended(self, better: bool) -> None:
        """Plateau: halve after more than `plateau_patience` epochs in a row without a better monitor."""
        self.waited = 0 if better else self.waited + 1
        if self.kind == "plateau" and self.waited > self.patience:
            self.decay, self.waited = self.decay / 2, 0

    def state_dict(self) -> dict:
        return {"decay": self.decay, "waited": self.waited}

    def load_state_dict(self, state: dict) -> None:
        self.decay, self.waited = state["decay"], state["waited"]
