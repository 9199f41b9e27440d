"""loss_log.txt, the log of a run: find it, read it (also while it is being written), and summarise it.

It is a CSV file with a header. `event` is the kind of row: `step` (one logging interval: train_* and lr),
`epoch` (means over the epoch, and the validation), `resume` (the run was resumed at that step) or `phase`
(the next phase of the training began). Epochs are counted from 1, steps over the whole run. `skipped` counts
the steps of the interval or epoch whose loss or gradient was not finite; they changed no weight, and the
means leave them out.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from metrics.measures import MEASURES, Measure
from utils import UserError

_LOG_NAME = "loss_log.txt"
# Every log has these. An objective that reports other figures adds a `train_` column for each.
COLUMNS = (
    *("event", "epoch", "step", "seconds", "lr", "skipped"),
    *("train_loss", "train_perplexity", "train_top5"),
    *(measure.column for measure in MEASURES),
)


def find_log(run: Path) -> Path:
    """The log of `run`, which is a run folder or the log itself. Raises UserError if it does not exist."""
    log = run / _LOG_NAME if run.is_dir() else run
    if not log.is_file():
        missing = f"no {_LOG_NAME} in {run}" if run.is_dir() else f"no such run: {run}"
        raise UserError(f"{missing}; pass a run folder such as runs/NAME, or a {_LOG_NAME}")
    return log


def newest_log(folder: Path) -> Path:
    """The most recently written log of the runs in `folder`. Raises UserError if there are no runs."""
    logs = list(folder.glob(f"**/{_LOG_NAME}"))
    if not logs:
        raise UserError(f"no runs in {folder.resolve()}; train one with train.py, or pass a run folder")
    return max(logs, key=lambda log: log.stat().st_mtime)


def read_log(log: Path) -> pd.DataFrame:
    """A table with COLUMNS and the log's other `train_` columns, one row per event; what is missing is NaN.

    A last line without a newline is still being written and is left out, and so are the steps that a resumed
    run repeats. Raises UserError if the file cannot be read or has no rows yet.
    """
    try:
        lines = log.read_text(encoding="utf-8-sig", errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {log}: {error.strerror}") from None
    whole = [line for line in lines if line.endswith("\n") and line.strip("\n\0 ")]
    if not whole or not {"event", "epoch", "step"} <= set(whole[0].strip().split(",")):
        what = f"does not begin with the header {','.join(COLUMNS[:3])},…" if whole else "is empty"
        raise UserError(f"{log} {what}; pass the {_LOG_NAME} that train.py writes")
    # quoting=3: quotes have no meaning. index_col=False: the first column is never taken as an index.
    table = pd.read_csv(
        io.StringIO("".join(whole)), dtype=str, index_col=False, on_bad_lines="skip", quoting=3
    )
    others = [column for column in table.columns if column.startswith("train_")]
    columns = list(dict.fromkeys([*COLUMNS, *others]))
    table, numbers = table.reindex(columns=columns), columns[1:]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    table = table[
        table["event"].isin(["step", "epoch", "resume", "phase"])
        & table[["epoch", "step"]].notna().all(axis=1)
    ]
    table = _without_lost_steps(table.reset_index(drop=True))
    if not table["event"].isin(["step", "epoch"]).any():
        raise UserError(f"{log} has no rows yet; the first comes after train.log_every steps")
    return table


def _without_lost_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the steps after the last checkpoint of a stopped run, which the resumed run repeats."""
    kept = pd.Series(True, index=table.index)
    for row in table.index[table["event"] == "resume"]:
        kept &= (table.index >= row) | (table["step"] <= table.at[row, "step"])
    return table[kept].reset_index(drop=True)


def best(table: pd.DataFrame, measure: Measure) -> tuple[float, int] | None:
    """The best value of the measure over all epochs, and its epoch; None if no epoch has a value."""
    values = table.loc[table["event"] == "epoch"].set_index("epoch")[measure.column]
    values = values[values.map(math.isfinite)]
    if values.empty:
        return None
    epoch = values.idxmax() if measure.higher_is_better else values.idxmin()
    return float(values.max() if measure.higher_is_better else values.min()), int(epoch)


def best_text(table: pd.DataFrame, measure: Measure) -> str | None:
    """The best value and its epoch as text, such as `66.2% in epoch 8`, or None."""
    found = best(table, measure)
    return f"{found[0]:{measure.format}} in epoch {found[1]}" if found else None


def rate_changes(table: pd.DataFrame) -> pd.Series:
    """True in the last row before a constant learning rate changes, for example after a plateau.

    A rate that changes at every step, as in a cosine schedule, is not marked.
    """
    rows = table[table["lr"].notna()].drop_duplicates("step", keep="last")
    rates = rows["lr"]
    ends = (rates == rates.shift(1)) & (rates != rates.shift(-1)) & rates.shift(-1).notna()
    return ends.reindex(table.index, fill_value=False)


def run_names(logs: Sequence[Path]) -> list[str]:
    """The folder name of each log, with as many parent folders as needed to tell the runs apart."""
    paths = [log.resolve() for log in logs]
    paths = [path.parent if path.name == _LOG_NAME else path for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names
