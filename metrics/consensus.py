"""Minimum-Bayes-risk choice: of the captions found for an image, the one most like the others."""

import numpy as np
import torch

from metrics.rewards import Rewards
from models.captions import Captions
from utils import PAD


def by_consensus(captions: Captions) -> Captions:
    """The captions of each image, ordered by their mean CIDEr-D with all captions of the image.

    This is the expected score of a caption if each of the K captions is equally likely to be the reference
    (Kumar and Byrne, 2004). A checkpoint has no document frequencies, so all n-grams have the same weight.
    `scores` becomes this mean, between 0 and 10.
    """
    n, k = captions.scores.shape
    tokens, exists = captions.tokens.flatten(0, 1).cpu().numpy(), captions.scores.isfinite().cpu().numpy()
    exists[:, 0] = True  # each image needs a reference
    image_index, exists = np.arange(n).repeat(k), exists.flatten()
    # Only the words that occur are numbered, so that n-grams of any vocabulary fit into 64 bits.
    words, numbers = np.unique(np.append(tokens, PAD), return_inverse=True)
    tokens = numbers[:-1].reshape(tokens.shape)
    cider = Rewards(tokens[exists], image_index[exists], len(words), equal_weights=True)
    means = np.where(exists, cider(tokens, image_index), -np.inf).reshape(n, k)
    scores = torch.from_numpy(means).to(captions.scores)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return captions._replace(scores=scores).select(order)
