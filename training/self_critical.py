"""Self-critical sequence training: the score itself as the reward (Rennie et al., 2017)."""

from collections.abc import Sequence

import torch

from data.dataset import Batch
from training.rollout import PolicyAverages, PolicyLoss, PolicyObjective, log_probabilities, rollout, score
from utils import PAD


class SelfCritical(PolicyObjective):
    """Captions that score better than the model's own level become likelier, worse ones less likely.

    The level is the score of the greedy caption of the image, or the mean of the image's other samples (Luo,
    2020). Neither depends on the caption that it judges, so neither changes the expected gradient.
    """

    averages = PolicyAverages

    def loss(self, batch: Batch, indices: Sequence[int], epoch: int) -> PolicyLoss:
        rl = self.config.rl
        greedy = rl.baseline == "greedy"
        self.model.eval()  # see rollout.py
        with self.autocast():
            grid = self.model.grid(batch.images.to(self.device, non_blocking=True))
        with self.autocast():
            captions, _ = rollout(
                self.model.decoder,
                grid.detach(),
                rl.samples,
                self.config.search.max_length,
                rl.temperature,
                greedy,
            )
        rewards = score(self.rewards, captions, indices).view(len(grid), -1)  # (N, K), or (N, 1 + K)
        if greedy:
            baseline, rewards = rewards[:, :1], rewards[:, 1:]
            captions = captions.view(len(grid), -1, captions.shape[1])[:, 1:].flatten(0, 1)
        else:
            baseline = leave_one_out(rewards)
        advantage = (rewards - baseline).flatten()

        real = captions[:, 1:] != PAD
        with self.autocast():
            log_probs, entropy = log_probabilities(self.model.decoder, grid, captions, rl.temperature)
        # The mean over captions, not over tokens: its gradient is that of the expected reward.
        loss = -(advantage.unsqueeze(1).expand_as(real)[real] * log_probs).sum()
        count = torch.tensor(len(captions), device=self.device)
        return PolicyLoss(
            loss / count, rewards.sum(), loss.detach(), entropy.detach().sum(), count, real.sum()
        )


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """For each of an image's K rewards (N, K) the mean of the K - 1 others."""
    return (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
