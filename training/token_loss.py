"""Cross entropy with label smoothing over a large vocabulary, a block of tokens at a time."""

import torch
from torch.autograd.function import once_differentiable

from compute import BLOCK

_GPU_BLOCK = 256 * BLOCK  # few and large kernels


class TokenLoss(torch.autograd.Function):
    """logits (P, V), targets (P,), label smoothing -> smoothed loss, nll, top5; three sums over the tokens.

    The softmax yields both the loss and, less the target's distribution, the gradient. With `log_softmax` and
    autograd, a table of P x V numbers is written and read a dozen times in float32. Here a block of rows is
    computed to the end while it is in the cache, and only its gradient is written, in the logits' own type.
    """

    @staticmethod
    def forward(ctx, logits, targets, smoothing):
        vocab_size = logits.shape[1]
        # In float16, probabilities below 6e-8 would vanish: the scale of the loss comes after this gradient.
        dtype = torch.float32 if logits.dtype is torch.float16 else logits.dtype
        gradient = torch.empty_like(logits, dtype=dtype) if ctx.needs_input_grad[0] else None
        smoothed, nll, top5 = (torch.zeros((), device=logits.device) for _ in range(3))
        size = max(1, (BLOCK if logits.device.type == "cpu" else _GPU_BLOCK) // vocab_size)
        for start in range(0, len(logits), size):
            rows = logits[start : start + size].float()
            wanted = targets[start : start + size].unsqueeze(1)
            target, largest = rows.gather(1, wanted), rows.amax(dim=1, keepdim=True)
            # As numbers, which are added up several times as fast as booleans.
            top5 += (torch.gt(rows, target, out=torch.empty_like(rows)).sum(dim=1) < 5).sum()
            mean = rows.mean(dim=1, keepdim=True) - largest
            target = target - largest
            softmax = rows.softmax(dim=1)
            log_total = -softmax.amax(dim=1, keepdim=True).log()
            nll += (log_total - target).sum()
            smoothed += (log_total - (1 - smoothing) * target - smoothing * mean).sum()
            if gradient is not None:
                softmax.sub_(smoothing / vocab_size)
                softmax.scatter_add_(1, wanted, softmax.new_full((), smoothing - 1).expand_as(wanted))
                gradient[start : start + size] = softmax
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(nll, top5)
        return smoothed, nll, top5

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        [gradient] = ctx.saved_tensors
        return gradient * upstream, None, None
