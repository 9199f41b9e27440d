"""What a model makes of a split: the loss under teacher forcing, and its captions."""

from collections.abc import Iterable, Iterator

import torch

from compute import autocast
from data.dataset import Flickr8kDataset, make_loader, ordered_batches
from data.vocab import Vocabulary
from models.model import CaptionModel
from models.search import Captions, SearchOptions
from progress import Progress
from training.loss import TokenAverages, caption_loss


@torch.inference_mode()
def validation_loss(
    model: CaptionModel, dataset: Flickr8kDataset, batch_size: int, workers: int, device, precision
) -> dict[str, float]:
    """`loss` (nats per token, no smoothing, no regulariser), `perplexity` and `top5` over all captions."""
    model.eval()
    averages = TokenAverages(device)
    batches = ordered_batches(len(dataset), batch_size)
    for batch in watched(make_loader(dataset, batches, workers, device), len(batches), "validation loss"):
        captions = batch.captions.to(device)
        with autocast(device, precision):
            logits, _ = model(batch.images.to(device), captions, batch.image_index.to(device))
        averages.add(caption_loss(logits, captions))
    return averages.read()


def caption_split(
    model: CaptionModel,
    dataset: Flickr8kDataset,
    vocabulary: Vocabulary,
    options: SearchOptions,
    batch_size: int,
    workers: int,
    device,
    precision,
) -> dict[str, str]:
    """Image name -> caption, for every image of the split."""
    batches = ordered_batches(len(dataset), batch_size)
    loader = make_loader(dataset, batches, workers, device)
    images = (batch.images for batch in watched(loader, len(batches), f"captions (beam {options.beam})"))
    captions = caption_batches(model, images, options, device, precision)
    best = (beams[0] for batch in captions for beams in batch.tokens.tolist())
    texts = (" ".join(vocabulary.decode(tokens)) for tokens in best)
    return dict(zip(dataset.names, texts, strict=True))


def caption_batches(
    model: CaptionModel, batches: Iterable[torch.Tensor], options: SearchOptions, device, precision
) -> Iterator[Captions]:
    """Captions of batches of images or grids, one batch after the other."""
    model.eval()
    for images in batches:
        with torch.inference_mode(), autocast(device, precision):
            yield model.caption(images.to(device), options)


def watched(batches, total: int, title: str):
    """The batches, with a progress bar that goes when they end."""
    with Progress(total, title, "batches", keep=False) as progress:
        for batch in batches:
            yield batch
            progress.update()
