"""How a run ends: with its best model, stopped by a signal, or because its numbers are no longer finite."""

import shlex
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

from captioning import Captioner
from config import Config
from data.dataset import Flickr8kDataset
from data.shard_paths import is_sharded
from metrics.scores import Scorer
from models.checkpoint import save_checkpoint
from training.folder import BEST, resume_command
from training.neighbours import find_neighbours
from training.validation import caption_split, score_captions
from utils import UserError

RATES = ("train.lr", "train.encoder_lr")
_MAX_NAMED = 5  # most images that a message names


def diverged(
    what: str, config: Config, names: Mapping[str, str], step: int, lr: float, images: Sequence[str] = ()
) -> UserError:
    """The error for numbers that are not finite; it says how to go on from the last checkpoint.

    Args:
        what: what is not finite.
        names: how overrides name the keys in RATES.
        lr: the learning rate of the last step.
        images: the names of the images of its batch.
    """
    named = [*images[:_MAX_NAMED], *["…"][: len(images) - _MAX_NAMED]]
    batch = f"; images of the last batch: {', '.join(named)}" if named else ""
    rates = dict(zip(RATES, (config.train.lr, config.train.encoder_lr), strict=True))
    if config.encoder.fine_tune == "none":
        del rates["train.encoder_lr"]
    lower = [f"{names[key]}={rate / 10:g}" for key, rate in rates.items()]
    command = resume_command(config.run_folder, *lower)
    return UserError(
        f"{what} (step {step}, learning rate {lr:g}{batch}); go on from the last checkpoint: {command}"
    )


def finish_best(
    current: Captioner, asked: Config, train_set: Flickr8kDataset, val_set: Flickr8kDataset
) -> tuple[Captioner, Flickr8kDataset]:
    """Add its neighbours to the model in best.pth if search.rerank is to use them.

    Args:
        current: the model at the end of the training.
        asked: the configuration with all phases, which is the one in checkpoints.

    Returns:
        The model, and the validation split as it sees it.

    Raises:
        UserError: best.pth cannot be loaded.
    """
    path, compute = asked.run_folder / BEST, current.compute
    best = replace(Captioner.load(path, compute=compute), config=current.config)
    train_set, val_set = _seen_by(best, current, train_set, val_set)
    if asked.search.rerank == "neighbours":
        best = replace(best, neighbours=find_neighbours(best, train_set))
        if compute.is_main:
            save_checkpoint(path, {**best.checkpoint(), "config": asked.as_dict()})
        compute.wait()
    return best, val_set


def _seen_by(best: Captioner, current: Captioner, *datasets: Flickr8kDataset) -> Sequence[Flickr8kDataset]:
    """The datasets of `current` for `best`, without features if they are those of another encoder.

    The encoder may have been trained after the best epoch, and be frozen now.
    """
    has_features = any(dataset.features is not None for dataset in datasets)
    if not has_features or best.model.encoder.digest() == current.model.encoder.digest():
        return datasets
    copies = [copy(dataset) for dataset in datasets]
    for dataset in copies:
        dataset.features = None
    return copies


def report_best(
    best: Captioner, val_set: Flickr8kDataset, scorer: Scorer, best_epoch: int, seconds: float
) -> None:
    """Print the scores of best.pth, and the next commands.

    Args:
        val_set: as `best` sees it.
        best_epoch: the epoch of best.pth; 0 if there is none.
        seconds: of training.
    """
    config, folder = best.config, best.config.run_folder
    # Scores of samples would differ between runs.
    options = best.options(temperature=0.0, groups=1)
    scores = score_captions(caption_split(best, val_set, options), scorer, best.compute)
    print(f"\n{folder / BEST} is epoch {best_epoch}; {seconds:.0f} s of training.")
    rerank = "" if options.rerank == "none" else f", reranked by {options.rerank}"
    print(f"Validation scores with beam {options.beam}{rerank}:")
    print("  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    print("\nNext:")
    inference = ["inference_visualize.py", config.data.images, "--limit", 20, "--checkpoint", folder / BEST]
    if is_sharded(config.data):  # there is no folder of images
        inference = ["evaluate.py", "--checkpoint", folder / BEST]
    for command in (inference, ["visualize_loss.py", folder]):
        print(" ", shlex.join(["python", *map(str, command)]))
