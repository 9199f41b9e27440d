"""Score a model, or captions from any other source, against the reference captions of a split."""

from startup import run_script

import argparse
import json
from pathlib import Path

import pandas as pd

from captioning import Captioner
from config import Config
from config_reading import DEFAULT_CONFIG, argument_parser, load_config
from data.captions import SPLITS, read_table, references
from data.vocab import SPECIAL
from metrics.predictions import image_ids, read_predictions, select_predictions
from metrics.scores import score_set, scores_table
from metrics.statistics import caption_statistics
from models.checkpoint import find_checkpoint
from outputs import OutputFolder
from training.datasets import make_datasets
from training.validation import caption_split
from utils import UserError


def main() -> None:
    """Get captions of a split from a file or a model, score them, and print and write the scores."""
    args = _parse_arguments()
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


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="best.pth or folder of a run (default: the newest one)",
    )
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), default="test", help="split to score (default: test)"
    )
    parser.add_argument("--beam", type=int, metavar="K", help="beam width, the same as search.beam=K")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE",
        help="score the captions in this file, not a model's: JSON {name: caption}, COCO's results format, "
        "captions.json of inference_visualize.py, or any captions file",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true", help="with --predictions: missing or extra captions are an error"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="with --predictions: the configuration that names the references (default: config.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="folder to write to (default: eval-SPLIT beside the checkpoint or the predictions)",
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the configuration"
    )
    args = parser.parse_intermixed_args()
    for option in ("config", "strict"):
        if getattr(args, option) and not args.predictions:
            raise UserError(f"--{option} needs --predictions; leave it out to score a checkpoint")
    for option in ("checkpoint", "beam"):
        if getattr(args, option) and args.predictions:
            raise UserError(f"--{option} cannot be combined with --predictions; leave one of them out")
    if args.beam is not None:
        args.overrides.append(f"search.beam={args.beam}")
    return args


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
    """Valid JSON. A lone surrogate, which UTF-8 does not have, becomes its escape."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    run_script(main)
