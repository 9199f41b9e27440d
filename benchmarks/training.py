"""A training step: forward, backward, clipping and AdamW.

reference: the same model as a textbook writes it, in float32. tutorial: the decoder of the best-known
tutorial, in float32. bound: the matrix products alone, in the same precision.
"""

from startup import run_script

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks.measure import Alternative, Row, compare
from benchmarks.products import ADDITIVE, KINDS, Kind, Products, beside_products
from benchmarks.reference import Textbook, TutorialDecoder, loss, reference_of
from benchmarks.report import run_benchmarks
from benchmarks.workload import (
    CAPTIONS_PER_IMAGE,
    Settings,
    batch,
    captions,
    config,
    decoder,
    num_tokens,
    trainer,
)
from compute import Compute
from training.objective import Part

_SHARE = 4  # the textbook's ways train on this part of the images


def benchmark(settings: Settings) -> list[Row]:
    rows = []
    for cells, channels in settings.grids:
        shape, alternatives = f"{cells} x {channels}", _alternatives(settings, cells, channels)
        rows += compare("training", shape, "tokens", alternatives, settings)
    return rows


def _alternatives(settings: Settings, cells: int, channels: int) -> list[Alternative]:
    """All ways to train on one batch; the LSTM, which reads the grid's mean, only for the first grid."""
    texts = captions(settings.num_images, settings.vocab_size)
    tokens = num_tokens(texts)
    active = [sum(len(text) - 1 > t for text in texts) for t in range(max(map(len, texts)) - 1)]

    # The textbook's ways take as long for each token of a smaller batch, and minutes for a large one.
    few = replace(settings, num_images=-(-settings.num_images // _SHARE))
    few_tokens = num_tokens(captions(few.num_images, few.vocab_size))

    def plain(model: Textbook) -> Callable[[], None]:
        return textbook_step(few, model, cells, channels)

    kinds = [kind for kind in KINDS if kind.attends or (cells, channels) == settings.grids[0]]
    models = {kind: reference_of(decoder(settings, channels, **kind.options)) for kind in kinds}
    references = {
        kind: Alternative("reference", plain(models[kind]), few_tokens, "float32") for kind in kinds
    }
    tutorial = plain(TutorialDecoder(channels, settings.vocab_size, settings.dim))
    peer = Alternative("tutorial", tutorial, few_tokens, "float32", {"reference": references[ADDITIVE]})

    def products(kind: Kind, compute: Compute) -> Products:
        return kind.products(settings, compute, cells, channels, active, gradients=True)

    def own(kind: Kind, compute: Compute) -> Callable[[], object]:
        return training_step(settings, compute, cells, channels, **kind.options)

    return beside_products(references, peer, products, own, tokens, settings.precisions)


def training_step(
    settings: Settings, compute: Compute, cells: int, channels: int, **options
) -> Callable[[], object]:
    """One step as train.py runs it; `options` of the section `decoder`."""
    model = trainer(decoder(settings, channels, **options), config(settings, decoder=options), compute)
    one_batch = batch(settings, cells, channels)
    return lambda: model.step([Part(one_batch, range(settings.num_images))], epoch=1)


def textbook_step(settings: Settings, model: Textbook, cells: int, channels: int) -> Callable[[], None]:
    """The same step as a textbook writes it."""
    device, train = settings.compute.device, config(settings).train
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    grid = batch(settings, cells, channels).images.to(device)
    texts = captions(settings.num_images, settings.vocab_size)
    padded = pad_sequence(texts, batch_first=True).to(device)  # <pad> is 0
    image_index = torch.arange(settings.num_images, device=device).repeat_interleave(CAPTIONS_PER_IMAGE)

    def step() -> None:
        logits, alphas, order = model(grid, padded, image_index)
        total = loss(logits, padded[order], alphas, train.label_smoothing, train.attention_weight)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()

    return step


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
