"""The job of evaluate.py: captions of a split, from a file or a model, and their scores."""

import argparse
import json
from pathlib import Path

import pandas as pd

from captioning import Captioner
from config import Config
from config_reading import DEFAULT_CONFIG, load_config
from data.captions import read_table, references
from data.splits import SPLITS
from data.vocab import SPECIAL
from metrics.predictions import image_ids, read_predictions, select_predictions
from metrics.scores import score_set, scores_table
from metrics.statistics import caption_statistics
from models.checkpoint import find_checkpoint
from outputs import OutputFolder
from training.datasets import make_datasets
from training.validation import caption_split
from utils import UserError


def evaluate(args: argparse.Namespace) -> None:
    """Get captions of a split from a file or a model, score them, and print and write the scores."""
    if args.predictions:
        config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
        table = _read_table(config, args.split, with_images=False)
        split_references = _split_references(table, args.split)
        predictions = read_predictions(args.predictions, table)
        captions = select_predictions(predictions, split_references, str(args.predictions), args.strict)
        vocab_size, output = None, _output(args, args.predictions)
    else:
        checkpoint = find_checkpoint(args.checkpoint)
        output = _output(args, checkpoint)
        captioner = Captioner.load(checkpoint, args.overrides)
        table = _read_table(captioner.config, args.split, with_images=True)
        split_references = _split_references(table, args.split)
        with captioner.compute.explain_memory("lower train.batch_size or --beam"):
            [dataset] = make_datasets(captioner, table, [args.split])
            captions = caption_split(captioner, dataset, captioner.options())
        vocab_size = len(captioner.vocabulary) - len(SPECIAL)

    scores, left_out = score_set(captions, split_references)
    statistics = caption_statistics(captions, vocab_size)
    print(f"\n{len(captions):,} images\n{scores_table(scores, left_out)}\n{_statistics_table(statistics)}")
    ids = image_ids(table)
    rows = [{"image_id": ids[image], "caption": caption} for image, caption in captions.items()]
    output.write_text("scores.json", _as_json({**scores, **statistics}))
    output.write_text("captions.json", _as_json(rows))
    print(f"wrote {output.folder / 'scores.json'} and {output.folder / 'captions.json'}")


def _output(args: argparse.Namespace, scored: Path) -> OutputFolder:
    """The folder of the results; raises UserError if they cannot be written there.

    `scored`: the checkpoint or the predictions.
    """
    output = OutputFolder(args.output or scored.parent / f"eval-{args.split}")
    output.check(["scores.json", "captions.json"])
    return output


def _read_table(config: Config, split: str, with_images: bool) -> pd.DataFrame:
    """The captions table; for `all`, all images are put into one split of that name."""
    splits = SPLITS if split == "all" else (split,)
    table = read_table(config.data, splits if with_images else ())
    return table.assign(split="all") if split == "all" else table


def _split_references(table: pd.DataFrame, split: str) -> dict[str, list[str]]:
    found = references(table, split)
    if not found:
        raise UserError(f"the captions file has no images in the split {split!r}; choose another --split")
    return found


def _statistics_table(statistics: dict[str, float]) -> str:
    used = ""
    if "vocabulary_used" in statistics:
        used = f" ({statistics['vocabulary_used']:.1%} of the vocabulary)"
    lines = (
        f"distinct captions  {statistics['distinct_captions']:.1%}",
        f"dangling endings   {statistics['dangling_endings']:.1%} (… with a)",
        f"mean length        {statistics['mean_length']:.2f} words",
        f"distinct words     {statistics['distinct_words']:,}{used}",
    )
    return "\n".join(f"  {line}" for line in lines)


def _as_json(content: dict | list) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
