"""Self-critical sequence training: the score itself as the reward (Rennie et al., 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from config import Config
from training.objective import Loss, Part, count_of
from training.policy import PolicyAverages, PolicyObjective, Sampled
from utils import UserError


@dataclass(frozen=True)
class Advantages(Sampled):
    advantages: torch.Tensor  # (M,) how much higher the reward is than the baseline


class SelfCritical(PolicyObjective):
    """Captions that score above a baseline become more likely, those below it less likely.

    The baseline is the score of the image's greedy caption, or the mean of the image's other samples (Luo,
    2020). Neither depends on the caption itself, so neither changes the expected gradient.
    """

    name = "self_critical"
    averages = PolicyAverages

    @classmethod
    def check(cls, config: Config) -> None:
        super().check(config)
        if config.rl.baseline == "leave_one_out" and config.rl.samples < 2:
            raise UserError("rl.samples: rl.baseline=leave_one_out needs 2 samples or more")

    def prepare(self, part: Part, epoch: int) -> Advantages:
        images, greedy = part.batch.images, self.config.rl.baseline == "greedy"
        grid = self.grid(images)
        captions = self.sample(grid, part.indices, epoch, greedy).captions.cpu()
        rewards = self.score(captions, part.indices).view(len(grid), -1)  # (N, K), or (N, 1 + K)
        if greedy:
            baseline, rewards = rewards[:, :1], rewards[:, 1:]
            captions = captions.view(len(grid), -1, captions.shape[1])[:, 1:].flatten(0, 1)
        else:
            baseline = leave_one_out(rewards)
        [advantages, rewards] = self.compute.to_device((rewards - baseline).flatten(), rewards.flatten())
        totals = {"captions": count_of(len(captions), grid)}
        return Advantages(totals, images, grid, self.pack(captions, len(grid)), rewards, advantages)

    def forward(self, prepared: Advantages, totals: Mapping[str, torch.Tensor]) -> Loss:
        captions = prepared.captions
        log_probs, entropy = self.log_probabilities(prepared.images, prepared.grid, captions)
        # The mean is over captions, not over tokens, so that its gradient is that of the expected reward.
        loss = -(prepared.advantages.index_select(0, captions.captions) * log_probs).sum()
        return Loss(loss / totals["captions"], prepared.sums(loss, entropy))


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """For each of the K rewards of an image (N, K), the mean of the K - 1 others."""
    return (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
