"""What a model consists of: layers, shapes, parameters, and multiply-adds per image and per word."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.model import CaptionModel
from utils import SOS


@dataclass(frozen=True)
class Row:
    """One part of the model, at one of its uses."""

    name: str  # as in the checkpoint
    kind: str  # its class
    shape: tuple[int, ...]  # what it gives for one image or one word
    parameters: int  # 0 where an earlier row has counted them, as for tied weights
    trained: int  # how many of them are
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """A model row by row, in the order in which it runs."""

    encoder: list[Row]  # once per image
    start: list[Row]  # once per image, too
    step: list[Row]  # once per word
    grid: tuple[int, int]  # L cells of C channels

    @property
    def rows(self) -> list[Row]:
        return [*self.encoder, *self.start, *self.step]

    @property
    def parameters(self) -> int:
        return total(self.rows, "parameters")

    @property
    def trained(self) -> int:
        return total(self.rows, "trained")

    @property
    def per_image(self) -> int:
        """Multiply-adds before the first word."""
        return total(self.encoder) + total(self.start)

    @property
    def per_word(self) -> int:
        """Multiply-adds of each word of a caption (of each beam)."""
        return total(self.step)


def total(rows: Iterable[Row], what: str = "multiply_adds") -> int:
    return sum(getattr(row, what) for row in rows)


def summarise(model: CaptionModel, size: int) -> Summary:
    """Look at `model` while it captions one image of `size` pixels a side.

    Multiply-adds are those of convolutions and matrix products; the rest (activations, normalisation, sums)
    is small beside them. Nothing is computed: shapes run through the model without numbers (torch's `meta`
    device), to which the model is moved for good.
    """
    parameters = [(name, p.numel(), p.requires_grad) for name, p in model.named_parameters()]
    model.to("meta").eval()
    left = dict.fromkeys(parameters)

    def row(call: Call) -> Row:
        own = [parameter for parameter in left if belongs(parameter[0], call.name)]
        for parameter in own:
            del left[parameter]
        numbers = sum(n for _, n, _ in own), sum(n for _, n, trained in own if trained)
        return Row(call.name, call.kind, call.shape, *numbers, call.flops // 2)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        watch = Watch(model, counter)
        grid = model.encoder(torch.empty(1, 3, size, size, device="meta"))
        stages = [f"encoder.backbone.{stage}" for stage in model.encoder.stages]
        encoder = [row(call) for call in by_stage(watch.take(), stages, watch.end)]
        state = model.decoder.start(grid)
        start = [row(call) for call in watch.take() if call.kind != "Dropout"]
        model.decoder.step(torch.full((1,), SOS, device="meta"), state)
        step = [row(call) for call in watch.take() if call.kind != "Dropout"]
    return Summary(encoder, start, step, (grid.shape[1], grid.shape[2]))


class Call(NamedTuple):
    """One use of a module."""

    name: str
    kind: str
    given: tuple[int, ...]  # shape of its input, of one image or word
    shape: tuple[int, ...]  # shape of its output
    flops: int  # since the call before: what happens between two modules belongs to the second


class Watch:
    """Notes which parts of a model are used; parts of parts only where their owner is not called itself."""

    def __init__(self, model: CaptionModel, counter: FlopCounterMode):
        self.counter, self.calls, self.depth, self.flops = counter, [], 0, 0
        self.end = ()  # shape of the backbone's output, where the encoder calls it as a whole
        for name, module in model.named_modules():
            if name not in ("", "encoder", "encoder.backbone", "decoder"):
                module.register_forward_pre_hook(self.begin)
                module.register_forward_hook(partial(self.finish, name))
        model.encoder.backbone.register_forward_hook(self.finish_backbone)

    def begin(self, *_) -> None:
        self.depth += 1

    def finish(self, name: str, module: nn.Module, given, output) -> None:
        self.depth -= 1
        if self.depth == 0:
            flops = self.counter.get_total_flops()
            kind = type(module).__name__
            self.calls.append(Call(name, kind, shape_of(given), shape_of(output), flops - self.flops))
            self.flops = flops

    def finish_backbone(self, _module, _given, output) -> None:
        self.end = shape_of(output)

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


def belongs(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def shape_of(x) -> tuple[int, ...]:
    """Of a tensor, or the first one of a tuple, without the batch and without steps of one word."""
    while not isinstance(x, torch.Tensor):
        x = x[0]
    return tuple(n for n in x.shape[1:] if n > 1) or (1,)


def by_stage(calls: list[Call], stages: list[str], end: tuple[int, ...]) -> list[Call]:
    """The encoder's calls as one call for each stage; a free parameter is a stage without a shape."""
    result = []
    for stage in stages:
        own = [i for i, call in enumerate(calls) if belongs(call.name, stage)]
        if not own:
            result.append(Call(stage, "Parameter", (), (), 0))
            continue
        shape = calls[own[-1]].shape
        following = calls[own[-1] + 1].given if own[-1] + 1 < len(calls) else end
        # A stage may end in a step that is no module, such as joining branches: what follows knows its shape.
        if len(own) > 1 and following and math.prod(following) != math.prod(shape):
            shape = following
        kind = calls[own[-1]].kind if len(own) == 1 else "Stage"
        result.append(Call(stage, kind, (), shape, sum(calls[i].flops for i in own)))
    return result
