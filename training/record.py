"""What a run records for people: loss_log.txt and its curves, samples.png, and TensorBoard's files."""

from startup import one_line

import contextlib
import time
from collections.abc import Iterator, Sequence

from config import Config
from files import cannot_write
from reports.curves import draw_curves
from training.averages import Averages
from training.folder import LOG
from training.loss_log import LossLog
from training.samples import Samples
from training.state import TrainingState
from training.tensorboard import Board
from utils import UserError


class Record:
    """The log and the samples of a run so far; `seconds` of training are counted across resumes."""

    def __init__(self, config: Config, figures: Sequence[str], samples: Samples, writes: bool = True):
        """`figures`: what the objective reports; `writes`: False in all processes but the main one."""
        self.writes = writes
        self.folder, self.with_board = config.run_folder, config.run.tensorboard
        self.log = LossLog(self.folder / LOG, figures)
        self.samples = samples
        self.board: Board | None = None
        self.seconds_before, self.started = 0.0, time.monotonic()

    def open(self, steps: int) -> None:
        """Write the log of the `steps` so far, and draw what an interrupted run did not get to draw."""
        self.log.write()
        if self.with_board and not self.board:
            try:
                self.board = Board(self.folder, steps)
            except OSError as error:
                raise cannot_write(self.folder, error) from None
        if self.samples.history:
            self.draw(steps)

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def add(self, event: str, epoch: int, step: int, lr: float, figures: dict[str, float]) -> None:
        """Write a row to loss_log.txt, and to TensorBoard if run.tensorboard is set."""
        if not self.writes:
            return
        row = {
            "event": event,
            "epoch": epoch,
            "step": step,
            "seconds": round(self.seconds(), 1),
            "lr": lr,
            **figures,
        }
        self.log.add(**row)
        if self.board:
            with _only_warning():
                self.board.add(row)

    def mark(self, event: str, epoch: int, step: int) -> None:
        """Add a row without figures, which `open` writes."""
        self.log.history.append({"event": event, "epoch": epoch, "step": step, "skipped": 0})

    def draw(self, step: int) -> None:
        """Draw loss_curve.png and samples.png. A figure that cannot be drawn is not worth ending a run."""
        if not self.writes:
            return
        with _only_warning():
            draw_curves([self.log.path], self.folder / "loss_curve.png")
        with _only_warning():
            sheet = self.samples.draw(self.folder / "samples.png")
            if self.board:
                self.board.add_samples(sheet, step)

    def state_dict(self) -> dict:
        return {
            "seconds": self.seconds(),
            "history": self.log.history,
            "samples": self.samples.history,
        }

    def load_state(self, state: TrainingState) -> None:
        self.seconds_before, self.started = state.seconds, time.monotonic()
        self.log.history = list(state.history)
        # Checkpoints of earlier versions may be of other validation images.
        of_these = [row for row in state.samples if set(self.samples.names) <= row.captions.keys()]
        self.samples.history = [row.model_dump() for row in of_these]


def means(averages: Averages) -> tuple[str, dict[str, float]]:
    """Running means as text, and as columns of the log."""
    figures = {} if averages.is_empty else averages.read()
    text = averages.text(figures) if figures else "no step with a finite loss"
    return text, {"skipped": averages.skipped, **{f"train_{key}": value for key, value in figures.items()}}


@contextlib.contextmanager
def _only_warning() -> Iterator[None]:
    """Print an error as a warning."""
    try:
        yield
    except (UserError, OSError) as error:
        print(one_line(f"warning: {error}"), flush=True)
