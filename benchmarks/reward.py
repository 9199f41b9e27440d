"""A step of self-critical training, and what scoring the sampled captions takes of it.

Reference of the step: a step of cross entropy on as many captions. Reference of the scoring: pycocoevalcap's
CIDEr-D of the same captions.
"""

from startup import run_script

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer

from benchmarks.measure import Row, divided, row, seconds_in_turn
from benchmarks.report import run_benchmarks
from benchmarks.training import training_step
from benchmarks.workload import (
    CAPTIONS_PER_IMAGE,
    Settings,
    batch,
    captions,
    captions_table,
    config,
    dataset,
    decoder,
    name_of,
    trainer,
)
from training.objective import Part
from utils import EOS, PAD

_LENGTH = 12  # tokens of a sampled caption on average
_LR = 1e-9  # a model that learns would write longer or shorter captions


def benchmark(settings: Settings) -> list[Row]:
    (cells, channels), compute = settings.grids[0], settings.compute
    train = {"objective": "self_critical", "lr": _LR, "init_from": "best.pth"}  # no file is read
    options = config(settings, train=train, rl={"samples": CAPTIONS_PER_IMAGE})
    model = decoder(settings, channels)
    torch.nn.init.constant_(model.output.score.bias[EOS : EOS + 1], math.log(settings.vocab_size / _LENGTH))
    train_set = dataset(settings, captions_table(settings.split_sizes[0], settings.vocab_size))
    trained = trainer(model, options, compute, train_set)
    scoring = trained.objective.rewards = _Timed(trained.objective.rewards)
    one_batch, indices = batch(settings, cells, channels), range(settings.num_images)
    cross_entropy = training_step(settings, compute, cells, channels)

    def self_critical() -> None:
        trained.step([Part(one_batch, indices)], epoch=1)

    rounds = seconds_in_turn(
        [self_critical, cross_entropy, lambda: _score_texts(settings, scoring.tokens)], settings
    )
    step, entropy_step, texts = zip(*rounds, strict=True)
    own = scoring.seconds[-len(rounds) :]
    count = settings.num_images * CAPTIONS_PER_IMAGE
    shape, precision, unit = f"{count} captions, {cells} x {channels}", name_of(compute), "captions/s"
    per_step, per_second = [count / s for s in step], [count / s for s in own]
    share = [100 * x for x in divided(own, step)]
    return [
        row("reward", "step", shape, per_step, unit, precision, {"reference": divided(entropy_step, step)}),
        row("reward", "scoring", shape, per_second, unit, "", {"reference": divided(texts, own)}),
        row("reward", "scoring", shape, share, "% of a step", precision),
    ]


class _Timed:
    """Scoring, with the seconds of each call and the tokens of the last one."""

    def __init__(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.score, self.seconds = score, list[float]()

    def __call__(self, tokens: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        self.tokens, began = tokens, time.perf_counter()
        rewards = self.score(tokens, image_index)
        self.seconds.append(time.perf_counter() - began)
        return rewards


def _score_texts(settings: Settings, samples: np.ndarray) -> None:
    """What pycocoevalcap does for the captions (M, T) of a step: the same n-grams, as tuples of strings."""
    k = CAPTIONS_PER_IMAGE
    references = [
        _text(caption[1:].numpy()) for caption in captions(settings.num_images, settings.vocab_size)
    ]
    scorer = CiderScorer(n=4, sigma=6.0)
    for i, tokens in enumerate(samples):
        scorer += (_text(tokens), references[i // k * k : i // k * k + k])
    scorer.compute_score()


def _text(tokens: np.ndarray) -> str:
    return " ".join(map(str, tokens[tokens != PAD].tolist()))


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
