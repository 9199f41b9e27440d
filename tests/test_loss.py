"""The loss of teacher forcing, against numbers worked out by hand."""

import math

import pytest
import torch

from compute import Compute
from tests.helpers import CPU, packed
from training.loss import TokenAverages, caption_loss, caption_totals
from utils import EOS, PAD, SOS, UNK

CAPTIONS = torch.tensor([[SOS, 4, EOS, PAD], [SOS, UNK, 4, EOS]])  # 2 and 3 tokens to predict


def toy_logits() -> torch.Tensor:
    """Five words. Every step that is not padding gives its target e^2 against e^0 for the other four."""
    logits = torch.zeros(2, 3, 5)
    for m, t in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        logits[m, t, CAPTIONS[m, t + 1]] = 2.0
    return logits


def padded_loss(logits: torch.Tensor, captions: torch.Tensor, alphas: torch.Tensor | None = None, **settings):
    """The loss of logits (M, T - 1, V) and alphas (M, T - 1, L) with padding."""
    rows = packed(captions, torch.arange(len(captions)), len(captions))
    at = rows.captions, rows.steps
    return caption_loss(logits[at], rows, None if alphas is None else alphas[at], **settings)


def test_the_loss_of_a_toy_model_is_the_number_worked_out_by_hand():
    nll = math.log(math.e**2 + 4) - 2  # -log of e^2 / (e^2 + 4)
    loss = padded_loss(toy_logits(), CAPTIONS)
    assert float(loss.total) == pytest.approx(nll)
    assert float(loss.sums["nll"]) == pytest.approx(5 * nll)
    assert int(loss.sums["tokens"]) == 5


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution():
    nll = math.log(math.e**2 + 4) - 2
    uniform = math.log(math.e**2 + 4) - 2 / 5  # mean of -log p over the five words
    loss = padded_loss(toy_logits(), CAPTIONS, label_smoothing=0.1)
    assert float(loss.total) == pytest.approx(0.9 * nll + 0.1 * uniform)
    assert float(loss.sums["nll"]) == pytest.approx(5 * nll)  # the reported sum is not smoothed


def test_padding_never_counts():
    logits = toy_logits()
    logits[0, 2] = torch.tensor([9.0, -9, 4, 1, 0])  # after the end of the first caption
    a, b = padded_loss(logits, CAPTIONS), padded_loss(toy_logits(), CAPTIONS)
    assert a.total == b.total
    assert a.sums == b.sums
    wide = torch.nn.functional.pad(logits, (0, 0, 0, 3))
    c = padded_loss(wide, torch.nn.functional.pad(CAPTIONS, (0, 3)))
    assert float(c.total) == pytest.approx(float(b.total))


def test_a_model_that_knows_nothing_has_the_perplexity_of_the_vocabulary():
    averages = TokenAverages(CPU)
    averages.add(padded_loss(torch.zeros(2, 3, 5), CAPTIONS).sums)
    assert averages.read()["perplexity"] == pytest.approx(5)


def test_the_regulariser_is_zero_for_even_attention_and_the_number_worked_out_by_hand_otherwise():
    even = torch.full((2, 3, 2), 0.5)
    even[0, 2] = 0  # padding; the first caption sums to (1, 1), the second to (1.5, 1.5)
    base = float(padded_loss(toy_logits(), CAPTIONS).total)
    loss = padded_loss(toy_logits(), CAPTIONS, even, attention_weight=2.0)
    assert float(loss.total) - base == pytest.approx(2.0 * (0 + 0.5**2) / 2)


def test_top5_counts_the_tokens_whose_word_is_among_the_five_most_likely():
    logits = torch.arange(8.0).repeat(1, 2, 1)  # the most likely words are 7, 6, 5, 4, 3
    loss = padded_loss(logits, torch.tensor([[SOS, 3, EOS]]))
    assert int(loss.sums["top5"]) == 1


def test_averages_weigh_batches_by_their_tokens():
    whole, parts = TokenAverages(CPU), TokenAverages(CPU)
    logits = torch.randn(2, 3, 5)
    whole.add(padded_loss(logits, CAPTIONS).sums)
    for m in range(2):
        parts.add(padded_loss(logits[m : m + 1], CAPTIONS[m : m + 1]).sums)
    assert parts.read() == pytest.approx(whole.read())


class OfTwo(Compute):
    """One of two processes; both have equal shares of every sum."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor.detach()


OF_TWO = OfTwo(torch.device("cpu"), world_size=2)


def test_the_losses_of_parts_add_up_to_that_of_the_batch():
    totals, even = caption_totals(packed(CAPTIONS, torch.tensor([0, 1]), 2)), torch.full((2, 3, 2), 0.3)
    settings = {"label_smoothing": 0.1, "attention_weight": 0.5}
    whole = padded_loss(toy_logits(), CAPTIONS, even, **settings).total
    parts = [
        padded_loss(toy_logits()[m : m + 1], CAPTIONS[m : m + 1], even[:1], totals=totals, **settings).total
        for m in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_averages_are_over_all_processes():
    averages = TokenAverages(OF_TWO)
    averages.add(padded_loss(toy_logits(), CAPTIONS).sums)
    assert averages.totals()["tokens"] == 10


def test_averages_continue_from_the_sums_of_a_checkpoint():
    averages = TokenAverages(CPU)
    averages.add(padded_loss(toy_logits(), CAPTIONS).sums)
    assert TokenAverages(CPU, averages.sums.tolist()).read() == averages.read()
    assert averages.read()["loss"] > 0
