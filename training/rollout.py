"""Captions as the model says them, and how likely they are: what both policy-gradient objectives stand on.

Captions are drawn word by word without a gradient, over `start` and `step`; then `forward`, the fast path,
computes the log-probabilities of what was said, with a gradient. Both run without dropout: with it, the
second pass would draw other masks than the first, and its probabilities would not be those of the policy
that spoke, whose gradient is what is estimated. It is also the policy that will caption images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from config import Config
from data.dataset import Batch
from metrics.rewards import Rewards
from models.model import CaptionModel
from models.search import next_log_probs, repeat
from training.averages import Averages
from training.objective import Objective
from utils import EOS, PAD, SOS, UNK

NEVER = -1e4  # a logit of no probability; unlike -inf it keeps 0 log 0, a term of the entropy, at 0


class Rollout(NamedTuple):
    """K captions of each of N images; M = N K, those of an image side by side."""

    captions: torch.Tensor  # (M, T + 1) int64, <sos>, words and <eos>, then <pad>
    hidden: torch.Tensor  # (M, T, H) the decoder's state when it chose each word


@torch.no_grad()
def rollout(
    decoder, grid: torch.Tensor, samples: int, max_length: int, temperature: float, greedy: bool = False
) -> Rollout:
    """Draw `samples` captions for each image behind `grid` (N, L, C); `greedy`: and one that is not drawn.

    The greedy one is the first of each image's. All are one batch, which captions leave as they end. One that
    has not ended after `max_length` words and one more token is cut there and has no <eos>.
    """
    k = samples + greedy
    state = repeat(decoder.start(grid), k)
    m, device = len(grid) * k, grid.device
    active = torch.arange(m, device=device)
    tokens = torch.full((m,), SOS, device=device)
    captions, hidden = [tokens], []
    while len(active) and len(hidden) <= max_length:
        log_probs, state, _ = next_log_probs(decoder, tokens, state, must_end=False, temperature=temperature)
        tokens = torch.multinomial(log_probs.exp(), 1).squeeze(1)
        if greedy:
            tokens = torch.where(active % k == 0, log_probs.argmax(dim=1), tokens)
        captions.append(torch.full((m,), PAD, device=device).index_copy(0, active, tokens))
        states = state.hidden.flatten(1).float()
        hidden.append(states.new_zeros(m, states.shape[1]).index_copy(0, active, states))
        speaking = (tokens != EOS).nonzero().squeeze(1)
        if len(speaking) < len(active):
            active, tokens = active[speaking], tokens[speaking]
            state = type(state)(*(x.index_select(0, speaking) for x in state))
    return Rollout(torch.stack(captions, dim=1), torch.stack(hidden, dim=1))


def log_probabilities(
    decoder, grid: torch.Tensor, captions: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """How likely each token was, and the entropy (nats) of what it was chosen from, with gradients.

    Args:
        grid: (N, L, C).
        captions: (M, T + 1) of a rollout, M / N of each image.

    Returns:
        Both (P,), for the tokens that are not padding, caption after caption.
    """
    image_index = torch.arange(len(grid), device=grid.device).repeat_interleave(len(captions) // len(grid))
    logits, _ = decoder(grid, captions, image_index)
    said = captions[:, 1:]
    real = said != PAD
    logits = logits[real].float() / temperature
    logits[:, [PAD, SOS, UNK]] = NEVER  # they cannot be said
    log_probs = logits.log_softmax(dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    return log_probs.gather(1, said[real].unsqueeze(1)).squeeze(1), entropy


def score(rewards: Rewards, captions: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """The rewards (M,) of a rollout's captions (M, T + 1) of the N images with these numbers."""
    images = np.repeat(np.asarray(indices), len(captions) // len(indices))
    scores = rewards(captions[:, 1:].cpu().numpy(), images)
    return torch.from_numpy(scores).to(captions.device, torch.float32)


class PolicyLoss(NamedTuple):
    """`objective` is what is minimised; the rest is what is reported, summed so that batches add up."""

    objective: torch.Tensor  # scalar
    reward: torch.Tensor  # scalar, sum over captions, before any baseline
    actor_loss: torch.Tensor  # scalar, sum over captions
    entropy: torch.Tensor  # scalar, sum over tokens, in nats
    captions: torch.Tensor  # scalar, sampled captions
    tokens: torch.Tensor  # scalar, their words and <eos>
    critic_loss: torch.Tensor | None = None  # scalar, sum over tokens of the squared error


class PolicyAverages(Averages):
    """Means over captions, and over tokens of what belongs to a token."""

    names = ("reward", "actor_loss", "entropy", "captions", "tokens")

    def read(self) -> dict[str, float]:
        """`reward` and `actor_loss` per sampled caption, `entropy` in nats per token."""
        sums = dict(zip(self.names, self.sums.tolist(), strict=True))
        captions, tokens = max(sums["captions"], 1), max(sums["tokens"], 1)
        return {
            "reward": sums["reward"] / captions,
            "actor_loss": sums["actor_loss"] / captions,
            "entropy": sums["entropy"] / tokens,
        }

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        return "reward {reward:.3f}, entropy {entropy:.2f}".format(**figures)


class PolicyObjective(Objective):
    """What learns from the scores of its own samples."""

    def __init__(
        self,
        model: CaptionModel,
        config: Config,
        device: torch.device,
        precision: torch.dtype,
        rewards: Rewards,
    ):
        super().__init__(model, config, device, precision)
        self.rewards = rewards

    def captions(self, batch: Batch) -> int:
        return len(batch.images) * self.config.rl.samples
