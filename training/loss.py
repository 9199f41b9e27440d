"""Cross entropy over real tokens, and Show, Attend and Tell's regulariser."""

from typing import NamedTuple

import torch

from training.averages import Averages
from utils import PAD


class CaptionLoss(NamedTuple):
    """`objective` is what is minimised; the rest is what is reported, summed so that batches add up."""

    objective: torch.Tensor  # scalar, smoothed and regularised, mean per token
    nll: torch.Tensor  # scalar, sum of -log p(word) in nats: perplexity is exp(nll / tokens)
    top5: torch.Tensor  # scalar, tokens whose word is among the five likeliest
    tokens: torch.Tensor  # scalar, words and <eos>; padding never counts


def caption_loss(
    logits: torch.Tensor,
    captions: torch.Tensor,
    alphas: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    attention_weight: float = 0.0,
) -> CaptionLoss:
    """Loss of teacher forcing.

    Args:
        logits: (M, T - 1, V); logits at t are for the caption's token t + 1.
        captions: (M, T), `<sos> words <eos>` and padding.
        alphas: (M, T - 1, L), zero where there is padding.
        label_smoothing: share of the target's probability that is spread evenly over all words (Szegedy et
            al., 2016).
        attention_weight: weight of the doubly stochastic regulariser, (1 - sum over steps of alpha)^2 (Xu et
            al., 2015, equation 14); its mean over cells, where the paper sums, since the cross entropy is
            the mean over tokens, where the paper sums: else it would force attention to be even.
    """
    targets = captions[:, 1:]
    real = targets != PAD
    log_probs = logits[real].float().log_softmax(dim=1)
    target = log_probs.gather(1, targets[real].unsqueeze(1))
    nll, tokens = -target.sum(), real.sum()
    objective = (1 - label_smoothing) * nll - label_smoothing * log_probs.mean(dim=1).sum()
    objective = objective / tokens
    if alphas is not None and attention_weight:
        objective = objective + attention_weight * (1 - alphas.sum(dim=1)).square().mean()
    with torch.no_grad():
        top5 = ((log_probs > target).sum(dim=1) < 5).sum()
    return CaptionLoss(objective, nll.detach(), top5, tokens)


class TokenAverages(Averages):
    """Means over tokens."""

    names = ("nll", "top5", "tokens")

    def read(self) -> dict[str, float]:
        """`loss` (nats per token), `perplexity` and `top5` (share of tokens) since the beginning."""
        nll, top5, tokens = self.sums.tolist()
        loss = nll / max(tokens, 1)
        return {"loss": loss, "perplexity": float(torch.tensor(loss).exp()), "top5": top5 / max(tokens, 1)}

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        return "loss {loss:.3f}, perplexity {perplexity:.1f}".format(**figures)
