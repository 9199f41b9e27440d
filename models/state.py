"""What a decoder keeps between two words, in parts: the image's, and that of each sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class DecoderState:
    """What a decoder keeps between two steps, for B sequences (beams, samples, captions) of N images.

    Each decoder defines two NamedTuples. `image` is computed once; as long as the state is even, all
    sequences of an image look at the same row of it. `sequence` changes with every word.
    """

    image: Any  # a NamedTuple of tensors (N, ...)
    sequence: Any  # a NamedTuple of tensors (B, ...)
    image_index: torch.Tensor  # (B,) int64, the image that each sequence describes
    per_image: int  # if even, the number K of neighbouring sequences of each image; 0: any sequences

    @classmethod
    def first(cls, image: Any, sequence: Any) -> "DecoderState":
        """One sequence per image."""
        index = torch.arange(len(sequence[0]), device=sequence[0].device)
        return cls(image, sequence, index, 1)

    def with_sequence(self, sequence: Any) -> "DecoderState":
        """The state of the same images after the next step."""
        return replace(self, sequence=sequence)

    def repeat(self, k: int) -> "DecoderState":
        """K adjacent copies of each sequence."""
        rows = torch.arange(len(self.image_index), device=self.image_index.device).repeat_interleave(k)
        return self.select(rows.view(-1, k * self.per_image) if self.per_image else rows)

    def select(self, rows: torch.Tensor) -> "DecoderState":
        """The sequences in these rows: (N, K) selects K of each image, (B,) any sequences in any order."""
        per_image, rows = rows.shape[1] if rows.dim() == 2 else 0, rows.flatten()
        index = self.image_index.index_select(0, rows)
        return replace(self, sequence=_rows(self.sequence, rows), image_index=index, per_image=per_image)

    def select_images(self, images: torch.Tensor) -> "DecoderState":
        """These images (N',) int64 with all their sequences; the state must be even."""
        rows = rows_of(images, self.per_image)
        index = torch.arange(len(images), device=images.device).repeat_interleave(self.per_image)
        return replace(self.select(rows), image=_rows(self.image, images), image_index=index)

    def image_tensors(self) -> Sequence[torch.Tensor]:
        """The tensors of `image`, with a row per image if the state is even, otherwise one per sequence."""
        return self.image if self.per_image else _rows(self.image, self.image_index)


def rows_of(images: torch.Tensor, k: int) -> torch.Tensor:
    """The rows (N, K) of all sequences of these images (N,), in a batch with K of each image."""
    return images.unsqueeze(1) * k + torch.arange(k, device=images.device)


def _rows(tensors: Any, rows: torch.Tensor) -> Any:
    """These rows of each tensor of a NamedTuple."""
    return type(tensors)(*(x.index_select(0, rows) for x in tensors))
