"""A model's loss under teacher forcing on a split, its captions, and their scores.

Several processes share the images, and the metrics; all of them get the results.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from captioning import Captioner
from compute import Compute
from data.dataset import Batch, Flickr8kDataset, make_loader, ordered_batches
from metrics.scores import VALIDATION_METRICS, Scorer
from models.search import SearchOptions
from progress import Progress
from training.loss import TokenAverages, caption_loss


@torch.inference_mode()
def validation_loss(captioner: Captioner, dataset: Flickr8kDataset) -> dict[str, float]:
    """`loss` (nats per token, no smoothing, no regulariser), `perplexity` and `top5` over all captions."""
    compute = captioner.compute
    captioner.model.eval()
    averages = TokenAverages(compute)
    for _, [batch] in shared_batches(captioner, [dataset], "validation loss"):
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
    own: dict[int, str] = {}
    for indices, batches in shared_batches(captioner, [dataset, *others], f"captions (beam {options.beam})"):
        found = captioner.search([batch.images for batch in batches], options, indices)
        own |= zip(indices, captioner.texts(found), strict=True)
    texts = {index: text for part in captioner.compute.gather(own) for index, text in part.items()}
    return {name: texts[index] for index, name in enumerate(dataset.names)}


def make_scorer(references: Mapping[str, Sequence[str]], compute: Compute) -> Scorer:
    """A scorer of this process's share of the validation metrics, for `score_captions`."""
    return Scorer(references, compute.shard(VALIDATION_METRICS))


def score_captions(captions: Mapping[str, str], scorer: Scorer, compute: Compute) -> dict[str, float]:
    """The validation metrics of captions of all images, by name."""
    scores = {name: score for part in compute.gather(scorer.score(captions)) for name, score in part.items()}
    return {metric.name: scores[metric.name] for metric in VALIDATION_METRICS}


def shared_batches(
    captioner: Captioner, datasets: Sequence[Flickr8kDataset], title: str
) -> Iterator[tuple[list[int], tuple[Batch, ...]]]:
    """The images of a split, or this process's share of them, with a progress bar.

    Yields their indices, and a batch of each of the datasets.
    """
    config = captioner.config
    batches = list(captioner.compute.shard(ordered_batches(len(datasets[0]), config.train.batch_size)))
    loaders: list[Iterable[Batch]] = [
        make_loader(dataset, batches, config.data.workers, captioner.compute) for dataset in datasets
    ]
    with Progress(len(batches), title, "batches", keep=False) as progress:
        for draws, *of_datasets in zip(batches, *loaders, strict=True):
            yield [index for index, _ in draws], tuple(of_datasets)
            progress.update()
