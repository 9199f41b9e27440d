"""The contract between the training loop and what a step minimises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from compute import Compute
from config import Config
from data.dataset import Batch, Flickr8kDataset
from models.model import CaptionModel
from training.averages import Averages


@dataclass(frozen=True)
class Term:
    """One summand of a loss, `weight * sum / count`, so that the parts of a batch add up to the whole."""

    sum: torch.Tensor  # scalar, with a gradient
    count: torch.Tensor  # scalar, how many tokens, captions, … the sum is over
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """What a step minimises, and what it reports."""

    terms: Sequence[Term]
    sums: Mapping[str, torch.Tensor]  # scalars without a gradient, which an Averages adds up

    def total(self, compute: Compute) -> torch.Tensor:
        """The scalar to minimise: its gradient, averaged over the processes, is that of the global batch."""
        parts = [term.weight * (term.sum / compute.sum(term.count)) for term in self.terms]
        total = sum(parts[1:], parts[0])
        return total * compute.world_size if compute.world_size > 1 else total


class Objective(nn.Module):
    """What one training step minimises: the classes in training/objectives/. `forward` is the loss."""

    name: ClassVar[str]  # train.objective
    averages: ClassVar[type[Averages]]  # adds up what a loss reports
    first_epoch: ClassVar[int] = 1  # 0: the model is validated before the first step

    def __init__(self, model: CaptionModel, config: Config, compute: Compute, train_set: Flickr8kDataset):
        super().__init__()
        self.model, self.config, self.compute = model, config, compute
        # For what is trained besides the model. Each group has its `peak` learning rate.
        self.optimizers: list[torch.optim.Optimizer] = []

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError where the configuration does not fit this objective."""

    def forward(self, batch: Batch, indices: Sequence[int], epoch: int) -> Loss:
        """The loss of one batch.

        Args:
            indices: N, the numbers of the batch's images in the training set.
            epoch: from 1.
        """
        raise NotImplementedError

    def num_captions(self, batch: Batch) -> int:
        """How many captions a step learns from."""
        return len(batch.captions)

    def training_state(self) -> dict:
        """What a resume needs besides the model and its optimiser."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_training_state(self, state: dict) -> None:
        """Restore what `training_state` returned."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
