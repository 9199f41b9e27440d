"""The loss of teacher forcing, against numbers worked out by hand."""

import math

import pytest
import torch

from training.loss import TokenAverages, caption_loss

CAPTIONS = torch.tensor([[1, 4, 2, 0], [1, 3, 4, 2]])  # two captions: 2 and 3 tokens to predict


def toy_logits() -> torch.Tensor:
    """Five words. Every real step gives its target e^2 against e^0 for the other four."""
    logits = torch.zeros(2, 3, 5)
    for m, t in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        logits[m, t, CAPTIONS[m, t + 1]] = 2.0
    return logits


def test_the_loss_of_a_toy_model_is_the_number_worked_out_by_hand():
    nll = math.log(math.e**2 + 4) - 2  # -log of e^2 / (e^2 + 4)
    loss = caption_loss(toy_logits(), CAPTIONS)
    assert float(loss.objective) == pytest.approx(nll)
    assert float(loss.nll) == pytest.approx(5 * nll)
    assert int(loss.tokens) == 5


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution():
    nll = math.log(math.e**2 + 4) - 2
    uniform = math.log(math.e**2 + 4) - 2 / 5  # mean of -log p over the five words
    loss = caption_loss(toy_logits(), CAPTIONS, label_smoothing=0.1)
    assert float(loss.objective) == pytest.approx(0.9 * nll + 0.1 * uniform)
    assert float(loss.nll) == pytest.approx(5 * nll)  # what is reported is not smoothed


def test_padding_never_counts():
    logits = toy_logits()
    logits[0, 2] = torch.tensor([9.0, -9, 4, 1, 0])  # where the first caption is over
    a, b = caption_loss(logits, CAPTIONS), caption_loss(toy_logits(), CAPTIONS)
    assert a == b
    wide = torch.nn.functional.pad(logits, (0, 0, 0, 3))
    c = caption_loss(wide, torch.nn.functional.pad(CAPTIONS, (0, 3)))
    assert float(c.objective) == pytest.approx(float(b.objective))


def test_a_model_that_knows_nothing_has_the_perplexity_of_the_vocabulary():
    averages = TokenAverages(torch.device("cpu"))
    averages.add(caption_loss(torch.zeros(2, 3, 5), CAPTIONS))
    assert averages.read()["perplexity"] == pytest.approx(5)


def test_the_regulariser_is_zero_for_even_attention_and_the_number_worked_out_by_hand_else():
    even = torch.full((2, 3, 2), 0.5)
    even[0, 2] = 0  # padding; the first caption sums to (1, 1), the second to (1.5, 1.5)
    base = float(caption_loss(toy_logits(), CAPTIONS).objective)
    loss = caption_loss(toy_logits(), CAPTIONS, even, attention_weight=2.0)
    assert float(loss.objective) - base == pytest.approx(2.0 * (0 + 0.5**2) / 2)


def test_top5_counts_the_tokens_whose_word_is_among_the_five_likeliest():
    logits = torch.arange(8.0).repeat(1, 2, 1)  # the likeliest words are 7, 6, 5, 4, 3
    loss = caption_loss(logits, torch.tensor([[1, 3, 2]]))
    assert int(loss.top5) == 1


def test_averages_weigh_batches_by_their_tokens():
    whole, parts = TokenAverages(torch.device("cpu")), TokenAverages(torch.device("cpu"))
    logits = torch.randn(2, 3, 5)
    whole.add(caption_loss(logits, CAPTIONS))
    for m in range(2):
        parts.add(caption_loss(logits[m : m + 1], CAPTIONS[m : m + 1]))
    assert parts.read() == pytest.approx(whole.read())
