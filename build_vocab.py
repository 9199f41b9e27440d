"""Build the vocabulary from the training captions and show what it covers.

train.py builds the same vocabulary without this script. Run it to inspect or edit the words: train.py uses
the file as long as the training captions and data.min_freq stay the same. A file whose words were edited is
not overwritten.
"""

from startup import importing, run_script

import argparse
from pathlib import Path

from config_reading import config_parser, load_config
from utils import UserError


def main() -> None:
    args = _parse_arguments()
    config = load_config(args.config, args.overrides)
    with importing():
        from jobs.build_vocab import build_vocabulary
    build_vocabulary(config, args)


def _parse_arguments() -> argparse.Namespace:
    parser = config_parser(__doc__, ("data",))
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="file to write (default: vocab.json beside the captions, where train.py finds it)",
    )  # fmt: skip
    parser.add_argument(
        "--top",
        type=int,
        default=20,
        metavar="N",
        help="number of frequent words to print (default: 20)",
    )
    args = parser.parse_intermixed_args()
    if args.top < 0:
        raise UserError(f"--top {args.top} is less than 0; pass 0 to print no words")
    return args


if __name__ == "__main__":
    run_script(main)
