"""The job of evaluate.py: captions of a split, from a file or a model, and their scores."""

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from captioning import Captioner
from config_reading import DEFAULT_CONFIG, load_config
from data.captions import read_table, references
from data.shard_set import open_images
from data.splits import SPLITS
from data.vocab import SPECIAL
from metrics.analysis import Others, analyse, analysis_table
from metrics.predictions import image_ids, read_predictions, read_same_images, select_predictions
from metrics.scores import score_set, scores_table
from metrics.statistics import caption_statistics
from models.checkpoint import find_checkpoint
from outputs import OutputFolder
from processes import connected, is_main
from reports.analysis import ANALYSIS_PAGE, write_analysis
from training.datasets import make_datasets
from training.validation import caption_split
from utils import UserError


def evaluate(args: argparse.Namespace) -> None:
    """Get captions of a split from a file or a model, score them, and print and write the scores."""
    with connected("start it again"):
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    scored = SPLITS if args.split == "all" else (args.split,)
    splits = sorted({*scored, "train"}) if args.analyse else scored
    if args.predictions:
        config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
        table = read_table(config.data, splits_with_images=(), in_memory=splits)
        split_references = _split_references(table, args.split)
        predictions = read_predictions(args.predictions, table)
        captions = select_predictions(predictions, split_references, str(args.predictions), args.strict)
        others = _read_others(args.against, table, captions)
        vocab_size, output = None, _output(args, args.predictions)
    else:
        checkpoints = [find_checkpoint(path) for path in args.checkpoint or [None]]
        output = _output(args, checkpoints[0])
        captioner = Captioner.load(checkpoints, args.overrides)
        config, options = captioner.config, captioner.options()
        table = read_table(config.data, scored, splits)
        split_references = _split_references(table, args.split)
        others = _read_others(args.against, table, split_references)
        one_split = table.assign(split="all") if args.split == "all" else table
        with captioner.compute.explain_memory("lower train.batch_size or --beam"):
            # Each model has its own features, or images of its own size.
            datasets = [make_datasets(member, one_split, [args.split])[0] for member in captioner.members]
            captions = caption_split(captioner, datasets[0], options, *datasets[1:])
        vocab_size = len(captioner.vocabulary) - len(SPECIAL)

    if not is_main():
        return
    scores, left_out = score_set(captions, split_references)
    statistics = caption_statistics(captions, vocab_size)
    print(f"\n{len(captions):,} images\n{scores_table(scores, left_out)}\n{_statistics_table(statistics)}")
    ids = image_ids(table)
    rows = [{"image_id": ids[image], "caption": caption} for image, caption in captions.items()]
    output.write_text("scores.json", _as_json({**scores, **statistics}))
    output.write_text("captions.json", _as_json(rows))
    print(f"wrote {output.folder / 'scores.json'} and {output.folder / 'captions.json'}")
    if args.analyse:
        analysis = analyse(captions, split_references, references(table, "train"), others)
        print(f"\n{analysis_table(analysis)}")
        output.write_text("analysis.json", _as_json(analysis.as_dict()))
        title = f"{args.predictions or ' + '.join(map(str, checkpoints))}, split {args.split}"
        write_analysis(output, title, analysis, scores, open_images(config.data, scored))
        print(f"wrote {output.folder / 'analysis.json'} and {output.folder / ANALYSIS_PAGE}")


def _output(args: argparse.Namespace, scored: Path) -> OutputFolder:
    """The folder of the results; raises UserError if they cannot be written there.

    `scored`: the first checkpoint, or the predictions.
    """
    name = f"eval-{args.split}" + "-ensemble" * (len(args.checkpoint or []) > 1)
    output = OutputFolder(args.output or scored.parent / name)
    analysis = ["analysis.json", ANALYSIS_PAGE] if args.analyse else []
    output.check(["scores.json", "captions.json", *analysis])
    return output


def _read_others(against: Path | None, table: pd.DataFrame, images: Collection[str]) -> Others | None:
    """The captions of `images` in another evaluation, given as its folder or its captions.json."""
    if against is None:
        return None
    path = against / "captions.json" if against.is_dir() else against
    return Others(str(path), read_same_images(path, table, images))


def _split_references(table: pd.DataFrame, split: str) -> dict[str, list[str]]:
    found = references(table, None if split == "all" else split)
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
