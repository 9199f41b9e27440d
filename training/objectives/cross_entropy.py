"""Cross entropy under teacher forcing, and scheduled sampling."""

from collections.abc import Sequence

import torch

from data.dataset import Batch
from models.decoder import Decoder
from models.search import draw, drawing_log_probs
from training.loss import TokenAverages, caption_loss
from training.objective import Loss, Objective
from utils import EOS


class CrossEntropy(Objective):
    """Makes the words of the reference captions likely, one by one."""

    name = "cross_entropy"
    averages = TokenAverages

    def forward(self, batch: Batch, indices: Sequence[int], epoch: int) -> Loss:
        train = self.config.train
        images, captions, image_index = self.compute.to_device(
            batch.images, batch.captions, batch.image_index
        )
        inputs, probability = captions, sampling_probability(train.scheduled_sampling, epoch, train.epochs)
        if probability:
            inputs = self.sample_inputs(images, captions, image_index, probability)
        with self.compute.autocast():
            logits, alphas = self.model(images, inputs, image_index)
            return caption_loss(logits, captions, alphas, train.label_smoothing, train.attention_weight)

    def sample_inputs(self, images, captions, image_index, probability: float) -> torch.Tensor:
        """`scheduled_sampling` without dropout, as in captioning, where the model reads its own words."""
        self.model.eval()
        with torch.no_grad(), self.compute.autocast():
            grid = self.model.grid(images)
            inputs = scheduled_sampling(self.model.decoder, grid, captions, image_index, probability)
        self.model.train()
        return inputs


def sampling_probability(last: float, epoch: int, epochs: int) -> float:
    """0 in the first epoch, rising in equal steps to `last` in the last one."""
    return last * (epoch - 1) / max(epochs - 1, 1)


def scheduled_sampling(
    decoder: Decoder,
    grid: torch.Tensor,
    captions: torch.Tensor,
    image_index: torch.Tensor,
    probability: float,
) -> torch.Tensor:
    """The captions (M, T), with each word replaced with `probability` by one that the model samples.

    A sample depends on the words before it, including replaced ones (Bengio et al., 2015, section 2.4). As in
    the paper, no gradient flows through the sampling, so all words can be sampled before the loss of the
    result is computed with teacher forcing. `<sos>`, `<eos>` and padding are never replaced.
    """
    state = decoder.start(grid).select(image_index)
    inputs = captions.clone()
    for t in range(1, captions.shape[1] - 1):
        logits, state, _ = decoder.step(inputs[:, t - 1], state)
        log_probs = drawing_log_probs(logits)
        log_probs[:, EOS] = -torch.inf  # a decoder never reads <eos>
        sampled = draw(log_probs)
        replaced = torch.rand(len(inputs), device=inputs.device) < probability
        inputs[:, t] = torch.where(replaced & (inputs[:, t] > EOS), sampled, inputs[:, t])
    return inputs
