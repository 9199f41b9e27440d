"""How a run ends: with its best model, stopped by a signal, or because its numbers are no longer finite."""

import shlex
from collections.abc import Mapping, Sequence
from copy import copy

from captioning import Captioner
from config import Config
from data.dataset import Flickr8kDataset
from data.shard_paths import is_sharded
from metrics.scores import Scorer
from models.search import SearchOptions
from training.folder import BEST, resume_command
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


def report_best(
    current: Captioner,
    val_set: Flickr8kDataset,
    scorer: Scorer,
    options: SearchOptions,
    best_epoch: int,
    seconds: float,
) -> None:
    """Print the scores of best.pth, and the next commands.

    Args:
        current: the model at the end of the training.
        options: of the search for the captions that are scored.
        best_epoch: the epoch of best.pth; 0 if there is none.
        seconds: of training.

    Raises:
        UserError: best.pth cannot be loaded.
    """
    config, folder = current.config, current.config.run_folder
    captioner = Captioner.load(folder / BEST, compute=current.compute)
    if val_set.features and captioner.model.encoder.digest() != current.model.encoder.digest():
        val_set = copy(val_set)  # the encoder was trained after the best epoch, and is frozen now
        val_set.features = None
    scores = score_captions(caption_split(captioner, val_set, options), scorer, current.compute)
    print(f"\n{folder / BEST} is epoch {best_epoch}; {seconds:.0f} s of training.")
    print(f"Validation scores with beam {options.beam}:")
    print("  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    print("\nNext:")
    inference = ["inference_visualize.py", config.data.images, "--limit", 20, "--checkpoint", folder / BEST]
    if is_sharded(config.data):  # there is no folder of images
        inference = ["evaluate.py", "--checkpoint", folder / BEST]
    for command in (inference, ["visualize_loss.py", folder]):
        print(" ", shlex.join(["python", *map(str, command)]))
