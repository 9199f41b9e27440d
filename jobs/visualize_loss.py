"""The job of visualize_loss.py: the curves of runs as a figure, and their numbers as a table."""

import argparse
import glob
import math
import os
import time
from pathlib import Path

from metrics.measures import MEASURES
from reports.curves import draw_curves
from reports.loss_log import best, best_text, find_log, newest_log, read_log, run_names
from utils import UserError

_POLL = 2  # seconds between two checks of a watched log
_SHOWN = [measure for measure in MEASURES if measure.in_curves]


def show_curves(args: argparse.Namespace) -> None:
    """Draw the curves and print a table."""
    logs = [find_log(run) for argument in args.runs for run in _select(argument)]
    if not logs:
        logs = [newest_log(Path("runs"))]
        print(f"The most recent run: {logs[0].parent}")
    logs = list({log.resolve(): log for log in logs}.values())  # each run once, even if it is named twice
    folder = logs[0].parent if len(logs) == 1 else Path()
    outputs = [args.output] if args.output else [folder / "loss_curve.png", folder / "loss_curve.svg"]
    if args.watch:
        _watch(logs, outputs)
    _draw(logs, outputs)


def _draw(logs: list[Path], outputs: list[Path]) -> None:
    for output in outputs:
        draw_curves(logs, output)
    print(_epochs_table(logs[0]) if len(logs) == 1 else _runs_table(logs))
    print(f"Wrote {' and '.join(map(str, outputs))}", flush=True)


def _watch(logs: list[Path], outputs: list[Path]) -> None:
    """Draw whenever one of the logs has changed; never returns."""
    seen, waiting = None, False
    while True:
        now = [(log.stat().st_size, log.stat().st_mtime_ns) if log.is_file() else None for log in logs]
        if now != seen:
            try:
                _draw(logs, outputs)
                waiting = False
            except UserError as error:  # the run has just started or restarted
                if not waiting:
                    print(f"waiting: {error}", flush=True)
                waiting = True
            seen = now
        time.sleep(_POLL)


def _select(argument: str) -> list[Path]:
    """The run, or the runs that match a glob: not every shell expands it."""
    matches = [] if os.path.lexists(argument) else sorted(glob.glob(argument))
    return [Path(match) for match in matches] or [Path(argument)]


def _runs_table(logs: list[Path]) -> str:
    """One line per run: the number of epochs, and the best value of each measure with its epoch."""
    rows = [["run", "epochs", *(measure.title for measure in _SHOWN)]]
    for name, log in zip(run_names(logs), logs, strict=True):
        table = read_log(log)
        epochs = table.loc[table["event"] == "epoch", "epoch"]
        bests = [best_text(table, measure) or "-" for measure in _SHOWN]
        rows.append([name, str(int(epochs.max())) if len(epochs) else "0", *bests])
    return _aligned(rows)


def _epochs_table(log: Path) -> str:
    """One line per epoch, best values starred; during the first epoch, one line for the latest step."""
    table = read_log(log)
    epochs = table[table["event"] == "epoch"]
    if epochs.empty:
        epochs = table.tail(1)
    bests = {measure: best(table, measure) for measure in _SHOWN}
    rows = [["epoch", "step", "lr", "train loss", *(measure.title for measure in _SHOWN)]]
    for _, row in epochs.iterrows():
        cells = [str(int(row["epoch"])), str(int(row["step"]))]
        cells += [_cell(row["lr"], ".2g"), _cell(row["train_loss"], ".3f")]
        for measure, found in bests.items():
            star = "*" if found and found[1] == row["epoch"] else ""
            cells.append(_cell(row[measure.column], measure.format, star))
        rows.append(cells)
    return f"{run_names([log])[0]}\n{_aligned(rows)}\n* best"


def _cell(value: float, form: str, star: str = "") -> str:
    return f"{value:{form}}{star}" if math.isfinite(value) else "-"


def _aligned(rows: list[list[str]]) -> str:
    """The lines of a table; each column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)
