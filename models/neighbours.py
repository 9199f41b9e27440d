"""The training images that look most like an image, with their captions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from data.packing import padded
from utils import PAD

# Numbers that describe an image: with more than a tenth of MobileNetV2's 1,280, the images found are as good.
_DIMS = 128
# In the tables that captions are compared with: more than twice as many as COCO needs; 1 GB.
_MOST_NUMBERS = 2**27


@dataclass(frozen=True, eq=False)
class Neighbours:
    """M training images with R captions of P tokens in all.

    An image is described by the mean of its cells: D coordinates in the directions in which the training
    images differ most (principal components). Two images are alike if the angle between their vectors is
    small.
    """

    mean: torch.Tensor  # (C,) of all images
    components: torch.Tensor  # (C, D), orthonormal
    vectors: torch.Tensor  # (M, D) float16, of length 1
    tokens: torch.Tensor  # (P,) int32, the captions one after the other, without <sos>
    lengths: torch.Tensor  # (R,) int32, tokens of each caption
    counts: torch.Tensor  # (M,) int32, captions of each image

    @classmethod
    def of(cls, cells: torch.Tensor, captions: np.ndarray, image_index: np.ndarray) -> "Neighbours":
        """
        Args:
            cells: (M, C) float32, the mean cell of each image.
            captions: (R, T) and `image_index` (R,) as in `Flickr8kDataset.all_captions`.
        """
        mean = cells.mean(dim=0)
        centred = cells - mean
        _, directions = torch.linalg.eigh(centred.T @ centred)  # by ascending variance
        components = directions[:, -_DIMS:].half()
        exists = captions != PAD
        return cls(
            mean,
            components,
            F.normalize(centred @ components.float(), dim=1).half(),
            torch.from_numpy(captions[exists].astype(np.int32)),
            torch.from_numpy(exists.sum(axis=1).astype(np.int32)),
            torch.from_numpy(np.bincount(image_index).astype(np.int32)),
        )

    @classmethod
    def from_dict(cls, tensors: Mapping[str, torch.Tensor], vocab_size: int) -> "Neighbours":
        """What `as_dict` returned; raises ValueError, with the reason, if it cannot be."""
        names = [field.name for field in fields(cls)]
        if sorted(tensors) != sorted(names):
            raise ValueError(f"it has {', '.join(sorted(tensors))}")
        found = cls(**tensors)
        for name in names[:3]:
            if not tensors[name].is_floating_point():
                raise ValueError(f"{name} has no real numbers")
        for name in names[3:]:
            if tensors[name].dtype is not torch.int32 or tensors[name].dim() != 1:
                raise ValueError(f"{name} is no list of int32")
        dims = [tensor.dim() for tensor in (found.mean, found.components, found.vectors)]
        if dims != [1, 2, 2] or not found.vectors.numel():
            raise ValueError(f"its vectors have the dimensions {dims}")
        sizes = (len(found.mean), found.vectors.shape[1])
        if found.components.shape != sizes or len(found.counts) != len(found.vectors):
            raise ValueError("its vectors do not fit together")
        if found.counts.min() < 1 or found.counts.long().sum() != len(found.lengths):
            raise ValueError("its captions do not fit its images")
        if found.lengths.min() < 1 or found.lengths.long().sum() != len(found.tokens):
            raise ValueError("its tokens do not fit its captions")
        padded = len(found.lengths) * int(found.lengths.max())
        if max(padded, len(found.tokens) * int(found.counts.max())) > _MOST_NUMBERS:
            raise ValueError("its captions are too long, or too many for one image")
        if found.tokens.min() < 1 or found.tokens.max() >= vocab_size:
            raise ValueError("it has tokens that are not in the vocabulary")
        return found

    def as_dict(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def nearest(self, grids: torch.Tensor, k: int) -> np.ndarray:
        """(N, K) the training images that are most like each of N images, the most similar first.

        Args:
            grids: (N, L, C).
            k: K, unless there are fewer training images.
        """
        cells = grids.float().mean(dim=1).cpu() - self.mean
        wanted = F.normalize(cells @ self.components.float(), dim=1)
        return (wanted @ self.directions.T).topk(min(k, len(self.vectors)), dim=1).indices.numpy()

    @cached_property
    def directions(self) -> torch.Tensor:
        """`vectors` in float32, in which a CPU computes faster."""
        return self.vectors.float()

    def captions(self) -> tuple[np.ndarray, np.ndarray]:
        """All captions (R, T) int64, padded with <pad>, and the image of each (R,)."""
        captions = padded(self.tokens.numpy(), self.lengths.numpy())
        return captions, np.arange(len(self.counts)).repeat(self.counts.numpy())
