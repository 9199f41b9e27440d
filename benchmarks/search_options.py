"""What the options of the search do to the captions of the validation images, and to its speed.

    python -m benchmarks.search_options runs/mine/best.pth
    python -m benchmarks.search_options a.pth b.pth --options beam=5 "beam=5 no_repeat=1"

Several checkpoints caption together. The table has scores and mean length of the best captions, the number
of distinct words in all captions that were found for an image, and images per second of CPU time. Images are
read before, and encoded if their features can be cached.
"""

from startup import run_script

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from captioning import Captioner
from config_reading import make_config
from data.captions import read_table, references
from metrics.scores import VALIDATION_METRICS, Scorer
from metrics.statistics import caption_statistics
from training.datasets import make_datasets

_SPLIT, _BATCH = "val", 32
_OPTIONS = (
    *("beam=1", "beam=5", "beam=20", "min_length=8", "no_repeat=1", "exclude=[man]"),
    *("include=[man]", "include=[man,dog]", "beam=6 groups=3", "rerank=cider", "beam=20 rerank=cider"),
    *("temperature=0.7", "beam=20 temperature=0.7 rerank=cider"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--options", nargs="+", default=_OPTIONS, help="a row each: keys of search")
    args = parser.parse_args()
    captioner = Captioner.load(args.checkpoints)
    table = read_table(captioner.config.data, (_SPLIT,))
    scorer = Scorer(references(table, _SPLIT), VALIDATION_METRICS)
    datasets = [make_datasets(member, table, [_SPLIT])[0] for member in captioner.members]
    names = list(datasets[0].names)
    images = [torch.stack([dataset.image(i) for i in range(len(names))]) for dataset in datasets]
    print("| search | BLEU-4 | CIDEr | words | words per image | images/s |\n|---|---|---|---|---|---|")
    for options in args.options:
        print(f"| `{options}` | {_row(captioner, names, images, scorer, options)} |", flush=True)


def _row(
    captioner: Captioner, names: Sequence[str], images: list[torch.Tensor], scorer: Scorer, text: str
) -> str:
    """The scores and the speed of a search as cells of a table."""
    values = captioner.config.as_dict()
    changed = make_config(values, [f"search.{option}" for option in text.split()]).search
    options = captioner.options(**changed.model_dump())
    best, distinct, start = {}, 0, time.process_time()
    found = []
    for at in range(0, len(names), _BATCH):
        indices = range(at, min(at + _BATCH, len(names)))
        found.append(captioner.search([x[at : at + _BATCH] for x in images], options, indices))
    speed = len(names) / (time.process_time() - start)
    for captions in found:
        for beams, caption in zip(captions.tokens.tolist(), captioner.texts(captions), strict=True):
            best[names[len(best)]] = caption
            distinct += len({word for tokens in beams for word in captioner.vocabulary.decode(tokens)})
    scores, length = scorer.score(best), caption_statistics(best)["mean_length"]
    cells = scores["BLEU-4"], scores["CIDEr"]
    return " | ".join(
        [*(f"{score:.3f}" for score in cells), f"{length:.1f}", f"{distinct / len(best):.1f}", f"{speed:.1f}"]
    )


if __name__ == "__main__":
    run_script(main)
