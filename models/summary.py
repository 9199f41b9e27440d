"""What a model consists of: layers, shapes, parameters, and multiply-adds per image and per word."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import belongs_to
from models.grid import grid_of
from models.model import CaptionModel
from utils import SOS


@dataclass(frozen=True)
class Row:
    """One use of one part of the model."""

    name: str  # as in the checkpoint
    kind: str  # its class
    shape: tuple[int, ...]  # of its output, for one image or one word
    parameters: int  # 0 if an earlier row has counted them, as for tied weights
    trained: int  # how many of the parameters are trained
    multiply_adds: int


class FeatureMap(NamedTuple):
    """The feature maps of one resolution in the encoder."""

    rows: list[Row]
    channels: int  # of the last one
    side: int  # cells per side
    is_read: bool  # whether the grid is computed from one of them


@dataclass(frozen=True)
class Summary:
    """The parts of a model, in the order in which they run."""

    encoder: list[Row]  # once per image
    start: list[Row]  # once per image: what the decoder does before the first word
    step: list[Row]  # once per word
    image_size: int  # pixels per side
    grid: tuple[int, int]  # L cells of C channels
    attends: bool  # whether the decoder returns attention weights
    read_sides: Sequence[int]  # cells per side of the maps that the grid is computed from
    prefix_tokens: int  # of a transformer, see `grid_of`

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
        """Multiply-adds of each word of a caption, and of each beam."""
        return total(self.step)

    @property
    def maps(self) -> list[FeatureMap]:
        """The rows of the encoder, grouped by resolution."""
        maps: dict[int, FeatureMap] = {}
        read = {_halvings(side) for side in self.read_sides}
        for row in self.encoder:
            grid = grid_of(row.shape, self.prefix_tokens)
            if grid is None:
                continue
            halvings = _halvings(grid.side)
            earlier = maps[halvings].rows if halvings in maps else []
            maps[halvings] = FeatureMap([*earlier, row], grid.channels, grid.side, halvings in read)
        return list(maps.values())

    def decoder_rows(self, modules: Iterable[str]) -> list[Row]:
        """All rows of the decoder's submodules `modules`; raises KeyError for one that does not run."""
        rows: dict[str, list[Row]] = {}
        for row in [*self.start, *self.step]:
            rows.setdefault(row.name.removeprefix("decoder."), []).append(row)
        return [row for name in modules for row in rows[name]]


def _halvings(side: int) -> int:
    return round(math.log2(side))


def total(rows: Iterable[Row], what: str = "multiply_adds") -> int:
    return sum(getattr(row, what) for row in rows)


def summarise(model: CaptionModel, image_size: int) -> Summary:
    """Run `model` on one image of `image_size` pixels per side, for one word, and record what runs.

    Multiply-adds are those of convolutions and matrix products; others (activations, normalisation, sums) are
    few. No numbers are computed: only shapes pass through the model, on torch's `meta` device. The model
    stays on that device and cannot be used afterwards.
    """
    parameters = [(name, p.numel(), p.requires_grad) for name, p in model.named_parameters()]
    model.to("meta").eval()
    uncounted = dict.fromkeys(parameters)

    def to_row(call: _Call) -> Row:
        own = [parameter for parameter in uncounted if belongs_to(parameter[0], call.name)]
        for parameter in own:
            del uncounted[parameter]
        counts = sum(n for _, n, _ in own), sum(n for _, n, trained in own if trained)
        return Row(call.name, call.kind, call.output, *counts, call.flops // 2)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        recorder = _Recorder(model, counter)
        grid = model.encoder(torch.empty(1, 3, image_size, image_size, device="meta"))
        stages = [f"encoder.backbone.{stage}" for stage in model.encoder.stages]
        outputs, prefix_tokens = recorder.outputs, model.encoder.prefix_tokens
        encoder = [to_row(call) for call in _by_stage(recorder.take(), stages, outputs[-1])]
        state = model.decoder.start(grid)
        start = [to_row(call) for call in recorder.take() if call.kind != "Dropout"]
        _, _, alphas = model.decoder.step(torch.full((1,), SOS, device="meta"), state)
        step = [to_row(call) for call in recorder.take() if call.kind != "Dropout"]
    cells, channels = grid.shape[1:]
    grids = [grid_of(output, prefix_tokens) for output in outputs]
    sides = [one.side for one in grids if one]
    return Summary(
        encoder, start, step, image_size, (cells, channels), alphas is not None, sides, prefix_tokens
    )


class _Call(NamedTuple):
    """One use of a module."""

    name: str
    kind: str
    input: tuple[int, ...]  # shape, of one image or word
    output: tuple[int, ...]  # shape
    flops: int  # since the previous call, so code between two modules counts for the second one


class _Recorder:
    """Records the calls of a model's modules, but not calls inside another recorded module."""

    def __init__(self, model: CaptionModel, counter: FlopCounterMode):
        self.counter, self.depth, self.flops = counter, 0, 0
        self.calls: list[_Call] = []
        self.outputs: list[tuple[int, ...]] = []  # shapes of what the backbone returns
        for name, module in model.named_modules():
            if name not in ("", "encoder", "encoder.backbone", "decoder"):
                module.register_forward_pre_hook(self.begin)
                module.register_forward_hook(partial(self.finish, name))
        model.encoder.backbone.register_forward_hook(self.finish_backbone)

    def begin(self, *_) -> None:
        self.depth += 1

    def finish(self, name: str, module: nn.Module, inputs, output) -> None:
        self.depth -= 1
        if self.depth == 0:
            flops = self.counter.get_total_flops()
            kind = type(module).__name__
            self.calls.append(_Call(name, kind, _shape_of(inputs), _shape_of(output), flops - self.flops))
            self.flops = flops

    def finish_backbone(self, _module, _inputs, output) -> None:
        self.outputs = [_shape_of(x) for x in output]

    def take(self) -> list[_Call]:
        """The calls since the last `take`."""
        calls, self.calls = self.calls, []
        return calls


def _shape_of(x) -> tuple[int, ...]:
    """The shape of a tensor, or of the first in a tuple, without the batch and dimensions of size 1."""
    while not isinstance(x, torch.Tensor):
        x = x[0]
    return tuple(n for n in x.shape[1:] if n > 1) or (1,)


def _by_stage(calls: Sequence[_Call], stages: Sequence[str], end: tuple[int, ...]) -> list[_Call]:
    """The calls of the encoder, one for each stage. A parameter outside of any module has no shape."""
    result = []
    for stage in stages:
        own = [i for i, call in enumerate(calls) if belongs_to(call.name, stage)]
        if not own:
            result.append(_Call(stage, "Parameter", (), (), 0))
            continue
        last = own[-1]
        shape, kind = calls[last].output, calls[last].kind
        if len(own) > 1:
            kind = "Stage"
            following = calls[last + 1].input if last + 1 < len(calls) else end
            shape = following if _ends_as(shape, following) else shape
        result.append(_Call(stage, kind, (), shape, sum(calls[i].flops for i in own)))
    return result


def _ends_as(shape: tuple[int, ...], following: tuple[int, ...]) -> bool:
    """Whether a stage returns `following`, the input of the next stage, and not its last module's `shape`.

    They differ if the stage ends with a step that is not a module, which joins branches (Inception) or puts
    windows together into a map (MaxViT). But the first module of the next stage may also read something other
    than the map (in Swin, its patches or a table of positions).
    """
    before, after = grid_of(shape), grid_of(following)
    if len(following) != 3 or after is None:
        return False
    if len(shape) != 3 or before is None:
        return math.prod(shape) == math.prod(following)
    return before.side == after.side
