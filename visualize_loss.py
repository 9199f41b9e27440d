"""Draw the curves of training runs from their loss_log.txt, while they are going on or after.

python visualize_loss.py                          the most recent run under runs/
python visualize_loss.py runs/baseline            one run -> runs/baseline/loss_curve.png
python visualize_loss.py runs/* --output all.svg  several runs on one sheet
"""

import argparse
from pathlib import Path

from reports.curves import draw_curves
from reports.loss_log import MEASURES, best_text, find_log, newest_log, read_log, run_names
from utils import run_script


def main() -> None:
    """Draw the sheet and print the best values."""
    args = parse_arguments()
    logs = [find_log(run) for run in args.runs]
    if not logs:
        logs = [newest_log(Path("runs"))]
        print(f"The most recent run: {logs[0].parent}")
    logs = list({log.resolve(): log for log in logs}.values())  # the same run named twice is one run
    alone = logs[0].parent / "loss_curve.png"
    output = args.output or (alone if len(logs) == 1 else Path("loss_curve.png"))
    draw_curves(logs, output)
    print(summary(logs))
    print(f"Wrote {output}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN",
        help="a run folder or a loss_log.txt (default: the most recent run under runs/)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="png, svg or pdf (default: loss_curve.png in the run's folder; for several runs in this one)",
    )  # fmt: skip
    return parser.parse_intermixed_args()


def summary(logs: list[Path]) -> str:
    """A table for the terminal: per run the epochs done, and each measure's best value and its epoch."""
    rows = [["run", "epochs", "val loss", "val perplexity", "top-5", "BLEU-4", "CIDEr"]]
    for name, log in zip(run_names(logs), logs, strict=True):
        table = read_log(log)
        epochs = table.loc[table["event"] == "epoch", "epoch"]
        bests = [best_text(table, column) or "-" for column in MEASURES]
        rows.append([name, str(int(epochs.max())) if len(epochs) else "0", *bests])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
