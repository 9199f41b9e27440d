"""Advantage actor-critic (A2C; Mnih et al., 2016): a critic foresees the reward, word by word."""

from collections.abc import Sequence

import torch
from torch import nn

from config import Config, RLConfig
from data.dataset import Batch
from metrics.rewards import Rewards
from models.model import CaptionModel
from training.rollout import PolicyAverages, PolicyLoss, PolicyObjective, log_probabilities, rollout, score
from utils import PAD


class Critic(nn.Module):
    """The decoder's state (P, H) when it is about to choose a word -> the return (P,) that it may expect."""

    def __init__(self, hidden_dim: int, critic_dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_dim, critic_dim), nn.ReLU(), nn.Linear(critic_dim, 1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden).squeeze(1)


class ActorCriticAverages(PolicyAverages):
    names = (*PolicyAverages.names, "critic_loss")

    def read(self) -> dict[str, float]:
        """PolicyAverages', and `critic_loss`, the mean squared error over tokens."""
        *_, tokens, critic_loss = self.sums.tolist()
        return {**super().read(), "critic_loss": critic_loss / max(tokens, 1)}


class ActorCritic(PolicyObjective):
    """The captioner is the actor: words after which more reward comes than was expected become likelier.

    The critic reads the decoder's states and does not shape them: no gradient goes from it to the decoder.
    """

    averages = ActorCriticAverages

    def __init__(
        self,
        model: CaptionModel,
        config: Config,
        device: torch.device,
        precision: torch.dtype,
        rewards: Rewards,
    ):
        super().__init__(model, config, device, precision, rewards)
        decoder, rl = config.decoder, config.rl
        self.critic = Critic(decoder.hidden_dim * decoder.layers, rl.critic_dim).to(device)
        groups = [{"params": list(self.critic.parameters()), "peak": rl.critic_lr}]
        self.optimizers = [torch.optim.AdamW(groups, lr=rl.critic_lr, weight_decay=0.0, fused=True)]

    def loss(self, batch: Batch, indices: Sequence[int], epoch: int) -> PolicyLoss:
        rl = self.config.rl
        self.model.eval()  # see rollout.py
        with self.autocast():
            grid = self.model.grid(batch.images.to(self.device, non_blocking=True))
        with self.autocast():
            captions, hidden = rollout(
                self.model.decoder,
                grid.detach(),
                rl.samples,
                self.config.search.max_length,
                rl.temperature,
            )
        rewards = score(self.rewards, captions, indices)
        real = captions[:, 1:] != PAD
        expected = self.critic(hidden[real])
        returns = discounted(prepare(rewards, rl), real, rl.gamma)[real]
        critic_loss = (returns - expected).square()

        with self.autocast():
            log_probs, entropy = log_probabilities(self.model.decoder, grid, captions, rl.temperature)
        actor_loss = -((returns - expected.detach()) * log_probs).sum()
        bonus = entropy_weight(rl, epoch, self.config.train.epochs) * entropy.sum()
        count = torch.tensor(len(captions), device=self.device)
        return PolicyLoss(
            (actor_loss - bonus) / count + rl.value_weight * critic_loss.mean(),
            rewards.sum(),
            actor_loss.detach(),
            entropy.detach().sum(),
            count,
            real.sum(),
            critic_loss.detach().sum(),
        )

    def state_dict(self) -> dict:
        return {**super().state_dict(), "critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])


def prepare(rewards: torch.Tensor, rl: RLConfig) -> torch.Tensor:
    """The rewards (M,) that the critic sees: less the batch's mean, and clipped.

    A mean in which a caption has an M-th part shortens the expected gradient by that part, no more.
    """
    if rl.batch_mean:
        rewards = rewards - rewards.mean()
    return rewards.clamp(-rl.reward_clip, rl.reward_clip) if rl.reward_clip else rewards


def discounted(rewards: torch.Tensor, real: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns (M, T): the reward (M,) comes with a caption's last token, `gamma` less for each one before."""
    to_come = real.flip(1).cumsum(dim=1).flip(1) - 1
    return rewards.unsqueeze(1) * gamma**to_come


def entropy_weight(rl: RLConfig, epoch: int, epochs: int) -> float:
    """The weight of the entropy bonus: annealed, it falls in equal steps, to an E-th in epoch E."""
    return rl.entropy_weight * ((epochs - epoch + 1) / epochs if rl.anneal_entropy else 1.0)
