"""The parts of the batches that one process computes."""

from collections.abc import Iterable, Iterator
from itertools import chain, tee

from compute import Compute
from data.dataset import Draw, Flickr8kDataset, make_loader
from training.objective import Part


def read_parts(
    dataset: Flickr8kDataset, batches: Iterable[list[Draw]], accumulate: int, workers: int, compute: Compute
) -> Iterator[list[Part]]:
    """For each batch, the parts of this process: `accumulate` of them, of about equally many images.

    If a batch has fewer images than parts, those that would be empty are its first image with weight 0: all
    processes compute something in each step.
    """
    own = ([_part(draws, i, accumulate, compute) for i in range(accumulate)] for draws in batches)
    # The loader is ahead by the batches that it prepares.
    all_parts, to_read = tee(own)
    loader = make_loader(dataset, (draws for draws, _ in chain.from_iterable(to_read)), workers, compute)
    for parts in all_parts:
        yield [
            Part(batch, [index for index, _ in draws], weight)
            for (draws, weight), batch in zip(parts, loader, strict=False)
        ]


def _part(draws: list[Draw], i: int, accumulate: int, compute: Compute) -> tuple[list[Draw], float]:
    """Every `accumulate * world_size`-th draw, and the weight; the parts of all processes are the batch."""
    part = draws[i * compute.world_size + compute.rank :: accumulate * compute.world_size]
    return part or draws[:1], float(bool(part))
