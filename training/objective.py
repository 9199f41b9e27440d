"""The contract between the training loop and what a step optimises."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from compute import autocast
from config import Config
from data.dataset import Batch
from models.model import CaptionModel
from training.averages import Averages


class Objective:
    """What one training step minimises: cross_entropy.py, self_critical.py, actor_critic.py."""

    averages: type[Averages]  # adds up what `loss` returns

    def __init__(self, model: CaptionModel, config: Config, device: torch.device, precision: torch.dtype):
        self.model, self.config, self.device, self.precision = model, config, device, precision
        # Of what is trained besides the model; each group has its `peak` learning rate.
        self.optimizers: list[torch.optim.Optimizer] = []

    def loss(self, batch: Batch, indices: Sequence[int], epoch: int) -> NamedTuple:
        """What a batch costs the model.

        Args:
            indices: N, the numbers of the batch's images in the training set.
            epoch: from 1.

        Returns:
            A tuple with `objective`, the scalar to minimise, and what `averages` adds up.
        """
        raise NotImplementedError

    def captions(self, batch: Batch) -> int:
        """How many captions a step learns from."""
        return len(batch.captions)

    def autocast(self):
        """Mixed precision. Sampling and what has a gradient need a context each: the weights that a context
        has converted without a gradient would have none in the same context later."""
        return autocast(self.device, self.precision)

    def state_dict(self) -> dict:
        """What a resume needs besides the model and its optimiser."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        """Undo of `state_dict`."""
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
