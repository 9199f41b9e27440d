"""The parts of the batches that one process computes."""

from collections.abc import Iterator, Sequence

from compute import Compute
from data.dataset import Draw, Flickr8kDataset, make_loader
from training.objective import Part


def read_parts(
    dataset: Flickr8kDataset, batches: Sequence[list[Draw]], accumulate: int, workers: int, compute: Compute
) -> Iterator[list[Part]]:
    """For each batch, the parts of this process: `accumulate` of them, of about equally many images.

    If a batch has fewer images than parts, those that would be empty are its first image with weight 0: all
    processes compute something in each step.
    """
    own = [[_part(draws, i, accumulate, compute) for i in range(accumulate)] for draws in batches]
    draws = [part or batches[i][:1] for i, parts in enumerate(own) for part in parts]
    loader = iter(zip(draws, make_loader(dataset, draws, workers, compute), strict=True))
    for parts in own:
        yield [
            Part(batch, [index for index, _ in drawn], float(bool(part)))
            for part, (drawn, batch) in zip(parts, loader, strict=False)
        ]


def _part(draws: list[Draw], i: int, accumulate: int, compute: Compute) -> list[Draw]:
    """Every `accumulate * world_size`-th draw, so that the parts of all processes are the batch."""
    return draws[i * compute.world_size + compute.rank :: accumulate * compute.world_size]
