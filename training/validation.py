"""A model's loss under teacher forcing on a split, and its captions."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from captioning import Captioner
from data.dataset import Batch, Flickr8kDataset, make_loader, ordered_batches
from models.search import SearchOptions
from progress import Progress
from training.loss import TokenAverages, caption_loss


@torch.inference_mode()
def validation_loss(captioner: Captioner, dataset: Flickr8kDataset) -> dict[str, float]:
    """`loss` (nats per token, no smoothing, no regulariser), `perplexity` and `top5` over all captions."""
    compute = captioner.compute
    captioner.model.eval()
    averages = TokenAverages(compute)
    for [batch] in _batches(captioner, [dataset], "validation loss"):
        [images], captions = compute.to_device(batch.images), batch.packed().to(compute)
        with compute.autocast():
            logits, _ = captioner.model(images, captions)
        averages.add(caption_loss(logits, captions).sums)
    return averages.read()


def caption_split(
    captioner: Captioner, dataset: Flickr8kDataset, options: SearchOptions, *others: Flickr8kDataset
) -> dict[str, str]:
    """Image name -> caption, for every image of the split.

    `others`: the same split as the other members of an ensemble see it.
    """
    texts: list[str] = []
    for batches in _batches(captioner, [dataset, *others], f"captions (beam {options.beam})"):
        images = [batch.images for batch in batches]
        indices = range(len(texts), len(texts) + len(images[0]))
        texts += captioner.texts(captioner.search(images, options, indices))
    return dict(zip(dataset.names, texts, strict=True))


def _batches(
    captioner: Captioner, datasets: Sequence[Flickr8kDataset], title: str
) -> Iterator[tuple[Batch, ...]]:
    """The images of a split in order, of each of the datasets, with a progress bar."""
    config = captioner.config
    batches = ordered_batches(len(datasets[0]), config.train.batch_size)
    loaders: list[Iterable[Batch]] = [
        make_loader(dataset, batches, config.data.workers, captioner.compute) for dataset in datasets
    ]
    with Progress(len(batches), title, "batches", keep=False) as progress:
        for of_datasets in zip(*loaders, strict=True):
            yield of_datasets
            progress.update()
