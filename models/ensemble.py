"""Several models as one: at each step, their probabilities are averaged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.decoder import Decoder
from models.state import DecoderState


@dataclass(frozen=True)
class EnsembleState:
    """The states of all members, for the same sequences."""

    members: Sequence[DecoderState]

    @property
    def image_index(self) -> torch.Tensor:
        return self.members[0].image_index

    def repeat(self, k: int) -> "EnsembleState":
        return EnsembleState([state.repeat(k) for state in self.members])

    def select(self, rows: torch.Tensor) -> "EnsembleState":
        return EnsembleState([state.select(rows) for state in self.members])

    def select_images(self, images: torch.Tensor) -> "EnsembleState":
        return EnsembleState([state.select_images(images) for state in self.members])


class Ensemble:
    """Decoders with the same vocabulary as one decoder, for `search`. Their grids may be of any sizes."""

    def __init__(self, decoders: Sequence[Decoder]):
        self.decoders = decoders

    def start(self, grids: Sequence[torch.Tensor]) -> EnsembleState:
        """`grids`: one for each decoder, (N, L, C)."""
        return EnsembleState([decoder.start(x) for decoder, x in zip(self.decoders, grids, strict=True)])

    def step(self, tokens: torch.Tensor, state: EnsembleState):
        """Read one token (B,).

        Returns:
            The logarithms of the mean probabilities (B, V), which are logits as well; the new state; and the
            alphas (B, L) of the first decoder that has any, or None.
        """
        members = zip(self.decoders, state.members, strict=True)
        logits, states, alphas = zip(*(decoder.step(tokens, own) for decoder, own in members), strict=True)
        log_probs = torch.stack([x.float().log_softmax(dim=1) for x in logits])
        mean = log_probs.logsumexp(dim=0) - math.log(len(log_probs))
        return mean, EnsembleState(states), next((x for x in alphas if x is not None), None)
