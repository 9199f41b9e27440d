"""Scoring the captions of a validation pass: BLEU, ROUGE-L and CIDEr of one caption per image.

Reference: pycocoevalcap's own scorers on the same tokens. The references are tokenised once per training, so
that is part of neither. An epoch is the training steps on all images and one scoring.
"""

from startup import run_script

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from benchmarks.measure import Row, divided, row, seconds_in_turn
from benchmarks.report import run_benchmarks
from benchmarks.training import training_step
from benchmarks.workload import CAPTIONS_PER_IMAGE, Settings, captions_table, name_of
from data.captions import references
from metrics.metric import tokenized
from metrics.scores import VALIDATION_METRICS, Scorer


def benchmark(settings: Settings) -> list[Row]:
    num_train, num_val = settings.split_sizes
    # The captions of a model are the references of other images.
    texts = references(captions_table(2 * num_val, settings.vocab_size))
    names = list(texts)
    predictions = {
        name: texts[other][0] for name, other in zip(names[:num_val], names[num_val:], strict=True)
    }
    texts = {name: texts[name] for name in predictions}
    scorer = Scorer(texts, VALIDATION_METRICS)
    tokens = {name: [tokenized(caption) for caption in group] for name, group in texts.items()}

    def theirs() -> None:
        captions = {name: [tokenized(caption)] for name, caption in predictions.items()}
        Bleu(4).compute_score(tokens, captions, verbose=0)
        Rouge().compute_score(tokens, captions)
        Cider().compute_score(tokens, captions)

    (cells, channels), compute = settings.grids[0], settings.compute
    step = training_step(settings, compute, cells, channels)
    rounds = seconds_in_turn([lambda: scorer.score(predictions), theirs, step], settings)
    own, other, one_step = zip(*rounds, strict=True)
    epoch = [num_train / settings.num_images * s for s in one_step]
    shape = f"{num_val:,} images, {CAPTIONS_PER_IMAGE} references"
    share = [100 * a / (a + b) for a, b in zip(own, epoch, strict=True)]
    ratios = {"reference": divided(other, own)}
    return [
        row("scoring", "validation scores", shape, [num_val / s for s in own], "images/s", "", ratios),
        row("scoring", "validation scores", shape, share, "% of an epoch", name_of(compute)),
    ]


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
