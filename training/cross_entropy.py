"""Cross entropy under teacher forcing, and scheduled sampling."""

from collections.abc import Sequence

import torch

from data.dataset import Batch
from models.search import next_log_probs
from training.loss import CaptionLoss, TokenAverages, caption_loss
from training.objective import Objective
from utils import EOS


class CrossEntropy(Objective):
    """The people's captions made likely, word by word."""

    averages = TokenAverages

    def loss(self, batch: Batch, indices: Sequence[int], epoch: int) -> CaptionLoss:
        train = self.config.train
        images = batch.images.to(self.device, non_blocking=True)
        captions = batch.captions.to(self.device, non_blocking=True)
        image_index = batch.image_index.to(self.device, non_blocking=True)
        read, probability = captions, rising(train.scheduled_sampling, epoch, train.epochs)
        if probability:
            read = self.own_words(images, captions, image_index, probability)
        with self.autocast():
            logits, alphas = self.model(images, read, image_index)
            return caption_loss(logits, captions, alphas, train.label_smoothing, train.attention_weight)

    def own_words(self, images, captions, image_index, probability: float) -> torch.Tensor:
        """Draw what the decoder reads, without dropout, as it will read its own words in the end."""
        self.model.eval()
        with torch.no_grad(), self.autocast():
            grid = self.model.grid(images)
            read = scheduled_sampling(self.model.decoder, grid, captions, image_index, probability)
        self.model.train()
        return read


def rising(last: float, epoch: int, epochs: int) -> float:
    """From 0 in the first epoch, in equal steps, to `last` in the last."""
    return last * (epoch - 1) / max(epochs - 1, 1)


def scheduled_sampling(
    decoder, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor, probability: float
) -> torch.Tensor:
    """The captions (M, T) with each word, by `probability`, replaced by one that the model says there.

    What it says depends on what it has read, replaced words included (Bengio et al., 2015, section 2.4). No
    gradient goes through the draw there either, so the words can be drawn first, and the loss computed by
    teacher forcing over what was drawn. `<sos>`, `<eos>` and padding stay where they are.
    """
    state = decoder.start(grid)
    state = type(state)(*(x.index_select(0, image_index) for x in state))
    read = captions.clone()
    for t in range(1, captions.shape[1] - 1):
        log_probs, state, _ = next_log_probs(decoder, read[:, t - 1], state, must_end=False)
        log_probs[:, EOS] = -torch.inf  # nothing is ever read after it
        own = torch.multinomial(log_probs.exp(), 1).squeeze(1)
        replaced = torch.rand(len(read), device=read.device) < probability
        read[:, t] = torch.where(replaced & (read[:, t] > EOS), own, read[:, t])
    return read
