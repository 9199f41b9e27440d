"""Training the encoder: forward and backward pass of its backbone, on images in memory.

Reference: torchvision's layers one by one, in float32. Bound: three forward passes with folded batch norms,
because the gradients of inputs and weights take one more each.
"""

from startup import run_script

from collections.abc import Callable

import torch

from benchmarks.measure import Alternative, Row, compare
from benchmarks.report import run_benchmarks
from benchmarks.workload import Settings, config, name_of
from compute import Compute
from data.transforms import transform_for
from models.encoder import EncoderCNN


def benchmark(settings: Settings) -> list[Row]:
    rows: list[Row] = []
    for name in settings.encoders:
        options = {"name": name, "weights": "none", "image_size": settings.image_size, "fine_tune": "all"}
        section = config(settings, encoder=options).encoder
        encoder = EncoderCNN(section).to(settings.compute.device)
        encoder.has_fixed_statistics = True  # as with the weights of an earlier training
        encoder.train()
        size = transform_for(section).size
        images = torch.randn(settings.num_images, 3, size, size, device=settings.compute.device)
        count = len(images)

        def plain(x: torch.Tensor, encoder: EncoderCNN = encoder) -> torch.Tensor:
            return encoder.encode(encoder.backbone, x)

        reference = Alternative("plain", _step(plain, images, settings.precisions[0]), count)
        alternatives = [reference]
        for compute in settings.precisions:
            forward = _forward(encoder.for_inference(), images, compute)
            bound = Alternative("three forward passes", forward, count / 3)
            against = {"reference": reference, "bound": bound}
            own = Alternative(name, _step(encoder, images, compute), count, name_of(compute), against)
            alternatives += [bound, own]
        rows += compare("encoder", f"{count} x {size} x {size}", "images", alternatives, settings)
    return rows


def _step(encode: Callable, images: torch.Tensor, compute: Compute) -> Callable[[], None]:
    def run() -> None:
        with compute.autocast():
            grid = encode(images)
        grid.float().square().mean().backward()

    return run


def _forward(encode: Callable, images: torch.Tensor, compute: Compute) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        with compute.autocast():
            encode(images)

    return run


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
