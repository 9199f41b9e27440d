"""Running means of what a training step reports."""

from typing import NamedTuple

import torch


class Averages:
    """Running sums of the reported figures, kept in float64 on the device: reading them is what syncs."""

    names: tuple[str, ...]  # the fields of a loss that are added up

    def __init__(self, device: torch.device, sums: list[float] | None = None):
        self.sums = torch.tensor(sums or [0.0] * len(self.names), dtype=torch.float64, device=device)

    def add(self, loss: NamedTuple) -> None:
        self.sums += torch.stack([getattr(loss, name).double() for name in self.names])

    def read(self) -> dict[str, float]:
        """The means since the beginning, by the log's names without their prefix."""
        raise NotImplementedError

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        """The figures that a person watches, in a few words."""
        raise NotImplementedError
