"""Draw the curves of training runs from their loss_log.txt, while they are going on or after.

python visualize_loss.py                          the most recent run under runs/
python visualize_loss.py runs/baseline            one run -> runs/baseline/loss_curve.png and .svg
python visualize_loss.py runs/* --output all.pdf  several runs on one sheet
python visualize_loss.py --watch                  again whenever the log has grown, until Ctrl-C
"""

import argparse
import math
import time
from pathlib import Path

from reports.curves import draw_curves
from reports.loss_log import MEASURES, best, best_text, find_log, newest_log, read_log, run_names
from utils import UserError, run_script

POLL = 2  # seconds between two looks at a log that is watched


def main() -> None:
    """Draw the sheet and print the numbers."""
    args = parse_arguments()
    logs = [find_log(run) for run in args.runs]
    if not logs:
        logs = [newest_log(Path("runs"))]
        print(f"The most recent run: {logs[0].parent}")
    logs = list({log.resolve(): log for log in logs}.values())  # the same run named twice is one run
    folder = logs[0].parent if len(logs) == 1 else Path()
    outputs = [args.output] if args.output else [folder / "loss_curve.png", folder / "loss_curve.svg"]
    if args.watch:
        watch(logs, outputs)
    draw(logs, outputs)


def draw(logs: list[Path], outputs: list[Path]) -> None:
    for output in outputs:
        draw_curves(logs, output)
    print(epochs_table(logs[0]) if len(logs) == 1 else runs_table(logs))
    print(f"Wrote {' and '.join(map(str, outputs))}", flush=True)


def watch(logs: list[Path], outputs: list[Path]) -> None:
    """Draw again whenever one of the logs has changed, for ever."""
    seen, waiting = None, False
    while True:
        now = [(log.stat().st_size, log.stat().st_mtime_ns) if log.is_file() else None for log in logs]
        if now != seen:
            try:
                draw(logs, outputs)
                waiting = False
            except UserError as error:  # a run that has only begun, or is being started over
                if not waiting:
                    print(f"waiting: {error}", flush=True)
                waiting = True
            seen = now
        time.sleep(POLL)


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
        help="png, svg or pdf (default: loss_curve.png and loss_curve.svg, in the run's folder or, for "
        "several runs, in this one)",
    )  # fmt: skip
    parser.add_argument(
        "--watch", action="store_true", help="go on and draw again whenever a log has grown (Ctrl-C ends it)"
    )
    return parser.parse_intermixed_args()


def runs_table(logs: list[Path]) -> str:
    """Per run the epochs done, and each measure's best value and its epoch."""
    rows = [["run", "epochs", "val loss", "val perplexity", "top-5", "BLEU-4", "CIDEr"]]
    for name, log in zip(run_names(logs), logs, strict=True):
        table = read_log(log)
        epochs = table.loc[table["event"] == "epoch", "epoch"]
        bests = [best_text(table, column) or "-" for column in MEASURES]
        rows.append([name, str(int(epochs.max())) if len(epochs) else "0", *bests])
    return aligned(rows)


def epochs_table(log: Path) -> str:
    """One run's epochs, the best value of each measure starred; before the first ends, its latest step."""
    table = read_log(log)
    epochs = table[table["event"] == "epoch"]
    if epochs.empty:
        epochs = table.tail(1)
    columns = {"lr": ".2g", "train_loss": ".3f", **MEASURES}
    bests = {column: best(table, column) for column in MEASURES}
    head = ["epoch", "step", "lr", "train loss", "val loss", "perplexity", "top-5", "BLEU-4", "CIDEr"]
    rows = [head]
    for _, row in epochs.iterrows():
        cells = [str(int(row["epoch"])), str(int(row["step"]))]
        for column, form in columns.items():
            star = "*" if bests.get(column) and bests[column][1] == row["epoch"] else ""
            cells.append(f"{row[column]:{form}}{star}" if math.isfinite(row[column]) else "-")
        rows.append(cells)
    return f"{run_names([log])[0]}\n{aligned(rows)}\n* best"


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells as lines of a table, the columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
