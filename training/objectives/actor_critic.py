"""Advantage actor-critic (A2C; Mnih et al., 2016): a critic predicts the reward at each word."""

from collections.abc import Sequence

import torch
from torch import nn

from compute import Compute
from config import Config, RLConfig
from data.dataset import Batch, Flickr8kDataset
from models.model import CaptionModel
from training.objective import Loss, Term, count_of
from training.policy import PolicyAverages, PolicyObjective
from training.state import load_tensors
from utils import PAD


class Critic(nn.Module):
    """The decoder's state (P, F) when it chooses a word -> the expected return (P,)."""

    def __init__(self, input_dim: int, critic_dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_dim, critic_dim), nn.ReLU(), nn.Linear(critic_dim, 1))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.layers(state).squeeze(1)


class ActorCriticAverages(PolicyAverages):
    names = (*PolicyAverages.names, "critic_loss")
    figures = (*PolicyAverages.figures, "critic_loss")

    def read(self) -> dict[str, float]:
        """As PolicyAverages, and `critic_loss`, the mean squared error over tokens."""
        sums = self.totals()
        return {**super().read(), "critic_loss": sums["critic_loss"] / max(sums["tokens"], 1)}


class ActorCritic(PolicyObjective):
    """The decoder is the actor: words that are followed by more reward than expected become more likely.

    The critic reads the decoder's states, but no gradient flows from it to the decoder.
    """

    name = "actor_critic"
    averages = ActorCriticAverages

    def __init__(self, model: CaptionModel, config: Config, compute: Compute, train_set: Flickr8kDataset):
        super().__init__(model, config, compute, train_set)
        rl = config.rl
        self.critic = Critic(model.decoder.critic_dim, rl.critic_dim).to(compute.device)
        groups = [{"params": list(self.critic.parameters()), "peak": rl.critic_lr}]
        self.optimizers = [torch.optim.AdamW(groups, lr=rl.critic_lr, weight_decay=0.0, fused=True)]

    def forward(self, batch: Batch, indices: Sequence[int], epoch: int) -> Loss:
        rl = self.config.rl
        grid = self.grid(batch)
        captions, states = self.sample(grid, indices, epoch)
        captions = captions.cpu()
        rewards = self.score(captions, indices)
        packed = self.pack(captions, len(grid))
        expected = self.critic(states[packed.captions, packed.steps])
        [rewards] = self.compute.to_device(rewards)
        count = count_of(len(captions), grid)
        mean = self.compute.sum(rewards.sum()) / self.compute.sum(count)
        is_token = self.compute.to_device(captions[:, 1:] != PAD)[0]
        returns = discounted(prepare(rewards, mean, rl), is_token, rl.gamma)
        returns = returns[packed.captions, packed.steps]
        critic_loss = (returns - expected).square().sum()

        log_probs, entropy = self.log_probabilities(grid, packed)
        actor_loss = -((returns - expected.detach()) * log_probs).sum()
        bonus = entropy_weight(rl, epoch, self.config.train.epochs) * entropy.sum()
        num_tokens = count_of(len(packed), grid)
        sums = {
            "reward": rewards.sum(),
            "actor_loss": actor_loss.detach(),
            "entropy": entropy.detach().sum(),
            "captions": count,
            "tokens": num_tokens,
            "critic_loss": critic_loss.detach(),
        }
        return Loss([Term(actor_loss - bonus, count), Term(critic_loss, num_tokens, rl.value_weight)], sums)

    def training_state(self) -> dict:
        return {**super().training_state(), "critic": self.critic.state_dict()}

    def load_training_state(self, state: dict) -> None:
        super().load_training_state(state)
        load_tensors(self.critic, state.get("critic", {}))


def prepare(rewards: torch.Tensor, mean: torch.Tensor, rl: RLConfig) -> torch.Tensor:
    """The rewards (M,) that both networks learn from: minus the mean of the global batch, and clipped.

    The mean contains each reward with weight 1 / M, which only scales the expected gradient by 1 - 1 / M.
    """
    if rl.batch_mean:
        rewards = rewards - mean
    return rewards.clamp(-rl.reward_clip, rl.reward_clip) if rl.reward_clip else rewards


def discounted(rewards: torch.Tensor, is_token: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns (M, T): a caption's reward (M,) at its last token, times `gamma` for each token before that."""
    tokens_to_come = is_token.flip(1).cumsum(dim=1).flip(1) - 1
    return rewards.unsqueeze(1) * gamma**tokens_to_come


def entropy_weight(rl: RLConfig, epoch: int, epochs: int) -> float:
    """The weight of the entropy bonus; if annealed, it falls in equal steps to 1 / `epochs` of its value."""
    return rl.entropy_weight * ((epochs - epoch + 1) / epochs if rl.anneal_entropy else 1.0)
