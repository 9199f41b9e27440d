"""The time loop of the attention decoder under teacher forcing, with its gradient written out.

Autograd computes the same gradient more slowly: at each step it fills a tensor of zeros as large as all
cells, only to add the gradient of the captions that have not ended, and it multiplies small matrices to add
up the gradient of each weight. Here gradients are added in place, and each weight has one product after the
loop.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from compute import BLOCK
from data.packing import PackedCaptions, spread
from models.lstm import LSTMCell, sigmoid_backward, state_dtype


class AttentionRecurrence(Function):
    """The steps of M captions; rows are those of PackedCaptions."""

    @staticmethod
    def forward(
        ctx,
        from_words: torch.Tensor,
        hidden: torch.Tensor,
        memory: torch.Tensor,
        cells: torch.Tensor,
        keys: torch.Tensor,
        score: torch.Tensor,
        from_state: torch.Tensor,
        bias: torch.Tensor,
        sizes: Sequence[int],
        from_context: torch.Tensor,
        captions: PackedCaptions,
    ):
        """
        Args:
            from_words: (P, 4H), the contribution of the words to the gates of the LSTM.
            hidden: (M, H), the state before the first step, longest caption first; `memory` (M, H).
            cells: (N, L, H); `keys` (N, L, A).
            score: (A,), the vector that energies are a product with.
            from_state: (A + 5H, H) with its `bias` (A + 5H,): from the state to the query, the gate beta and
                the four gates of the LSTM, which are one product of these `sizes`.
            from_context: (4H, H).

        Returns:
            hidden (P, H), gated context (P, H) and alphas (P, L).
        """
        dtype, exact = from_words.dtype, state_dtype(from_words)
        from_state, from_context = from_state.to(dtype), from_context.to(dtype)
        # tanh(x) = 2 sigmoid(2x) - 1, and a CPU computes sigmoid several times as fast. The -1 adds the same
        # number to the energies of all cells, which softmax ignores.
        keys, score = 2 * keys, 2 * score.to(dtype)
        shown = keys.new_empty(len(captions), *keys.shape[1:])  # sigmoid(2 (key + query))
        alphas = keys.new_empty(len(captions), keys.shape[1], dtype=exact)
        attended = cells.new_empty(len(captions), cells.shape[2])
        outputs, steps, first = [], [], 0
        hidden = hidden.to(dtype)
        for n, width in zip(captions.active, captions.per_image, strict=True):
            rows = slice(first, first + n)
            places = captions.images[:n] * width + captions.ranks[:n]
            last = hidden[:n]
            query, beta, gates = torch.addmm(bias.to(dtype), last, from_state.t()).split(list(sizes), dim=1)
            for block, images in _blocks(first, captions.images[:n], keys):
                part = shown[block]
                torch.index_select(keys, 0, images, out=part)
                at = slice(block.start - first, block.stop - first)
                part.add_(query[at].unsqueeze(1), alpha=2).sigmoid_()
                alphas[block] = torch.softmax((part @ score).to(exact), dim=1)
            attended[rows] = _of_images(alphas[rows].to(dtype), cells, places, width)
            beta = beta.sigmoid()
            context = beta * attended[rows]
            gates = torch.addmm(gates + from_words[rows], context, from_context.t()).to(exact)
            write, forget, read, value = gates.chunk(4, dim=1)
            cell, hidden, memory = LSTMCell.of(memory[:n].to(exact), write, forget, value, read)
            hidden = hidden.to(dtype)
            outputs.append((hidden, context))
            steps.append((last, cell, beta, places, width))
            first += n
        hiddens, contexts = (torch.cat(column) for column in zip(*outputs, strict=True))
        ctx.save_for_backward(cells, score, from_state, from_context, contexts, alphas, shown, attended)
        ctx.steps, ctx.sizes, ctx.captions = steps, list(sizes), captions
        return hiddens, contexts, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hiddens, d_contexts, d_alphas):
        cells, score, from_state, from_context, contexts, alphas, shown, attended = ctx.saved_tensors
        captions, exact = ctx.captions, alphas.dtype
        first, dim = contexts.shape
        # Sums over steps and captions are in float32: in bfloat16, small terms would get lost.
        d_keys = cells.new_zeros(*cells.shape[:2], len(score), dtype=exact)
        d_score = torch.zeros_like(score, dtype=exact)
        d_hidden, d_memory = cells.new_zeros(2, captions.num_captions, dim, dtype=exact).unbind()
        d_from_state = contexts.new_empty(first, sum(ctx.sizes))  # gradient of that product's result
        d_attended = torch.empty_like(attended)
        for last, cell, beta, places, width in reversed(ctx.steps):
            n = len(last)
            first -= n
            rows = slice(first, first + n)
            d_query, d_beta, d_gates = d_from_state[rows].split(ctx.sizes, dim=1)
            d_write, d_forget, d_read, d_value = d_gates.chunk(4, dim=1)
            cell.backward(d_hidden[:n] + d_hiddens[rows], d_memory[:n], d_write, d_forget, d_value, d_read)
            d_context = torch.addmm(d_contexts[rows], d_gates, from_context)
            d_beta.copy_(sigmoid_backward(d_context * attended[rows], beta))
            torch.mul(d_context, beta, out=d_attended[rows])
            d_alpha = d_alphas[rows] + _of_images(d_attended[rows], cells.transpose(1, 2), places, width)
            d_energies = torch._softmax_backward_data(d_alpha, alphas[rows], 1, exact).to(shown.dtype)
            for block, images in _blocks(first, captions.images[:n], shown):
                at = slice(block.start - first, block.stop - first)
                part, d_energy = shown[block], d_energies[at]
                d_score += torch.mv(part.flatten(0, 1).t(), d_energy.flatten())
                # The gradient of key + query, apart from the factor `score`, which follows below.
                d_sum = sigmoid_backward(d_energy.unsqueeze(2).expand_as(part), part)
                torch.sum(d_sum, dim=1, out=d_query[at])
                d_keys.index_add_(0, images, d_sum.to(exact))
            d_query *= 2 * score
            d_hidden[:n] = d_from_state[rows] @ from_state
        d_cells = torch.bmm(
            captions.by_image(alphas.to(cells.dtype)).transpose(1, 2), captions.by_image(d_attended)
        )
        lasts = torch.cat([step[0] for step in ctx.steps])
        d_gates = d_from_state[:, -4 * dim :]
        return (
            d_gates,
            d_hidden,
            d_memory,
            d_cells,
            d_keys.mul_(2 * score),
            2 * d_score,
            d_from_state.t() @ lasts,
            d_from_state.sum(dim=0),
            None,
            d_gates.t() @ contexts,
            None,
        )


def _of_images(rows: torch.Tensor, matrices: torch.Tensor, places: torch.Tensor, width: int) -> torch.Tensor:
    """Each row (n, A) times the matrix of its image, of (N, A, B) -> (n, B).

    An image has `width` places, one for each of its captions, which share its matrix: it is read once.
    """
    products = torch.bmm(spread(rows, places, len(matrices), width), matrices)  # (N, width, B)
    return products.flatten(0, 1).index_select(0, places)


def _blocks(first: int, images: torch.Tensor, like: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of a step, which begin at `first`, in blocks, with their images; on a GPU all at once."""
    n, size = len(images), len(images)
    if like.device.type == "cpu":
        size = max(1, BLOCK // like[0].numel())
    for at in range(0, n, size):
        stop = min(at + size, n)
        yield slice(first + at, first + stop), images[at:stop]
