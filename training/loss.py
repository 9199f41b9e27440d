"""Cross entropy over tokens without padding, and the regulariser of Show, Attend and Tell."""

import torch

from training.averages import Averages
from training.objective import Loss, Term
from utils import PAD


def caption_loss(
    logits: torch.Tensor,
    captions: torch.Tensor,
    alphas: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    attention_weight: float = 0.0,
) -> Loss:
    """The loss of teacher forcing; it reports the sums of TokenAverages.

    Args:
        logits: (M, T - 1, V); logits at t are for the caption's token t + 1.
        captions: (M, T), `<sos> words <eos>` and padding.
        alphas: (M, T - 1, L), zero for padding.
        label_smoothing: share of the target's probability that is spread evenly over all words (Szegedy et
            al., 2016).
        attention_weight: weight of the doubly stochastic regulariser, (1 - sum over steps of alpha)^2 (Xu et
            al., 2015, equation 14). In the paper it is summed over cells and the cross entropy over tokens;
            here both are means. A sum added to a mean would force attention to be uniform.
    """
    targets = captions[:, 1:]
    is_token = targets != PAD
    log_probs = logits[is_token].float().log_softmax(dim=1)
    target = log_probs.gather(1, targets[is_token].unsqueeze(1))
    nll, tokens = -target.sum(), is_token.sum()
    smoothed = (1 - label_smoothing) * nll - label_smoothing * log_probs.mean(dim=1).sum()
    terms = [Term(smoothed, tokens)]
    if alphas is not None and attention_weight:
        deviation = (1 - alphas.sum(dim=1)).square()  # (M, L)
        count = torch.tensor(deviation.numel(), device=deviation.device)
        terms.append(Term(deviation.sum(), count, attention_weight))
    with torch.no_grad():
        top5 = ((log_probs > target).sum(dim=1) < 5).sum()
    return Loss(terms, {"nll": nll.detach(), "top5": top5, "tokens": tokens})


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
