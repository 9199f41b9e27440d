"""A model as two graphs that run without this project (torch.export): the encoder, and the decoder's step.

    encoder: pixels (N, S, S, 3) uint8 -> image part of the state (N, ...), sequence part (N, 1, ...)
    step: tokens (N, K) int64, both parts -> log-probabilities (N, K, V), sequence part, alphas (N, K, L)

K is the number of beams, which may change from step to step. The pixels are normalised by the encoder, so a
program around the two has to resize images and to choose words. Each tensor of the state has the name that
the decoder gives it: `image_keys`, `sequence_hidden`; after the step, `next_hidden`.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from data.transforms import ImageTransform
from models.decoder import Decoder
from models.model import CaptionModel
from models.state import DecoderState
from utils import SOS

# Images and beams of the example that is traced. torch.export takes a 0 or a 1 for a constant.
_IMAGES, _BEAMS = 2, 3


class Graph(NamedTuple):
    """One of the two graphs; the names are those of its tensors, in order."""

    program: ExportedProgram
    inputs: Sequence[str]
    outputs: Sequence[str]


class Graphs(NamedTuple):
    encoder: Graph
    step: Graph


class _Encoder(nn.Module):
    """Everything that is computed once per image."""

    def __init__(self, model: CaptionModel, transform: ImageTransform):
        super().__init__()
        self.transform, self.encoder, self.decoder = transform, model.encoder, model.decoder

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = self.start(pixels)
        return *state.image, *(x.unsqueeze(1) for x in state.sequence)

    def start(self, pixels: torch.Tensor) -> DecoderState:
        images = self.transform.normalise(pixels.permute(0, 3, 1, 2))
        return self.decoder.start(self.encoder(images))


class _Step(nn.Module):
    """Everything that is computed for each word, but for the choice of the word."""

    def __init__(self, decoder: Decoder, state: DecoderState):
        """`state`: one of the decoder, whose types are taken from it."""
        super().__init__()
        self.decoder, self.image, self.sequence = decoder, type(state.image), type(state.sequence)

    def forward(self, tokens: torch.Tensor, image: Sequence[torch.Tensor], sequence: Sequence[torch.Tensor]):
        n, k = tokens.shape
        index = torch.arange(n, device=tokens.device).unsqueeze(1).expand(n, k).flatten()
        rows = self.sequence(*(x.flatten(0, 1) for x in sequence))
        state = DecoderState(self.image(*image), rows, index, k)
        logits, state, alphas = self.decoder.step(tokens.flatten(), state)
        found = logits.float().log_softmax(dim=1), *state.sequence, *([] if alphas is None else [alphas])
        return tuple(x.unflatten(0, (n, k)) for x in found)


@torch.no_grad()
def export_model(model: CaptionModel, transform: ImageTransform) -> Graphs:
    """The graphs of a model that is on the CPU, in evaluation mode, with any number of images and beams.

    A decoder needs nothing for this but `start` and `step`.
    """
    encoder, shape = _Encoder(model, transform).eval(), (_IMAGES, _BEAMS)
    pixels = torch.zeros(_IMAGES, transform.size, transform.size, 3, dtype=torch.uint8)
    state = encoder.start(pixels).repeat(_BEAMS)
    tokens = torch.full((state.image_index.numel(),), SOS)
    # A Transformer's state grows with each word: two steps show in which dimensions.
    first, second = (sequence.sequence for sequence in _next_states(model.decoder, tokens, state))
    images, beams, words = Dim("images"), Dim("beams"), Dim("words")
    sequence_dims = tuple(
        {0: images, 1: beams} | {i + 1: words for i in range(1, x.dim()) if x.shape[i] != y.shape[i]}
        for x, y in zip(first, second, strict=True)
    )
    example = tokens.view(shape), tuple(state.image), tuple(x.unflatten(0, shape) for x in second)
    dims = {0: images, 1: beams}, tuple({0: images} for _ in state.image), sequence_dims
    image, sequence = ([f"image_{name}" for name in state.image._fields], list(state.sequence._fields))
    before, after = ([f"{prefix}_{name}" for name in sequence] for prefix in ("sequence", "next"))
    with quietly(), _traceable_layers():
        # strict: the code of a decoder may say len(x), which is otherwise a constant.
        encoder_program = export(encoder, (pixels,), dynamic_shapes=({0: images},), strict=True)
        step = _Step(model.decoder, state).eval()
        step_program = export(step, example, dynamic_shapes=dims, strict=True)
    for program in (encoder_program, step_program):
        _clean(program)
    return Graphs(
        Graph(encoder_program, ["pixels"], [*image, *before]),
        Graph(
            step_program,
            ["tokens", *image, *before],
            ["log_probs", *after, *["alphas"] * model.decoder.attends],
        ),
    )


def _clean(program: ExportedProgram) -> None:
    """Remove the weights that the graph does not use, and the paths of this machine."""
    used = {spec.target for spec in program.graph_signature.input_specs}
    for name in program.state_dict.keys() - used:
        del program.state_dict[name]
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


def write_program(graph: Graph, path: Path) -> None:
    """Write what torch.export.load reads."""
    with quietly(), open(path, "wb") as file:
        torch.export.save(graph.program, file)


def _next_states(decoder: Decoder, tokens: torch.Tensor, state: DecoderState) -> Iterator[DecoderState]:
    """The states after one step and after two, which read the same tokens (B,)."""
    for _ in range(2):
        _, state, _ = decoder.step(tokens, state)
        yield state


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the log and the warnings of torch.export, which are of no use to whoever exports a model."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _traceable_layers() -> Iterator[None]:
    """Transformer layers as single products: torch's fast path for them is one operation that ONNX lacks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
