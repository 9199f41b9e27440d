"""An LSTM over packed captions, and one step of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from data.packing import PackedCaptions
from models.dropout import dropout

_tanh_backward = torch.ops.aten.tanh_backward  # (gradient, tanh(x)) -> gradient for x
sigmoid_backward = torch.ops.aten.sigmoid_backward  # (gradient, sigmoid(x)) -> gradient for x


class LSTMSequence(NamedTuple):
    """The part of a decoder's state that changes with every word, for B sequences."""

    hidden: torch.Tensor  # (B, layers, H)
    memory: torch.Tensor  # (B, layers, H), the LSTM's cell state


class PackedLSTM(nn.LSTM):
    """torch's LSTM for packed captions. `dropout` acts between layers, in training."""

    def __init__(self, input_dim: int, hidden_dim: int, layers: int, dropout: float):
        super().__init__(input_dim, hidden_dim, layers, dropout=dropout if layers > 1 else 0.0)
        for name, bias in self.named_parameters():
            if name.startswith("bias_ih"):
                open_forget_gate(bias)

    def forward(self, inputs, hidden, memory):  # type: ignore[override]
        """Read one token.

        Args:
            inputs: (B, input_dim).
            hidden: (B, layers, H); `memory` (B, layers, H).

        Returns:
            The new hidden state and memory, (B, layers, H) each.
        """
        hiddens, memories = [], []
        for layer, weights in enumerate(self.all_weights):
            if layer:
                inputs = dropout(inputs, self.dropout, self.training)
            inputs, new = torch.lstm_cell(inputs, (hidden[:, layer], memory[:, layer]), *weights)
            hiddens.append(inputs)
            memories.append(new)
        return torch.stack(hiddens, dim=1), torch.stack(memories, dim=1)

    def read(self, inputs, hidden, memory, captions: PackedCaptions) -> torch.Tensor:
        """Read all tokens of packed captions.

        Args:
            inputs: (P, input_dim).
            hidden: (M, layers, H), the state before the first step, longest caption first; `memory` likewise.

        Returns:
            The last layer's hidden state after each token, (P, H).
        """
        # cuDNN is the fastest, but computes no gradient in evaluation mode.
        if inputs.is_cuda and (self.training or not torch.is_grad_enabled()):
            first = hidden.transpose(0, 1).contiguous(), memory.transpose(0, 1).contiguous()
            return super().forward(PackedSequence(inputs, torch.tensor(captions.active)), first)[0].data
        for layer, (w_input, w_hidden, b_input, b_hidden) in enumerate(self.all_weights):
            if layer:
                inputs = dropout(inputs, self.dropout, self.training)
            gates = nn.functional.linear(inputs, w_input, b_input + b_hidden)
            inputs = LSTMRecurrence.apply(
                gates, hidden[:, layer], memory[:, layer], w_hidden.to(gates.dtype), captions.active
            )
        return inputs


@torch.no_grad()
def open_forget_gate(bias: torch.Tensor) -> None:
    """Initialise the bias of an LSTM's forget gate to 1 (Jozefowicz et al., 2015).

    With bias 0, the untrained gate halves the state at every word.
    """
    bias.chunk(4)[1].fill_(1.0)


def state_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype of hidden state and memory: float32 also where the products are in a shorter one."""
    return torch.promote_types(weight.dtype, torch.float32)


def _tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh(x) = 2 sigmoid(2x) - 1, to 2e-7; a CPU computes sigmoid several times as fast."""
    return x.tanh() if x.is_cuda else 2 * (2 * x).sigmoid() - 1


class LSTMCell(NamedTuple):
    """One step of an LSTM, (B, H) each: what its gradient is computed from."""

    last: torch.Tensor  # the memory before the step
    write: torch.Tensor  # the gates, after the sigmoid
    forget: torch.Tensor
    value: torch.Tensor  # what is written, after the tanh
    read: torch.Tensor
    shown: torch.Tensor  # tanh of the new memory

    @classmethod
    def of(cls, last, write, forget, value, read) -> tuple["LSTMCell", torch.Tensor, torch.Tensor]:
        """From the memory and the gates before their sigmoid or tanh: the step, hidden state and memory."""
        write, forget, value, read = write.sigmoid(), forget.sigmoid(), _tanh(value), read.sigmoid()
        memory = torch.addcmul(forget * last, write, value)
        shown = _tanh(memory)
        return cls(last, write, forget, value, read, shown), read * shown, memory

    def backward(self, d_hidden, d_memory, d_write, d_forget, d_value, d_read) -> None:
        """From the gradients of hidden state and memory after the step, those before it.

        `d_memory` is overwritten with the gradient of the last memory, the other four with those of the
        gates.
        """
        d_memory += _tanh_backward(d_hidden * self.read, self.shown)
        d_write.copy_(sigmoid_backward(d_memory * self.value, self.write))
        d_forget.copy_(sigmoid_backward(d_memory * self.last, self.forget))
        d_value.copy_(_tanh_backward(d_memory * self.write, self.value))
        d_read.copy_(sigmoid_backward(d_hidden * self.shown, self.read))
        d_memory *= self.forget


class LSTMRecurrence(Function):
    """The time loop of an LSTM layer, with its gradient written out.

    Autograd would multiply small matrices at each step to add up the gradient of the weights. Here they have
    one product after the loop. Rows are those of PackedCaptions.
    """

    @staticmethod
    def forward(ctx, from_inputs, hidden, memory, weight, active: Sequence[int]):
        """
        Args:
            from_inputs: (P, 4H), the contribution of the inputs to the gates, in torch's order.
            hidden: (M, H), the state before the first step; `memory` (M, H).
            weight: (4H, H), from the hidden state to the gates.

        Returns:
            The hidden state after each token, (P, H).
        """
        dtype = state_dtype(weight)
        lasts, cells, hiddens, first = [], [], [], 0
        hidden = hidden.to(weight.dtype)
        for n in active:
            last = hidden[:n]
            gates = torch.addmm(from_inputs[first : first + n], last, weight.t()).to(dtype)
            cell, hidden, memory = LSTMCell.of(memory[:n].to(dtype), *gates.chunk(4, dim=1))
            hidden = hidden.to(weight.dtype)
            lasts.append(last)
            cells.append(cell)
            hiddens.append(hidden)
            first += n
        ctx.save_for_backward(weight)
        ctx.lasts, ctx.cells = lasts, cells
        return torch.cat(hiddens)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hiddens):
        [weight] = ctx.saved_tensors
        first, dim = d_hiddens.shape
        d_hidden, d_memory = weight.new_zeros(2, len(ctx.lasts[0]), dim, dtype=state_dtype(weight)).unbind()
        d_gates = weight.new_empty(first, 4 * dim)
        for cell in reversed(ctx.cells):
            n = len(cell.last)
            rows = slice(first - n, first)
            d_write, d_forget, d_value, d_read = d_gates[rows].chunk(4, dim=1)
            cell.backward(d_hidden[:n] + d_hiddens[rows], d_memory[:n], d_write, d_forget, d_value, d_read)
            d_hidden[:n] = d_gates[rows] @ weight
            first -= n
        return d_gates, d_hidden, d_memory, d_gates.t() @ torch.cat(ctx.lasts), None
