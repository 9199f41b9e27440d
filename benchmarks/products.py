"""The bound: the matrix products that a decoder cannot do without, alone, on tensors that exist already.

What depends on time is one product per step. What does not, and the gradients of the weights, are one product
for all steps. Everything else (activations, softmax, dropout, copies, the optimiser) takes no time here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.measure import Alternative
from benchmarks.workload import Settings, config, name_of
from compute import Compute


class Products:
    """Matrix products of given shapes, with those of their gradients; calling it computes all of them."""

    def __init__(self, compute: Compute, gradients: bool):
        """In the precision of `compute`; with `gradients` for training, without them for search."""
        device, dtype = compute.device, compute.precision
        self.gradients = gradients
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # factors, and the result
        # Tensors of the same shape are the same one.
        self.tensor = cache(lambda *shape: torch.randn(shape, device=device).to(dtype))
        self.result = cache(lambda *shape: torch.empty(shape, dtype=dtype, device=device))

    @torch.inference_mode()
    def __call__(self) -> None:
        for left, right, result in self.calls:
            torch.matmul(left, right, out=result)

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self.calls.append((left, right, self.result(*left.shape[:-1], right.shape[-1])))

    def linear(self, rows: Sequence[int], size: int, out: int, input_gradient: bool = True) -> None:
        """A layer from `size` to `out` numbers, for so many rows at each step."""
        for n in rows:
            self.add(self.tensor(n, size), self.tensor(out, size).t())
            if self.gradients and input_gradient:
                self.add(self.tensor(n, out), self.tensor(out, size))
        if self.gradients:
            self.add(self.tensor(sum(rows), out).t(), self.tensor(sum(rows), size))

    def batched(self, count: int, rows: int, size: int, out: int) -> None:
        """`count` products (rows, size) x (size, out)."""
        self.add(self.tensor(count, rows, size), self.tensor(count, size, out))
        if self.gradients:
            self.add(self.tensor(count, rows, out), self.tensor(count, size, out).mT)
            self.add(self.tensor(count, rows, size).mT, self.tensor(count, rows, out))


def _attention_products(
    products: Products, settings: Settings, cells: int, channels: int, active: Sequence[int]
) -> None:
    """Those of AttentionDecoder; `active`: the number of captions at each step.

    The product with the score vector of additive attention is left out: like tanh, it reads each number once.
    """
    n, dim = settings.num_images, settings.dim
    _cells_and_output(products, settings, cells, channels, active)
    products.linear(active, dim, 6 * dim)  # the state to query, gate beta and the four gates of the LSTM
    for rows in active:
        images = min(n, rows)
        products.batched(images, -(-rows // images), cells, dim)  # the context
    products.linear(active, dim, 4 * dim)  # the context to the gates
    products.linear(_at_once(products, active), dim, 4 * dim)  # the words to the gates


def _dot_attention_products(
    products: Products, settings: Settings, cells: int, channels: int, active: Sequence[int]
) -> None:
    """Those of DotAttentionDecoder; see `_attention_products`."""
    n, dim, heads = settings.num_images, settings.dim, config(settings).decoder.heads
    at_once = _at_once(products, active)
    _cells_and_output(products, settings, cells, channels, active)
    products.linear([n * cells], dim, dim)  # the cells to values
    products.linear([n], dim, dim)  # what the image adds to each word
    products.linear(active, dim, 4 * dim)  # the state to the gates
    products.linear(at_once, dim, 4 * dim)  # the words to the gates
    products.linear(at_once, dim, 2 * dim)  # the state to query and gate
    for rows in at_once:
        per_image = -(-rows // n)
        products.batched(n * heads, per_image, dim // heads, cells)  # the energies
        products.batched(n * heads, per_image, cells, dim // heads)  # the context


def _cells_and_output(
    products: Products, settings: Settings, cells: int, channels: int, active: Sequence[int]
) -> None:
    """What both decoders with attention begin and end with."""
    n, dim, at_once = settings.num_images, settings.dim, _at_once(products, active)
    products.linear([n * cells], channels, dim, input_gradient=False)  # the grid to cells
    products.linear([n * cells], dim, dim)  # the cells to keys
    products.linear([n], dim, 2 * dim)  # the first state
    products.linear(at_once, 3 * dim, dim)  # deep output
    products.linear(at_once, dim, dim)
    products.linear(at_once, dim, settings.vocab_size)


def _lstm_products(
    products: Products, settings: Settings, cells: int, channels: int, active: Sequence[int]
) -> None:
    """Those of LSTMDecoder; see `_attention_products`."""
    n, dim = settings.num_images, settings.dim
    products.linear([n], channels, dim, input_gradient=False)  # the mean of the grid
    products.linear([n], dim, 4 * dim)  # the image as the first input
    products.linear(active, dim, 4 * dim)  # the state to the gates
    at_once = _at_once(products, active)
    products.linear(at_once, dim, 4 * dim)  # the words to the gates
    products.linear(at_once, dim, dim)
    products.linear(at_once, dim, settings.vocab_size)


def _at_once(products: Products, active: Sequence[int]) -> Sequence[int]:
    """The rows of a layer that does not depend on time: of all steps together, but in search of one each."""
    return [sum(active)] if products.gradients else active


@dataclass(frozen=True, eq=False)
class Kind:
    """A decoder that is measured."""

    name: str
    options: dict  # of the section `decoder`
    add_products: Callable
    attends: bool  # otherwise it reads only the grid's mean

    def products(
        self,
        settings: Settings,
        compute: Compute,
        cells: int,
        channels: int,
        active: Sequence[int],
        gradients: bool,
    ) -> Products:
        """The products of one training step, or (without `gradients`) of one search."""
        products = Products(compute, gradients)
        self.add_products(products, settings, cells, channels, active)
        return products


def beside_products(
    references: Mapping[Kind, Alternative],
    tutorial: Alternative,
    products: Callable[[Kind, Compute], Products],
    own: Callable[[Kind, Compute], Callable[[], object]],
    amount: float,
    precisions: Sequence[Compute],
) -> list[Alternative]:
    """All ways to do the same work: the textbook's, the tutorial's, and ours beside its matrix products.

    Args:
        references: the kinds of decoder that are measured, with the textbook's way of each.
        products: the products alone, and `own` what calls the decoder, of a kind in a precision.
        amount: units of work of both.
    """
    found = [*references.values(), tutorial]
    for kind, reference in references.items():
        against = {"reference": reference, **({"tutorial": tutorial} if kind.attends else {})}
        for compute in precisions:
            name = name_of(compute)
            bound = Alternative("products", products(kind, compute), amount, name)
            ours = Alternative(kind.name, own(kind, compute), amount, name, {**against, "bound": bound})
            found += [bound, ours]
    return found


_DOT = {"kind": "attention", "attention": "dot"}
ADDITIVE = Kind(
    "additive attention", {"kind": "attention", "attention": "additive"}, _attention_products, True
)
KINDS = (
    Kind("LSTM", {"kind": "lstm"}, _lstm_products, attends=False),
    ADDITIVE,
    Kind("dot-product attention", _DOT, _dot_attention_products, attends=True),
)
