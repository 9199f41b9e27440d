"""Cached features that lie in the memory of a GPU, so that nothing is read or copied during training."""

from collections.abc import Sequence
from itertools import count

import torch

from compute import Compute
from data.features import FeatureGrids
from progress import Progress

AT_ONCE = 256  # grids that are read and copied together
_SHARE = 0.5  # of the GPU's free memory, at most; training needs the rest


class HeldGrids(FeatureGrids):
    """The grids of `FeatureGrids` on a device, one after the other: those of an image are neighbours."""

    def __init__(self, grids: FeatureGrids, device: torch.device):
        """Reads all of them; raises UserError as `FeatureGrids.read`."""
        place = count()
        rows = {name: [next(place) for _ in rows] for name, rows in grids.rows.items()}
        super().__init__(grids.path, grids.shape, rows, grids.checksums)
        views = [(name, view) for name, rows in grids.rows.items() for view in range(len(rows))]
        self.held = torch.empty(len(views), *grids.shape, dtype=torch.float16, device=device)
        with Progress(len(views), f"features to {device}", "images", keep=False) as progress:
            for at in range(0, len(views), AT_ONCE):
                some = views[at : at + AT_ONCE]
                self.held[at : at + len(some)] = grids.read(some).to(device)
                progress.update(len(some))

    def read(self, views: Sequence[tuple[str, int]], pin_memory: bool = False) -> torch.Tensor:
        """The grids (N, L, C) float16 of N images, on the device.

        Args:
            pin_memory: whether the numbers of the rows are copied to the device without waiting for it.
        """
        rows = torch.tensor([self.row(*view) for view in views], pin_memory=pin_memory)
        return self.held.index_select(0, rows.to(self.held.device, non_blocking=True))


def held_if_they_fit(grids: FeatureGrids, compute: Compute) -> FeatureGrids:
    """The grids on the GPU, or as they are: without a GPU, or if they take too much of its memory."""
    cells, channels = grids.shape
    size = 2 * cells * channels * sum(map(len, grids.rows.values()))
    return HeldGrids(grids, compute.device) if size <= _SHARE * compute.free_gpu_memory() else grids
