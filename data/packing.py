"""Captions as the rows that teacher forcing computes: no padding, the longest caption first."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from compute import Compute
from utils import PAD


@dataclass(frozen=True)
class PackedCaptions:
    """M captions of N images, with a row for each of the P tokens to predict.

    The captions are sorted by length. First come the rows of the first step, one for each caption, then those
    of the second step, and so on. At step t, the `active[t]` longest captions have not ended, so the rows
    of a step belong to the first captions, in the same order.

    Some layers need the rows of an image side by side, as a batch (N, Q, ...) with Q the largest number of
    tokens of an image: `by_image` makes it, `by_row` reverses it.
    """

    inputs: torch.Tensor  # (P,) int64, the token that is read
    targets: torch.Tensor  # (P,) int64, the token that follows it
    captions: torch.Tensor  # (P,) int64, which caption of the batch a row belongs to
    steps: torch.Tensor  # (P,) int64, the step of a row
    images: torch.Tensor  # (M,) int64, the image of each caption, longest caption first
    row_images: torch.Tensor  # (P,) int64, the image of each row
    places: torch.Tensor  # (P,) int64, where `by_image` puts a row: image times Q, plus its place there
    active: Sequence[int]  # how many captions have not ended, for each step (on the host)
    num_images: int  # N
    largest: int  # Q
    per_image: Sequence[int]  # how many of an image have not ended, at most, for each step (on the host)

    def __len__(self) -> int:
        """P, the number of tokens to predict."""
        return len(self.inputs)

    @property
    def num_captions(self) -> int:
        """M"""
        return len(self.images)

    @cached_property
    def ranks(self) -> torch.Tensor:
        """(M,) int64, which of its image's captions each one is; 0 is the longest."""
        return self.places[: self.num_captions] - self.images * self.largest  # the rows of the first step

    @cached_property
    def caption_places(self) -> torch.Tensor:
        """(P,) int64, where `by_caption` puts a row: caption times T, plus its step."""
        return self.captions * len(self.active) + self.steps

    def to(self, compute: Compute) -> "PackedCaptions":
        """On the device, without waiting for it."""
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), torch.Tensor)]
        tensors = [getattr(self, name) for name in names]
        if compute.pins_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        moved: dict[str, Any] = dict(zip(names, compute.to_device(*tensors), strict=True))
        return replace(self, **moved)

    def by_image(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (P, ...) -> (N, Q, ...), with zeros after the rows of an image that has fewer."""
        return spread(rows, self.places, self.num_images, self.largest)

    def by_caption(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (P, ...) -> (M, T, ...), with zeros after the rows of a caption that is shorter."""
        return spread(rows, self.caption_places, self.num_captions, len(self.active))

    def by_token(self, grouped: torch.Tensor) -> torch.Tensor:
        """(M, T, ...) -> rows (P, ...); the reverse of `by_caption`."""
        return grouped.flatten(0, 1).index_select(0, self.caption_places)

    def by_row(self, grouped: torch.Tensor) -> torch.Tensor:
        """(N, Q, ...) -> rows (P, ...); the reverse of `by_image`."""
        return grouped.flatten(0, 1).index_select(0, self.places)


def spread(rows: torch.Tensor, places: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """Rows (P, ...) at their places (P,) in (count, width, ...), with zeros between them."""
    zeros = rows.new_zeros(count * width, *rows.shape[1:])
    return zeros.index_copy(0, places, rows).unflatten(0, (count, width))


def pack(
    captions: torch.Tensor, lengths: torch.Tensor, image_index: torch.Tensor, num_images: int
) -> PackedCaptions:
    """Pack captions on the host.

    Args:
        captions: (M, T), `<sos> words <eos>` and padding.
        lengths: (M,), tokens of each caption without padding, 2 or more.
        image_index: (M,), which of the images a caption describes.
    """
    steps, order = (lengths - 1).sort(descending=True, stable=True)
    time = torch.arange(int(steps[0]))
    is_row = time.unsqueeze(1) < steps  # (T - 1, M)
    ordered = captions[order, : len(time) + 1].t()
    row_captions = order.expand_as(is_row)[is_row]
    row_images = image_index[row_captions]
    # Rows in the order of their images, and from that the place of each row among those of its image.
    by_image = row_images.argsort(stable=True)
    counts = row_images.bincount(minlength=num_images)
    rank = torch.empty_like(by_image)
    rank[by_image] = torch.arange(len(by_image)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    largest = int(counts.max())
    of_image = steps.new_zeros(len(time), num_images).index_add_(1, image_index[order], is_row.long())
    return PackedCaptions(
        ordered[:-1][is_row],
        ordered[1:][is_row],
        row_captions,
        time.unsqueeze(1).expand_as(is_row)[is_row],
        image_index[order],
        row_images,
        row_images * largest + rank,
        is_row.sum(dim=1).tolist(),
        num_images,
        largest,
        of_image.amax(dim=1).tolist(),
    )


def padded(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """R captions of these lengths, one after the other in `tokens` -> (R, T) int64, padded with <pad>."""
    captions = np.full((len(lengths), lengths.max()), PAD, np.int64)
    captions[np.arange(captions.shape[1]) < lengths[:, None]] = tokens
    return captions
