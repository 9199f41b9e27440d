"""The loss by blocks is that of the textbook, and so is its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import token_loss
from training.token_loss import TokenLoss


def textbook(logits: torch.Tensor, targets: torch.Tensor, smoothing: float):
    log_probs = logits.float().log_softmax(dim=1)
    target = log_probs.gather(1, targets.unsqueeze(1))
    smoothed = -(1 - smoothing) * target.sum() - smoothing * log_probs.mean(dim=1).sum()
    return smoothed, -target.sum(), ((log_probs > target).sum(dim=1) < 5).sum()


def example(tokens: int, words: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, words, generator=random)
    return logits.requires_grad_(), torch.randint(words, (tokens,), generator=random)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 20),
    st.integers(2, 12),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 99),
)
def test_loss_and_gradient_are_those_of_the_textbook_whatever_the_blocks(
    tokens, words, block, smoothing, seed
):
    logits, targets = example(tokens, words, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_loss, "BLOCK", block)
        found = TokenLoss.apply(logits, targets, smoothing)
    expected = textbook(logits, targets, smoothing)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.detach(), b.detach().to(a.dtype), rtol=1e-5, atol=1e-5)
    [a], [b] = (torch.autograd.grad(loss[0] * 0.3, logits) for loss in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-300.0, 300.0, 0.0]], requires_grad=True)
    loss, nll, _ = TokenLoss.apply(logits, torch.tensor([1, 1]), 0.0)
    assert float(loss.detach()) == float(nll) == 2e4
    [gradient] = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [[1, -1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)]
)
def test_the_gradient_is_kept_in_the_type_of_the_logits_unless_small_probabilities_would_vanish(dtype, kept):
    logits, targets = example(6, 9)
    rounded = logits.detach().to(dtype).requires_grad_()
    loss, *_ = TokenLoss.apply(rounded, targets, 0.1)
    assert loss.grad_fn.saved_tensors[0].dtype is kept
    [found] = torch.autograd.grad(loss, rounded)
    [expected] = torch.autograd.grad(textbook(rounded, targets, 0.1)[0], rounded)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)


def test_without_a_gradient_none_is_computed():
    logits, targets = example(6, 9)
    with torch.no_grad():
        loss, *_ = TokenLoss.apply(logits, targets, 0.1)
    assert loss.grad_fn is None
