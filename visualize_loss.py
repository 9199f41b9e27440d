"""Draw the curves of training runs from their loss_log.txt, during training or afterwards.

python visualize_loss.py                          the most recent run in runs/
python visualize_loss.py runs/baseline            one run -> runs/baseline/loss_curve.png and .svg
python visualize_loss.py runs/* --output all.pdf  several runs in one figure
python visualize_loss.py --watch                  draw again when the log has grown, until Ctrl-C
"""

from startup import importing, run_script

import argparse
from pathlib import Path


def main() -> None:
    args = _parse_arguments()
    with importing():
        from jobs.visualize_loss import show_curves
    show_curves(args)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN",
        help="run folders, loss_log.txt files or globs (default: the most recent run in runs/)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="png, svg or pdf (default: loss_curve.png and loss_curve.svg in the run's folder; for several "
        "runs, in the current folder)",
    )  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="draw again when a log has grown, until Ctrl-C")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_script(main)
