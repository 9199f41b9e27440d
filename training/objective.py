"""The contract between the training loop and the objectives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from compute import Compute
from config import Config
from data.dataset import Batch, Flickr8kDataset
from models.model import CaptionModel
from training.averages import Averages
from training.state import Misfit, load_moments


class Part(NamedTuple):
    """What one process computes at once of the batch that a step learns from."""

    batch: Batch  # of N images
    indices: Sequence[int]  # (N,) of the images in the training set
    weight: float = 1.0  # 0 if there are fewer images than parts, and these are another part's


@dataclass(frozen=True)
class Prepared:
    """A part with all that takes no gradient, such as sampled captions and their rewards.

    `totals` are scalars by name that are added up over all parts of all processes before the loss, which may
    depend on them, for example because it is a mean over all tokens.
    """

    totals: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """The loss of a part, and what it reports. The losses of all parts add up to that of the step."""

    total: torch.Tensor  # scalar, with a gradient
    sums: Mapping[str, torch.Tensor]  # scalars without a gradient, added up by an Averages


def count_of(number: int, like: torch.Tensor) -> torch.Tensor:
    """A number as a scalar on the device of `like`, written there without a copy that would wait for it."""
    return torch.full((), number, device=like.device)


class Objective(nn.Module):
    """Base class of the objectives in training/objectives/.

    A step adds up the losses of its parts: first each is prepared, then `forward` computes its loss.
    """

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

    def prepare(self, part: Part, epoch: int) -> Any:
        """A Prepared; called without gradients. `epoch` is counted from 1."""
        raise NotImplementedError

    def forward(self, prepared: Any, totals: Mapping[str, torch.Tensor]) -> Loss:
        """The loss of a part.

        Args:
            prepared: what `prepare` returned.
            totals: those of the step.
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
