"""Advantage actor-critic (A2C; Mnih et al., 2016): a critic predicts the reward at each word."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from compute import Compute
from config import Config, RLConfig
from data.dataset import Flickr8kDataset
from data.packing import PackedCaptions
from models.model import CaptionModel
from training.objective import Loss, Part, count_of
from training.policy import PolicyAverages, PolicyObjective, Sampled
from training.state import load_tensors


@dataclass(frozen=True)
class Chosen(Sampled):
    states: torch.Tensor  # (P, F) of the decoder when it chose each token
    entropy_weight: float  # in this epoch


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

    def prepare(self, part: Part, epoch: int) -> Chosen:
        images = part.batch.images
        grid = self.grid(images)
        captions, states = self.sample(grid, part.indices, epoch)
        captions = captions.cpu()
        [rewards] = self.compute.to_device(self.score(captions, part.indices))
        packed = self.pack(captions, len(grid))
        totals = {
            "reward": rewards.sum(),
            "captions": count_of(len(captions), grid),
            "tokens": count_of(len(packed), grid),
        }
        weight = entropy_weight(self.config.rl, epoch, self.config.train.epochs)
        states = states[packed.captions, packed.steps]
        return Chosen(totals, images, grid, packed, rewards, states, weight)

    def forward(self, prepared: Chosen, totals: Mapping[str, torch.Tensor]) -> Loss:
        rl, captions = self.config.rl, prepared.captions
        expected = self.critic(prepared.states)
        rewards = prepare(prepared.rewards, totals["reward"] / totals["captions"], rl)
        returns = discounted(rewards, captions, rl.gamma)
        critic_loss = (returns - expected).square().sum()

        log_probs, entropy = self.log_probabilities(prepared.images, prepared.grid, captions)
        actor_loss = -((returns - expected.detach()) * log_probs).sum()
        loss = (actor_loss - prepared.entropy_weight * entropy.sum()) / totals["captions"]
        loss = loss + rl.value_weight * critic_loss / totals["tokens"]
        sums = prepared.sums(actor_loss, entropy)
        return Loss(loss, {**sums, "critic_loss": critic_loss.detach()})

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


def discounted(rewards: torch.Tensor, captions: PackedCaptions, gamma: float) -> torch.Tensor:
    """Returns (P,): a caption's reward (M,) at its last token, times `gamma` for each token before that."""
    of_token = captions.captions
    lengths = of_token.new_zeros(captions.num_captions).index_add(0, of_token, torch.ones_like(of_token))
    tokens_to_come = lengths.index_select(0, of_token) - 1 - captions.steps
    return rewards.index_select(0, of_token) * gamma**tokens_to_come


def entropy_weight(rl: RLConfig, epoch: int, epochs: int) -> float:
    """The weight of the entropy bonus; if annealed, it falls in equal steps to 1 / `epochs` of its value."""
    return rl.entropy_weight * ((epochs - epoch + 1) / epochs if rl.anneal_entropy else 1.0)
