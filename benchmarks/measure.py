"""How the benchmarks measure: alternatives in turn, so that noise hits all alike; medians and ratios."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.workload import Settings

_MOST = 30  # rounds


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    subject: str  # training, search, …
    name: str
    shape: str
    precision: str  # empty where nothing is computed in floating point
    median: float
    spread: float  # interquartile range / median
    unit: str
    ratios: Mapping[str, float]  # its speed divided by that of another: {"reference": 6.1, "bound": 0.4}

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """By what the rows of two runs are matched."""
        return self.subject, self.name, self.shape, self.precision, self.unit


@dataclass(frozen=True, eq=False)
class Alternative:
    """One of several ways to do the same work."""

    name: str
    run: Callable[[], object]  # does the work once; see `seconds_in_turn`
    amount: float  # units of work in one call, such as its tokens
    precision: str = ""
    against: Mapping[str, "Alternative"] = field(default_factory=dict)  # column of the table -> other way


def seconds_in_turn(runs: Sequence[Callable[[], object]], settings: Settings) -> list[list[float]]:
    """The seconds of each function, a list per round: one call of each, one after the other.

    A function that returns a float has measured its seconds itself. Rounds are repeated for about
    `settings.seconds`, but `settings.rounds` times or more. The first one warms up; it is left out if there
    are enough without it.
    """
    rounds: list[list[float]] = []
    end = time.perf_counter() + settings.seconds
    while len(rounds) < settings.rounds or (time.perf_counter() < end and len(rounds) < _MOST):
        rounds.append([_seconds(run, settings.compute.device) for run in runs])
    return rounds[1:] if len(rounds) > settings.rounds else rounds


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    measured = run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return measured if isinstance(measured, float) else time.perf_counter() - began


def divided(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a / b for each round."""
    return [x / y for x, y in zip(a, b, strict=True)]


def row(
    subject: str,
    name: str,
    shape: str,
    values: Sequence[float],
    unit: str,
    precision: str = "",
    ratios: Mapping[str, Sequence[float]] | None = None,
) -> Row:
    """The row of the values of all rounds, and of the ratios of all rounds."""
    median = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    medians = {column: statistics.median(each) for column, each in (ratios or {}).items()}
    return Row(subject, name, shape, precision, median, (high - low) / median, unit, medians)


def compare(
    subject: str,
    shape: str,
    unit: str,
    alternatives: Sequence[Alternative],
    settings: Settings,
) -> list[Row]:
    """Measure `unit`/s of the alternatives in turn; returns a row for each with others to compare with."""
    rounds = seconds_in_turn([each.run for each in alternatives], settings)
    rates = [[each.amount / s for s in own] for each, *own in zip(alternatives, *rounds, strict=True)]
    of = dict(zip(alternatives, rates, strict=True))
    return [
        row(subject, each.name, shape, of[each], f"{unit}/s", each.precision, {
            column: divided(of[each], of[other]) for column, other in each.against.items()
        })
        for each in alternatives
        if each.against
    ]  # fmt: skip
