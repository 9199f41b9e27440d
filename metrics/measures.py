"""What validation measures after each epoch; `train.monitor` names one of these measures."""

from typing import NamedTuple

from metrics.scores import VALIDATION_METRICS
from utils import UserError, did_you_mean


class Measure(NamedTuple):
    """A number that validation computes after each epoch."""

    name: str  # as in train.monitor
    column: str  # of loss_log.txt
    title: str  # in tables
    higher_is_better: bool
    format: str
    in_curves: bool = True

    def text(self, value: float) -> str:
        """The value with its title, such as `CIDEr 0.552`."""
        return f"{self.title} {value:{self.format}}"

    def is_better(self, value: float, best: float) -> bool:
        """Whether `value` is better than `best`; False if they are equal or one is NaN."""
        return value > best if self.higher_is_better else value < best


# Of the reference captions under teacher forcing.
LOSS = Measure("loss", "val_loss", "validation loss", False, ".3f")
PERPLEXITY = Measure("perplexity", "val_perplexity", "perplexity", False, ".2f")
TOP5 = Measure("top5", "val_top5", "top-5", True, ".1%")
MEASURES = (
    *(LOSS, PERPLEXITY, TOP5),
    # Of the captions that the model generates.
    *(Measure(m.name, m.name, m.name, m.higher_is_better, m.format, m.in_curves) for m in VALIDATION_METRICS),
)


def find_monitor(name: str) -> Measure:
    """The measure that `train.monitor` names. Raises UserError if no measure has that name."""
    measures = {measure.name: measure for measure in MEASURES}
    if name in measures:
        return measures[name]
    hint = did_you_mean(name, measures)
    raise UserError(f"train.monitor={name!r}: choose one of {', '.join(measures)}{hint}")
