"""Cross entropy under teacher forcing, and scheduled sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from data.packing import PackedCaptions
from models.choices import RANDOM_BITS, choosable, draw
from models.decoder import Decoder
from models.state import rows_of
from training.loss import TokenAverages, caption_loss, caption_totals
from training.objective import Loss, Objective, Part, Prepared
from training.randomness import random_numbers
from utils import EOS, SOS


@dataclass(frozen=True)
class ReadCaptions(Prepared):
    images: torch.Tensor  # (N, 3, H, W) or (N, L, C), on the host
    captions: PackedCaptions  # as the decoder reads them


class CrossEntropy(Objective):
    """Makes the words of the reference captions likely, one by one."""

    name = "cross_entropy"
    averages = TokenAverages

    def prepare(self, part: Part, epoch: int) -> ReadCaptions:
        images, captions = part.batch.images, part.batch.packed().to(self.compute)
        if self.config.train.scheduled_sampling and epoch > 1:
            [on_device] = self.compute.to_device(images)
            captions = self.sample_inputs(on_device, captions, part.indices, epoch)
        return ReadCaptions(caption_totals(captions), images, captions)

    def forward(self, prepared: ReadCaptions, totals: Mapping[str, torch.Tensor]) -> Loss:
        train, captions = self.config.train, prepared.captions
        [images] = self.compute.to_device(prepared.images)
        with self.compute.autocast():
            logits, alphas = self.model(images, captions)
            smoothing, attention = train.label_smoothing, train.attention_weight
            return caption_loss(logits, captions, alphas, smoothing, attention, totals)

    def sample_inputs(
        self, images, captions: PackedCaptions, indices: Sequence[int], epoch: int
    ) -> PackedCaptions:
        """`scheduled_sampling` without dropout, as in captioning, where the model reads its own words."""
        train = self.config.train
        probability = sampling_probability(train.scheduled_sampling, epoch, train.epochs)
        size = captions.per_image[0], 2 * len(captions.active)
        numbers = random_numbers(self.config.run.seed, epoch, indices, *size)
        [numbers] = self.compute.to_device(numbers)
        self.model.eval()
        with self.compute.autocast():
            grid = self.model.grid(images)
            captions = scheduled_sampling(self.model.decoder, grid, captions, numbers, probability)
        self.model.train()
        return captions


def sampling_probability(last: float, epoch: int, epochs: int) -> float:
    """0 in the first epoch, rising in equal steps to `last` in the last one."""
    return last * (epoch - 1) / max(epochs - 1, 1)


def scheduled_sampling(
    decoder: Decoder,
    grid: torch.Tensor,
    captions: PackedCaptions,
    randoms: torch.Tensor,
    probability: float,
) -> PackedCaptions:
    """The captions with each word that is read replaced with `probability` by one that the model samples.

    A sample depends on the words before it, including replaced ones (Bengio et al., 2015, section 2.4). As in
    the paper, no gradient flows through the sampling, so all words can be sampled before the loss of the
    result is computed with teacher forcing. `<sos>` is never replaced, and the targets stay.

    Args:
        randoms: (N, K, 2 T) for at most K captions of an image; see training/randomness.py.
    """
    inputs, images = captions.inputs.clone(), captions.images
    # The captions of an image share its part of the state. So each image has K places, some of them unused,
    # for the captions that have not ended: the longest is first, and K falls as they end.
    rank = (images.unsqueeze(1) == images).tril(-1).sum(dim=1)
    every = torch.arange(captions.num_images, device=images.device)
    state, first = decoder.start(grid).repeat(captions.per_image[0]), 0
    for t, ((n, following), k) in enumerate(zip(pairwise(captions.active), captions.per_image, strict=False)):
        if k < state.per_image:
            state = state.select(rows_of(every, state.per_image)[:, :k])
        places = images * k + rank
        tokens = inputs.new_full((captions.num_images * k,), SOS)
        tokens.index_copy_(0, places[:n], inputs[first : first + n])
        logits, state, _ = decoder.step(tokens, state)
        first += n
        logits = choosable(logits.index_select(0, places[:following]))
        logits[:, EOS] = -torch.inf  # a decoder never reads <eos>
        whether, which = randoms[images[:following], rank[:following], 2 * t : 2 * t + 2].unbind(dim=1)
        replaced = whether / 2**RANDOM_BITS < probability
        read = inputs[first : first + following]
        read.copy_(torch.where(replaced, draw(logits, which), read))
    return replace(captions, inputs=inputs)
