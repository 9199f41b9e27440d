"""Cross entropy over tokens without padding, and the regulariser of Show, Attend and Tell."""

from collections.abc import Mapping

import torch

from data.packing import PackedCaptions
from training.averages import Averages
from training.objective import Loss, count_of
from training.token_loss import TokenLoss


def caption_loss(
    logits: torch.Tensor,
    captions: PackedCaptions,
    alphas: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    attention_weight: float = 0.0,
    totals: Mapping[str, torch.Tensor] | None = None,
) -> Loss:
    """The loss of teacher forcing; it reports the sums of TokenAverages.

    Args:
        logits: (P, V), for the targets of `captions`.
        alphas: (P, L).
        label_smoothing: share of the target's probability that is spread evenly over all words (Szegedy et
            al., 2016).
        attention_weight: weight of the doubly stochastic regulariser, (1 - sum over steps of alpha)^2 (Xu et
            al., 2015, equation 14). In the paper it is summed over cells and the cross entropy over tokens;
            here both are means. A sum added to a mean would force attention to be uniform.
        totals: of `caption_totals`, for all captions that the means are over; None: these captions.
    """
    smoothed, nll, top5 = TokenLoss.apply(logits, captions.targets, label_smoothing)
    tokens = count_of(len(captions), logits)
    totals = totals or caption_totals(captions)
    loss = smoothed / totals["tokens"]
    if alphas is not None and attention_weight:
        sums = alphas.new_zeros(captions.num_captions, alphas.shape[1])  # (M, L), over the steps
        deviation = (1 - sums.index_add(0, captions.captions, alphas)).square()
        loss = loss + attention_weight * deviation.mean(dim=1).sum() / totals["captions"]
    return Loss(loss, {"nll": nll, "top5": top5, "tokens": tokens})


def caption_totals(captions: PackedCaptions) -> dict[str, torch.Tensor]:
    """The numbers that the means of `caption_loss` are over: `tokens` and `captions`."""
    like = captions.targets
    return {"tokens": count_of(len(captions), like), "captions": count_of(captions.num_captions, like)}


class TokenAverages(Averages):
    """Means over tokens (words and <eos>, no padding).

    `nll` is the sum of -log p(token) in nats, `top5` the number of tokens among the five most likely ones.
    """

    names = ("nll", "top5", "tokens")
    figures = ("loss", "perplexity", "top5")

    def read(self) -> dict[str, float]:
        """`loss` (nats per token), `perplexity` and `top5` (share of tokens) so far."""
        sums = self.totals()
        tokens = max(sums["tokens"], 1)
        loss = sums["nll"] / tokens
        return {"loss": loss, "perplexity": float(torch.tensor(loss).exp()), "top5": sums["top5"] / tokens}

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        return "loss {loss:.3f}, perplexity {perplexity:.1f}".format(**figures)
