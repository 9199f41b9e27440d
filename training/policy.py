"""The common part of the policy-gradient objectives: sampling captions and learning from their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compute import Compute
from config import Config
from data.dataset import Batch, Flickr8kDataset
from data.packing import PackedCaptions, pack
from data.shard_paths import require_all_captions
from metrics.rewards import Rewards
from models.model import CaptionModel
from training.averages import Averages
from training.objective import Objective, Prepared, count_of
from training.randomness import random_numbers
from training.rollout import Rollout, log_probabilities, rollout
from utils import PAD, UserError


class PolicyAverages(Averages):
    """Means over sampled captions; the entropy is a mean over tokens (words and <eos>)."""

    names: tuple[str, ...] = ("reward", "actor_loss", "entropy", "captions", "tokens")
    figures: tuple[str, ...] = ("reward", "actor_loss", "entropy")

    def read(self) -> dict[str, float]:
        """`reward` (before any baseline) and `actor_loss` per caption, `entropy` in nats per token."""
        sums = self.totals()
        captions, tokens = max(sums["captions"], 1), max(sums["tokens"], 1)
        return {
            "reward": sums["reward"] / captions,
            "actor_loss": sums["actor_loss"] / captions,
            "entropy": sums["entropy"] / tokens,
        }

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        return "reward {reward:.3f}, entropy {entropy:.2f}".format(**figures)


@dataclass(frozen=True)
class Sampled(Prepared):
    """M captions that the model has sampled for N images, and their rewards."""

    images: torch.Tensor  # (N, 3, H, W) or (N, L, C), on the host
    grid: torch.Tensor  # (N, L, C), without a gradient
    captions: PackedCaptions
    rewards: torch.Tensor  # (M,)

    def sums(self, actor_loss: torch.Tensor, entropy: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sums of PolicyAverages; `actor_loss` is a sum over captions, `entropy` (P,)."""
        return {
            "reward": self.rewards.sum(),
            "actor_loss": actor_loss.detach(),
            "entropy": entropy.detach().sum(),
            "captions": count_of(self.captions.num_captions, entropy),
            "tokens": count_of(len(self.captions), entropy),
        }


class PolicyObjective(Objective):
    """Samples captions, scores them, and computes their log-probabilities.

    Both passes run without dropout. With dropout, the second pass would draw other masks than the first, and
    its probabilities would not be those of the policy that sampled the captions. Without dropout, the policy
    is also the one that captions images after training.
    """

    first_epoch = 0  # best.pth is then never worse than the model that training starts from

    def __init__(self, model: CaptionModel, config: Config, compute: Compute, train_set: Flickr8kDataset):
        super().__init__(model, config, compute, train_set)
        captions, image_index = train_set.all_captions()
        vocab_size = model.decoder.embedding.num_embeddings
        self.rewards = Rewards(captions, image_index, vocab_size, config.rl.cider, config.rl.bleu)

    @classmethod
    def check(cls, config: Config) -> None:
        if config.train.init_from is None:
            raise UserError(
                f"train.objective={config.train.objective} starts from a trained model; set train.init_from "
                "to the best.pth of a run with train.objective=cross_entropy"
            )
        require_all_captions(config.data, f"train.objective={config.train.objective}")
        if not config.rl.cider and not config.rl.bleu:
            raise UserError("rl.cider and rl.bleu are both 0: there is nothing to reward; set one above 0")

    def num_captions(self, batch: Batch) -> int:
        return len(batch.images) * self.config.rl.samples

    # Sampling and the pass with a gradient need separate autocast contexts: a context caches the weights that
    # it converts, and weights converted during sampling would have no gradient.

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """The grid (N, L, C) of images or grids on the host. Switches dropout off."""
        self.model.eval()
        [images] = self.compute.to_device(images)
        with self.compute.autocast():
            return self.model.grid(images)

    def sample(self, grid: torch.Tensor, indices: Sequence[int], epoch: int, greedy: bool = False) -> Rollout:
        """`rl.samples` captions of each image; with `greedy`, the greedy caption comes before them."""
        config, rl = self.config, self.config.rl
        length = config.search.max_length + 1  # with <eos>
        numbers = random_numbers(config.run.seed, epoch, indices, rl.samples, length)
        [numbers] = self.compute.to_device(numbers)
        with self.compute.autocast():
            return rollout(self.model.decoder, grid, numbers, rl.temperature, greedy)

    def log_probabilities(self, images: torch.Tensor, grid: torch.Tensor, captions: PackedCaptions):
        """See training/rollout.py. A trained encoder computes the grid again, with a gradient."""
        grid = self.grid(images) if self.model.encoder.trained else grid
        with self.compute.autocast():
            return log_probabilities(self.model.decoder, grid, captions, self.config.rl.temperature)

    def score(self, captions: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """The rewards (M,) of captions (M, T + 1) on the host, M / N for each of the N images `indices`."""
        image_index = np.repeat(np.asarray(indices), len(captions) // len(indices))
        return torch.from_numpy(self.rewards(captions[:, 1:].numpy(), image_index)).float()

    def pack(self, captions: torch.Tensor, num_images: int) -> PackedCaptions:
        """Sampled captions (M, T + 1) on the host, M / N for each of N images, for teacher forcing."""
        image_index = torch.arange(num_images).repeat_interleave(len(captions) // num_images)
        return pack(captions, (captions != PAD).sum(dim=1), image_index, num_images).to(self.compute)
