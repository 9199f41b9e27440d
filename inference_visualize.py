"""Caption your own images: files, folders, globs, and images on the web by their addresses."""

from startup import importing, run_script

import argparse
import re
import sys
from pathlib import Path

from config import Config
from config_reading import argument_parser, repeat_checkpoint
from data.addresses import Addresses
from data.image_files import find_images

_OVERRIDE = re.compile(rf"({'|'.join(Config.model_fields)})\.\w+=")


def main() -> int:
    args = _parse_arguments()
    addresses = Addresses()
    paths = find_images(args.images, addresses)[: args.limit]
    with importing():
        from jobs.inference_visualize import caption_images
    return caption_images(paths, args, addresses)


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES",
        help="images, folders, globs, addresses (https://…), text files (.txt) with a path or an address on "
        "each line, and section.key=value overrides",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        metavar="FILE",
        help="best.pth or folder of a run (default: the newest one, or else pretrained/flickr8k.pth); "
        "several: an ensemble",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        metavar="FOLDER",
        help="folder to write to (default: outputs)",
    )
    parser.add_argument(
        "--captions", type=Path, metavar="FILE",
        help="captions file with references for the images, to show and to score the captions against",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--draw", type=int, default=1000, metavar="N",
        help="draw only the first N images, and show only these on the page; the captions of all are in "
        "captions.json (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with a run that was stopped: leave out images whose captions are in captions.jsonl",
    )  # fmt: skip
    parser.add_argument(
        "--beam", type=int, metavar="K", help="beam width, the same as search.beam=K; 1 is greedy"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="sample at this temperature if above 0"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely words")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely words with total probability P"
    )
    parser.add_argument("--seed", type=int, help="seed of sampling (default: run.seed)")
    parser.add_argument(
        "--attention", action="store_true", help="also draw a sheet with the attention for each word"
    )
    args = parser.parse_intermixed_args(repeat_checkpoint(sys.argv[1:]))
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.draw < 0:
        parser.error("--draw must be at least 0")
    args.samples = args.temperature is None and bool(args.top_k or args.top_p)
    given = args.images
    args.images = [argument for argument in given if not _OVERRIDE.match(argument)]
    args.overrides = [argument for argument in given if _OVERRIDE.match(argument)]
    for key in ("beam", "temperature", "top_k", "top_p"):
        if getattr(args, key) is not None:
            args.overrides.append(f"search.{key}={getattr(args, key)}")
    if args.seed is not None:
        args.overrides.append(f"run.seed={args.seed}")
    return args


if __name__ == "__main__":
    run_script(main)
