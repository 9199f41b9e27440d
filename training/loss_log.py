"""loss_log.txt: a CSV with one row per logging interval and one per epoch."""

from collections.abc import Sequence
from pathlib import Path

from files import cannot_write, write_text
from reports.loss_log import COLUMNS


class LossLog:
    """Appends rows to the file and keeps them as `history`, which is saved in the checkpoint.

    A resumed run rewrites the file from the history in the checkpoint, because it repeats the steps after
    that checkpoint and logs them again.
    """

    def __init__(self, path: Path, figures: Sequence[str]):
        """`figures`: what the objective reports; each has a column `train_…`."""
        self.path, self.history = path, list[dict]()
        self.columns = list(dict.fromkeys([*COLUMNS, *(f"train_{figure}" for figure in figures)]))

    def write(self) -> None:
        """Replace the file by the header and the history."""
        write_text(self.path, "\n".join([",".join(self.columns), *map(self.line, self.history)]) + "\n")

    def add(self, **row) -> None:
        """Append a row: values by column; the others stay empty. Raises UserError if it cannot be written."""
        if unknown := set(row) - set(self.columns):
            raise ValueError(f"loss_log.txt has no column {sorted(unknown)}")
        self.history.append(row)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.line(row) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def line(self, row: dict) -> str:
        values = (row.get(column, "") for column in self.columns)
        return ",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)
