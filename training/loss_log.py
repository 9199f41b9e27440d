"""loss_log.txt: a CSV with one row per logging interval and one per epoch."""

from pathlib import Path

from files import replacing
from reports.loss_log import COLUMNS


class LossLog:
    """Appends rows to the file and keeps them as `history`, which goes into the checkpoint.

    A resumed run writes the file anew from the checkpoint's history: rows that were logged after the
    checkpoint will be logged again.
    """

    def __init__(self, path: Path, history: list[dict] | None = None):
        self.path, self.history = path, list(history or [])
        with replacing(path) as temporary:
            temporary.write_text("\n".join([",".join(COLUMNS), *map(line, self.history)]) + "\n", "utf-8")

    def add(self, **row) -> None:
        """Values by column; a column that is not given stays empty."""
        unknown = set(row) - set(COLUMNS)
        if unknown:
            raise ValueError(f"loss_log.txt has no column {sorted(unknown)}")
        self.history.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line(row) + "\n")


def line(row: dict) -> str:
    values = (row.get(column, "") for column in COLUMNS)
    return ",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)
