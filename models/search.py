"""The search for captions, with any decoder that has `start` and `step`.

All images and all beams or samples form one batch, from which images leave when all their captions are
finished. What belongs to an image is computed once and never copied per beam. Python loops over time steps
alone (and, in sampling, over the images' random generators). The rest of the story is in

    captions.py      what is asked for, and what is found
    choices.py       which words may follow
    beam_search.py   the most likely captions
    beams.py         which beams go on: the best, diverse ones, or those with required words
    sampling.py      captions drawn at random

The log-probabilities that are returned are the model's own: the log-softmax of its logits, over all words.
Which words may be chosen, and in sampling how likely each of them is, is a separate matter.
"""

from collections.abc import Sequence
from typing import Any

import torch

from models.beam_search import beam_search
from models.captions import Captions, SearchOptions
from models.decoder import Decoder
from models.ensemble import Ensemble
from models.sampling import sample


@torch.inference_mode()
def search(
    decoder: Decoder | Ensemble, grid: Any, options: SearchOptions, indices: Sequence[int] | None = None
) -> Captions:
    """Caption N images by beam search, or by sampling if the temperature is above 0.

    Args:
        grid: what the decoder's `start` takes: (N, L, C), or for an ensemble a list of such tensors.
        indices: the index of each image in the whole input, from which (with the seed) its samples follow;
            None: 0 to N - 1.
    """
    if options.temperature > 0:
        return sample(decoder, grid, options, indices)
    return beam_search(decoder, grid, options)
