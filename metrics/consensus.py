"""Minimum-Bayes-risk choice: of the captions found for an image, the one with the highest expected score."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from metrics.rewards import Rewards
from models.captions import Captions
from models.neighbours import Neighbours
from utils import PAD

_NEAREST = 20  # training images whose captions are compared with
# Weights beside CIDEr-D with them, which lies between 0 and 10: of the consensus (0 to 10), and of the
# log-probability as the search normalises it.
_AGREEMENT, _PROBABILITY = 0.1, 0.2


def reranked(
    captions: Captions, rerank: str, members: Sequence[tuple[Neighbours | None, torch.Tensor]]
) -> Captions:
    """The captions in the order of `search.rerank`.

    Args:
        members: of each model, its neighbours, if it has any, and the grids (N, L, C) that were captioned.
    """
    if rerank == "cider":
        return by_consensus(captions)
    neighbours, grids = next((neighbours, grids) for neighbours, grids in members if neighbours)
    return by_neighbours(captions, neighbours, neighbours.nearest(grids, _NEAREST))


def by_consensus(captions: Captions) -> Captions:
    """The captions of each image, ordered by their mean CIDEr-D with all captions of the image.

    This is the expected score of a caption if each of the K captions is equally likely to be the reference
    (Kumar and Byrne, 2004). A checkpoint has no document frequencies, so all n-grams have the same weight.
    `scores` becomes this mean, between 0 and 10.
    """
    return _ordered(captions, _agreement(captions))


def by_neighbours(captions: Captions, neighbours: Neighbours, nearest: np.ndarray) -> Captions:
    """The captions of each image, ordered by their CIDEr-D with those of similar training images.

    What people have written about similar images stands for the references (Devlin et al., 2015, "Exploring
    Nearest Neighbor Approaches for Image Captioning"). What it cannot know, the model does: the consensus of
    its captions names what can be seen, and their probabilities say which of them are sound. `scores` becomes
    the weighted sum.

    Args:
        nearest: (N, J) of `Neighbours.nearest`.
    """
    n, k, length = captions.tokens.shape
    tokens = captions.tokens.cpu().numpy().repeat(nearest.shape[1], axis=1).reshape(-1, length)
    similar = nearest.repeat(k, axis=0).flatten()  # each of the K captions with each of the J images
    means = _rewards(neighbours)(tokens, similar).reshape(n, k, -1).mean(axis=2)
    probabilities = captions.scores.float().cpu().numpy()
    return _ordered(captions, means + _AGREEMENT * _agreement(captions) + _PROBABILITY * probabilities)


@lru_cache(maxsize=1)
def _rewards(neighbours: Neighbours) -> Rewards:
    """CIDEr-D with each training image, with the document frequencies of all of them; takes half a second."""
    captions, image_index = neighbours.captions()
    return Rewards(captions, image_index, int(captions.max()) + 1)


def _agreement(captions: Captions) -> np.ndarray:
    """The mean CIDEr-D of each caption with all captions of its image, (N, K); all n-grams weigh the same."""
    n, k = captions.scores.shape
    tokens, exists = captions.tokens.flatten(0, 1).cpu().numpy(), captions.scores.isfinite().cpu().numpy()
    exists[:, 0] = True  # each image needs a reference
    image_index, exists = np.arange(n).repeat(k), exists.flatten()
    # Only the words that occur are numbered, so that n-grams of any vocabulary fit into 64 bits.
    words, numbers = np.unique(np.append(tokens, PAD), return_inverse=True)
    tokens = numbers[:-1].reshape(tokens.shape)
    cider = Rewards(tokens[exists], image_index[exists], len(words), equal_weights=True)
    return cider(tokens, image_index).reshape(n, k)


def _ordered(captions: Captions, scores: np.ndarray) -> Captions:
    """The captions of each image by descending `scores` (N, K); those that do not exist are the last."""
    exists = captions.scores.isfinite()
    exists[:, 0] = True
    found = torch.from_numpy(scores).to(captions.scores).masked_fill(~exists, -torch.inf)
    order = found.sort(dim=1, descending=True, stable=True).indices
    return captions._replace(scores=found).select(order)
