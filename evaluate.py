"""Score a model, or captions from any other source, against the reference captions of a split."""

from startup import importing, run_script

import argparse
import sys
from pathlib import Path

from config_reading import argument_parser, repeat_checkpoint
from data.splits import SPLITS
from utils import UserError


def main() -> None:
    args = _parse_arguments()
    with importing():
        from jobs.evaluate import evaluate
    evaluate(args)


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        metavar="FILE",
        help="best.pth or folder of a run (default: the newest one, or else pretrained/flickr8k.pth); "
        "several: an ensemble",
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
        "--analyse", action="store_true",
        help="also: words by category, length, novelty, and a page with the worst and the best captions",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER",
        help="analyse, and compare with the captions of another evaluation of the same images, such as "
        "runs/other/eval-test",
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the configuration"
    )
    args = parser.parse_intermixed_args(repeat_checkpoint(sys.argv[1:]))
    for option in ("config", "strict"):
        if getattr(args, option) and not args.predictions:
            raise UserError(f"--{option} needs --predictions; leave it out to score a checkpoint")
    for option in ("checkpoint", "beam"):
        if getattr(args, option) and args.predictions:
            raise UserError(f"--{option} cannot be combined with --predictions; leave one of them out")
    args.analyse = args.analyse or args.against is not None
    if args.beam is not None:
        args.overrides.append(f"search.beam={args.beam}")
    return args


if __name__ == "__main__":
    run_script(main)
