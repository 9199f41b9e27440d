"""Train a captioner: python train.py [--config FILE] [--resume [RUN]] [section.key=value …]"""

from startup import importing, run_script

import argparse
import textwrap

from config_reading import config_parser, load_config
from training.changeable import CHANGEABLE


def main() -> int:
    args = _parse_arguments()
    config = None if args.resume else load_config(args.config, args.overrides)
    with importing():
        from jobs.train import train
    return train(config, args)


def _parse_arguments() -> argparse.Namespace:
    parser = config_parser(
        "Train a captioner.", ("run", "data", "encoder", "features", "decoder", "train", "rl", "search")
    )
    phases = (
        "  phases.NAME.section.key   what changes in a phase of a training; see docs/configurations.md (none)"
    )
    changeable = textwrap.fill(", ".join(CHANGEABLE), 100, initial_indent="  ", subsequent_indent="  ")
    parser.epilog = f"{parser.epilog}\n{phases}\n\nkeys that may change when a run is resumed:\n{changeable}"
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue a stopped run; RUN is its folder (default: the folder of the configuration's run)",
    )
    start.add_argument(
        "--overwrite",
        action="store_true",
        help="start again in the folder of an existing run, whose files are moved into RUN/before-1/",
    )
    args = parser.parse_intermixed_args()
    if args.resume and "=" in args.resume:  # `--resume train.epochs=20`: no RUN, only an override
        args.overrides, args.resume = [args.resume, *args.overrides], ""
    return args


if __name__ == "__main__":
    run_script(main)
