"""Beam search over a batch of images, all captions of the same length.

reference: the same model as a textbook writes it, one image at a time, in float32. tutorial: the same with
the decoder of the best-known tutorial. bound: the matrix products alone, in the same precision.
"""

from startup import run_script

from collections.abc import Callable, Mapping

import torch

from benchmarks.measure import Alternative, Row, compare
from benchmarks.products import ADDITIVE, KINDS, Kind, Products, beside_products
from benchmarks.reference import Textbook, TutorialDecoder, beam_search, reference_of
from benchmarks.report import run_benchmarks
from benchmarks.workload import Settings, batch, decoder
from compute import Compute
from models.search import SearchOptions, search
from utils import EOS

_NEVER = -1e4  # the logit of <eos>: only the longest captions may end
_ONE_BY_ONE = 4  # images in a call of those that caption one image at a time


def benchmark(settings: Settings) -> list[Row]:
    cells, channels = settings.grids[-1]
    options = SearchOptions(beam=settings.beam, max_length=settings.words)
    grid = batch(settings, cells, channels).images.to(settings.compute.device)

    def plain(name: str, model: Textbook, against: Mapping[str, Alternative] | None = None) -> Alternative:
        model = model.to(grid.device).eval()
        few = grid[:_ONE_BY_ONE]
        return Alternative(name, lambda: one_by_one(model, few, options), len(few), "float32", against or {})

    tutorial = TutorialDecoder(channels, settings.vocab_size, settings.dim)
    torch.nn.init.constant_(tutorial.output.bias[EOS : EOS + 1], _NEVER)
    models = {kind: decoder(settings, channels, **kind.options).eval() for kind in KINDS}
    for model in models.values():
        torch.nn.init.constant_(model.output.score.bias[EOS : EOS + 1], _NEVER)
    references = {kind: plain("reference", reference_of(model)) for kind, model in models.items()}
    peer = plain("tutorial", tutorial, {"reference": references[ADDITIVE]})
    active = [settings.num_images * settings.beam] * (settings.words + 1)

    def products(kind: Kind, compute: Compute) -> Products:
        return kind.products(settings, compute, cells, channels, active, gradients=False)

    def own(kind: Kind, compute: Compute) -> Callable[[], object]:
        def run() -> None:
            with compute.autocast():
                search(models[kind], grid, options)

        return run

    found = beside_products(references, peer, products, own, len(grid), settings.precisions)
    shape = f"{cells} x {channels}, beam {settings.beam}, {settings.words + 1} steps"
    return compare("search", shape, "images", found, settings)


def one_by_one(model: Textbook, grid: torch.Tensor, options: SearchOptions) -> list[list[int]]:
    """The captions of all images (N, L, C)."""
    return [
        beam_search(model, image, options.beam, options.max_length, options.length_penalty) for image in grid
    ]


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
