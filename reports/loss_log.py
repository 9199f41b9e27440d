"""loss_log.txt, the diary of a run: found, read while it is still being written, and summed up.

A CSV with a header. `event` says what a row is: `step` (one logging interval: train_* and lr), `epoch` (means
of the epoch, and the validation), `resume` (the run went on from that step). Epochs count from 1, steps over
the whole run.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils import UserError

LOG_NAME = "loss_log.txt"
COLUMNS = (
    *("event", "epoch", "step", "seconds", "lr"),
    *("train_loss", "train_perplexity", "train_top5", "val_loss", "val_perplexity", "val_top5"),
    *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr"),
    *("train_reward", "train_entropy", "train_actor_loss", "train_critic_loss"),
)
MEASURES = {"val_loss": ".3f", "val_perplexity": ".2f", "val_top5": ".1%", "BLEU-4": ".3f", "CIDEr": ".3f"}
LOWER_IS_BETTER = {"train_loss", "val_loss", "train_perplexity", "val_perplexity"}


def find_log(run: Path) -> Path:
    """The log of `run`, which is a run folder or the log itself. Raises UserError where there is none."""
    log = run / LOG_NAME if run.is_dir() else run
    if not log.is_file():
        missing = f"no {LOG_NAME} in {run}" if run.is_dir() else f"no such run: {run}"
        raise UserError(f"{missing}; pass a run folder such as runs/NAME, or a {LOG_NAME}")
    return log


def newest_log(folder: Path) -> Path:
    """The log written to most recently among the runs in `folder`. Raises UserError where there is none."""
    logs = list(folder.glob(f"**/{LOG_NAME}"))
    if not logs:
        raise UserError(f"no runs in {folder.resolve()}; train one with train.py, or pass a run folder")
    return max(logs, key=lambda log: log.stat().st_mtime)


def read_log(log: Path) -> pd.DataFrame:
    """All of COLUMNS, one row per event, numbers as floats, NaN where the log says nothing.

    A last line without its newline is still being written and is left out; so are the steps that a resumed
    run does over again. Raises UserError where the file is unreadable or has no rows yet.
    """
    try:
        lines = log.read_text(encoding="utf-8-sig", errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {log}: {error.strerror}") from None
    whole = [line for line in lines if line.endswith("\n") and line.strip("\n\0 ")]
    if not whole or not {"event", "epoch", "step"} <= set(whole[0].strip().split(",")):
        what = f"does not begin with the header {','.join(COLUMNS[:3])},…" if whole else "is empty"
        raise UserError(f"{log} {what}; pass the {LOG_NAME} that train.py writes")
    # Nothing here is quoted (3), and a surplus column is no index, which would be pandas' own guess.
    table = pd.read_csv(
        io.StringIO("".join(whole)), dtype=str, index_col=False, on_bad_lines="skip", quoting=3
    )
    table = table.reindex(columns=list(COLUMNS))
    numbers = list(COLUMNS[1:])
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    table = table[
        table["event"].isin(["step", "epoch", "resume"]) & table[["epoch", "step"]].notna().all(axis=1)
    ]
    table = _without_lost_steps(table.reset_index(drop=True))
    if not table["event"].isin(["step", "epoch"]).any():
        raise UserError(f"{log} has no rows yet; the first comes after train.log_every steps")
    return table


def _without_lost_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out what a stopped run did after the checkpoint that it was resumed from: it was done again."""
    kept = pd.Series(True, index=table.index)
    for row in table.index[table["event"] == "resume"]:
        kept &= (table.index >= row) | (table["step"] <= table.at[row, "step"])
    return table[kept].reset_index(drop=True)


def best(table: pd.DataFrame, column: str) -> tuple[float, int] | None:
    """The best value of `column` over the epochs and its epoch; None where no epoch has one."""
    values = table.loc[table["event"] == "epoch"].set_index("epoch")[column]
    values = values[values.map(math.isfinite)]
    if values.empty:
        return None
    epoch = values.idxmin() if column in LOWER_IS_BETTER else values.idxmax()
    return float(values.min() if column in LOWER_IS_BETTER else values.max()), int(epoch)


def best_text(table: pd.DataFrame, column: str) -> str | None:
    """The best value of one of MEASURES as a person writes it, and its epoch: `66.2% in epoch 8`; or None."""
    found = best(table, column)
    return f"{found[0]:{MEASURES[column]}} in epoch {found[1]}" if found else None


def rate_changes(table: pd.DataFrame) -> pd.Series:
    """True in the last row before a learning rate that has stood still becomes another, as after a plateau.

    What a schedule changes at every step, such as a cosine, is a curve and no event.
    """
    rows = table[table["lr"].notna()].drop_duplicates("step", keep="last")
    rates = rows["lr"]
    ends = (rates == rates.shift(1)) & (rates != rates.shift(-1)) & rates.shift(-1).notna()
    return ends.reindex(table.index, fill_value=False)


def run_names(logs: Sequence[Path]) -> list[str]:
    """A name for each log: its folder's, with as many parents as it takes to tell the runs apart."""
    paths = [log.resolve() for log in logs]
    paths = [path.parent if path.name == LOG_NAME else path for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names
