"""Running means of the values that a training step reports."""

from collections.abc import Mapping

import torch

from compute import Compute


class Averages:
    """Running sums of the reported values, in float64 on the device, which only reading has to wait for."""

    names: tuple[str, ...]  # the sums of a loss that are added up
    figures: tuple[str, ...]  # what `read` returns

    def __init__(self, compute: Compute, sums: list[float] | None = None, skipped: int = 0):
        """`sums` and `skipped`: those of an interrupted run, from which the means go on."""
        self.compute = compute
        if not compute.is_main:
            sums = None  # `sums` are those of all processes, and each is counted once
        self.num_skipped = torch.full((), skipped, device=compute.device)
        self.sums = torch.tensor(sums or [0.0] * len(self.names), dtype=torch.float64, device=compute.device)

    def add(self, sums: Mapping[str, torch.Tensor]) -> None:
        self.sums += self.stacked(sums)

    def add_step(self, sums: Mapping[str, torch.Tensor], is_finite: torch.Tensor) -> None:
        """Add the sums of a training step; if it was not finite, only count it."""
        self.sums += torch.where(is_finite, self.stacked(sums), 0.0)
        self.num_skipped += ~is_finite

    def stacked(self, sums: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sums in the order of `names`, in float64."""
        return torch.stack([sums[name].double() for name in self.names])

    @property
    def skipped(self) -> int:
        """Steps without an update, which the means leave out."""
        return int(self.num_skipped)

    def totals(self) -> dict[str, float]:
        """The sums over all processes, by name."""
        return dict(zip(self.names, self.compute.sum(self.sums).tolist(), strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added so far, in any process, so that there are no means."""
        return not self.compute.sum(self.sums).any()

    def read(self) -> dict[str, float]:
        """The means so far, `figures` by name."""
        raise NotImplementedError

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        """The most important of these values as a short text."""
        raise NotImplementedError
