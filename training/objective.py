"""The contract between the training loop and the objectives."""

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
from training.state import Misfit, load_moments


@dataclass(frozen=True)
class Term:
    """One term of a loss, `weight * sum / count`: sums and counts of parts of a batch can be added up."""

    sum: torch.Tensor  # scalar, with a gradient
    count: torch.Tensor  # scalar, how many tokens, captions, … the sum is over
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """What a training step minimises, and what it reports."""

    terms: Sequence[Term]
    sums: Mapping[str, torch.Tensor]  # scalars without a gradient, added up by an Averages

    def total(self, compute: Compute) -> torch.Tensor:
        """The scalar to minimise: its gradient, averaged over the processes, is that of the global batch."""
        parts = [term.weight * (term.sum / compute.sum(term.count)) for term in self.terms]
        return compute.world_size * sum(parts[1:], parts[0])


def count_of(number: int, like: torch.Tensor) -> torch.Tensor:
    """A number as a scalar on the device of `like`, written there without a copy that would wait for it."""
    return torch.full((), number, device=like.device)


class Objective(nn.Module):
    """Base class of the objectives in training/objectives/: `forward` is the loss that a step minimises."""

    name: ClassVar[str]  # train.objective
    averages: ClassVar[type[Averages]]  # adds up the sums of the losses
    first_epoch: ClassVar[int] = 1  # 0: the model is validated before the first step

    def __init__(self, model: CaptionModel, config: Config, compute: Compute, train_set: Flickr8kDataset):
        super().__init__()
        self.model, self.config, self.compute = model, config, compute
        # For parameters outside the model. Each parameter group has a `peak` learning rate.
        self.optimizers: list[torch.optim.Optimizer] = []

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError if the configuration does not fit this objective."""

    def forward(self, batch: Batch, indices: Sequence[int], epoch: int) -> Loss:
        """The loss of one batch.

        Args:
            indices: the indices of the N images in the training set.
            epoch: counted from 1.
        """
        raise NotImplementedError

    def num_captions(self, batch: Batch) -> int:
        """The number of captions that a step on `batch` learns from."""
        return len(batch.captions)

    def training_state(self) -> dict:
        """What a resume needs besides the model and its optimiser: numbers, and dictionaries of tensors."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_training_state(self, state: dict) -> None:
        """Restore what `training_state` returned; raises Misfit if it is that of another objective.

        The settings of the optimisers remain those of the configuration.
        """
        optimizers = state.get("optimizers", [])
        if len(optimizers) != len(self.optimizers):
            raise Misfit(f"it has {len(optimizers)} optimisers of the objective, not {len(self.optimizers)}")
        for optimizer, saved in zip(self.optimizers, optimizers, strict=True):
            load_moments(optimizer, saved)
