"""Self-critical sequence training: the score itself as the reward (Rennie et al., 2017)."""

from collections.abc import Sequence

import torch

from config import Config
from data.dataset import Batch
from training.objective import Loss, Term, count_of
from training.policy import PolicyAverages, PolicyObjective
from utils import UserError


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

    def forward(self, batch: Batch, indices: Sequence[int], epoch: int) -> Loss:
        rl = self.config.rl
        greedy = rl.baseline == "greedy"
        grid = self.grid(batch)
        captions = self.sample(grid, indices, epoch, greedy).captions.cpu()
        rewards = self.score(captions, indices).view(len(grid), -1)  # (N, K), or (N, 1 + K)
        if greedy:
            baseline, rewards = rewards[:, :1], rewards[:, 1:]
            captions = captions.view(len(grid), -1, captions.shape[1])[:, 1:].flatten(0, 1)
        else:
            baseline = leave_one_out(rewards)
        [advantage, rewards] = self.compute.to_device((rewards - baseline).flatten(), rewards)

        packed = self.pack(captions, len(grid))
        log_probs, entropy = self.log_probabilities(grid, packed)
        # The mean is over captions, not over tokens, so that its gradient is that of the expected reward.
        loss = -(advantage.index_select(0, packed.captions) * log_probs).sum()
        count = count_of(len(captions), loss)
        sums = {
            "reward": rewards.sum(),
            "actor_loss": loss.detach(),
            "entropy": entropy.detach().sum(),
            "captions": count,
            "tokens": count_of(len(packed), loss),
        }
        return Loss([Term(loss, count)], sums)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """For each of the K rewards of an image (N, K), the mean of the K - 1 others."""
    return (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
