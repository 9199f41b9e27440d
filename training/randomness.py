"""Random numbers of a training step that depend on nothing but the seed, the epoch and the image."""

from collections.abc import Sequence

import numpy as np
import torch

from models.choices import RANDOM_BITS


def random_numbers(seed: int, epoch: int, indices: Sequence[int], count: int, length: int) -> torch.Tensor:
    """`length` numbers for each of `count` captions of N images: (N, count, length) int64.

    Neither the other images of a batch nor the number of processes that share it changes them, and the first
    numbers of a caption are the same for any `length`. All numbers are below 2^RANDOM_BITS.

    Args:
        indices: of the N images in the training set.
    """
    numbers = [
        np.random.default_rng((seed, epoch, index, k)).integers(2**RANDOM_BITS, size=length)
        for index in indices
        for k in range(count)
    ]
    return torch.from_numpy(np.stack(numbers)).view(len(indices), count, length)
