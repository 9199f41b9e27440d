"""The features of images in shards: a feature store for each shard."""

from collections.abc import Callable, Sequence

import torch

from data.features import FeatureGrids, FeatureStore
from data.shard_set import Shard, ShardSet
from progress import Progress


class ShardGrids:
    """Grids by the number of the image. Indexes of stores are in memory for the shards that are open."""

    def __init__(self, shards: ShardSet, store_of: Callable[[Shard], FeatureStore], views: int = 1):
        """Computes the grids that are missing; `views`: of each image."""
        self.shards, self.store_of, self.views = shards, store_of, views
        with Progress(len(shards.paths), "features", "shards") as progress:
            for s in range(len(shards.paths)):
                shard = shards.shard(s)
                shard.grids = store_of(shard).grids(dict.fromkeys(shard.index.names, views))
                progress.update()

    def read(self, draws: Sequence[tuple[int, int]], pin_memory: bool = False) -> torch.Tensor:
        """The grids (N, L, C) float16 of N images; see FeatureGrids.read.

        Args:
            draws: number and seed of each image.
        """
        by_shard: dict[int, list[tuple[int, str, int]]] = {}
        for n, (i, seed) in enumerate(draws):
            s, row = self.shards.locate(i)
            by_shard.setdefault(s, []).append((n, self.shards.shard(s).index.names[row], seed))
        grids: torch.Tensor | None = None
        for s, wanted in by_shard.items():
            found = self.stored(self.shards.shard(s)).read([(name, seed) for _, name, seed in wanted])
            if grids is None:
                shape = len(draws), *found.shape[1:]
                grids = torch.empty(shape, dtype=found.dtype, pin_memory=pin_memory)
            grids[[n for n, _, _ in wanted]] = found
        assert grids is not None
        return grids

    def stored(self, shard: Shard) -> FeatureGrids:
        if shard.grids is None:
            shard.grids = self.store_of(shard).stored(dict.fromkeys(shard.index.names, self.views))
        return shard.grids
