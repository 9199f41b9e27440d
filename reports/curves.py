"""Training curves of one or several runs in one figure: loss, accuracy, scores, learning rate."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from files import replacing
from metrics.measures import LOSS, MEASURES, PERPLEXITY, TOP5, Measure
from outputs import OutputFolder
from reports.lettering import GREY, INK
from reports.loss_log import COLUMNS, best, best_text, find_log, rate_changes, read_log, run_names
from utils import UserError


class _Panel(NamedTuple):
    """One panel of the figure: a column of training, a measure of validation, or both."""

    title: str
    train: str = ""
    val: Measure | None = None
    zoomed: bool = False  # whether high values at the start of training may be cut off

    @property
    def columns(self) -> list[str]:
        return [column for column in (self.train, self.val and self.val.column) if column]


_PANELS = (
    _Panel("Loss", "train_loss", LOSS, zoomed=True),
    _Panel("Perplexity", "train_perplexity", PERPLEXITY, zoomed=True),
    _Panel("Top-5 accuracy", "train_top5", TOP5),
    *(_Panel(m.title, val=m) for m in MEASURES if m.in_curves and m not in (LOSS, PERPLEXITY, TOP5)),
    _Panel("Learning rate", "lr"),
)
# The colours of Okabe and Ito, which colour-blind people can tell apart.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
# Vertical lines: line style -> label in the legend, and a function that selects rows of a log for them.
_MARKS: dict[Any, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    ":": ("resumed", lambda table: table["event"] == "resume"),
    "-.": ("next phase", lambda table: table["event"] == "phase"),
    (0, (6, 2, 1, 2)): ("learning rate changed", rate_changes),
}
_STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "linestyle": "none"}


def draw_curves(runs: Sequence[Path], output: Path) -> None:
    """Draw `runs` (run folders or loss_log.txt files) in one figure; `output` ends in .png, .svg or .pdf.

    There is a panel for each measure that any of the runs has. Training is dashed (single steps are pale),
    validation is solid, and a star marks the best epoch. Raises UserError if a log cannot be read or the
    figure cannot be written, or if `output` exists and is neither an earlier figure nor a run's loss_curve.
    """
    logs = [find_log(Path(run)) for run in runs]
    tables = [read_log(log) for log in logs]
    names, output = run_names(logs), Path(output)
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw {output}: the name must end in .png, .svg or .pdf")

    colours = _COLOURS
    if len(logs) > len(_COLOURS):
        colours = list(colormaps["turbo"](np.linspace(0, 1, len(logs))))
    everything = pd.concat(tables)
    tables = [table.reindex(columns=everything.columns) for table in tables]
    panels = [panel for panel in _panels(everything) if np.isfinite(everything[panel.columns]).any(axis=None)]
    if not panels:
        raise UserError(f"{logs[0]} has no numbers to draw yet; the first come after train.log_every steps")
    columns_on_sheet = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns_on_sheet)
    size = (max(9.2, 4.6 * columns_on_sheet), 3.2 * rows + 0.9)  # inches; the legend needs the 9.2
    figure = Figure(figsize=size, dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = list(figure.subplots(rows, columns_on_sheet, squeeze=False).flat)
    by_epoch = all((table["event"] == "epoch").any() for table in tables)

    for axis, panel in zip(axes, panels, strict=False):
        for colour, table in zip(colours, tables, strict=False):
            x = _epochs(table) if by_epoch else table["step"]
            _draw_run(axis, table, x, panel, colour, alone=len(tables) == 1)
        _finish(axis, panel, "epoch" if by_epoch else "step", tables)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    marked = [text for text, rows in _MARKS.values() if any(rows(table).any() for table in tables)]
    _legend(figure, names, colours, marked)

    with _writing(output, logs) as temporary:
        figure.savefig(temporary, format=output.suffix[1:].lower())


def _writing(output: Path, logs: Sequence[Path]) -> AbstractContextManager[Path]:
    """The curves of a run in its own folder belong to it; elsewhere only an earlier figure is replaced."""
    if output.stem == "loss_curve" and output.parent.resolve() in {log.parent.resolve() for log in logs}:
        return replacing(output)
    return OutputFolder(output.parent).writing(output.name)


def _panels(table: pd.DataFrame) -> list[_Panel]:
    """_PANELS, with one for each other figure that an objective reported: `train_reward` is "Reward"."""
    others = [column for column in table.columns if column.startswith("train_") and column not in COLUMNS]
    titles = [column.removeprefix("train_").replace("_", " ").capitalize() for column in others]
    first = next(i for i, panel in enumerate(_PANELS) if not panel.train)
    return [*_PANELS[:first], *map(_Panel, titles, others), *_PANELS[first:]]


def _epochs(table: pd.DataFrame) -> pd.Series:
    """Epochs completed at each row: 0 at step 0, `e` at the end of epoch e, interpolated in between."""
    ends = table[table["event"] == "epoch"].drop_duplicates("step", keep="last").sort_values("step")
    steps, epochs = np.r_[0, ends["step"]], np.r_[0, ends["epoch"]]
    done = np.interp(table["step"], steps, epochs)
    # The current epoch is assumed to be as long as the previous one.
    beyond = np.maximum(table["step"] - steps[-1], 0)
    return done + beyond * (epochs[-1] - epochs[-2]) / max(steps[-1] - steps[-2], 1)


def _draw_run(axis: Axes, table: pd.DataFrame, x: pd.Series, panel: _Panel, colour: str, alone: bool) -> None:
    """Draw the curves of one run in one panel."""
    train, val = panel.train, panel.val
    is_epoch = table["event"] == "epoch"
    train_colour = GREY if alone and val else colour
    if train:
        steps = (table["event"] == "step") & np.isfinite(table[train])
        if val:
            done = is_epoch & np.isfinite(table[train])
            pale = 0.35 if done.any() else 0.9
            axis.plot(x[steps], table.loc[steps, train], color=train_colour, alpha=pale, linewidth=0.8)
            # The mean over an epoch is drawn in the middle of the epoch, the validation at its end.
            middle = (x[done] + x[done].shift(fill_value=0)) / 2
            axis.plot(middle, table.loc[done, train], color=train_colour, linewidth=1.4, dashes=(4, 2))
        else:
            steps = steps if steps.any() else is_epoch
            axis.plot(x[steps], table.loc[steps, train], color=colour, linewidth=1.4)
    if val:
        done = is_epoch & np.isfinite(table[val.column])
        axis.plot(x[done], table.loc[done, val.column], color=colour, linewidth=2, marker="o", markersize=2.5)
        _star(axis, table, x, val, colour)
    for stroke, (_, rows) in _MARKS.items():
        for at in x[rows(table)]:
            axis.axvline(at, color=colour, alpha=0.5 if alone else 0.25, linewidth=1, linestyle=stroke)


def _star(axis: Axes, table: pd.DataFrame, x: pd.Series, measure: Measure, colour: str) -> None:
    """Mark the best epoch with a star."""
    found = best(table, measure)
    if found is not None:
        row = table.index[(table["event"] == "epoch") & (table["epoch"] == found[1])][-1]
        axis.plot(x[row], found[0], color=colour, zorder=5, **_STAR)


def _finish(axis: Axes, panel: _Panel, unit: str, tables: list[pd.DataFrame]) -> None:
    """Add titles, scales and grid lines to a panel with its curves."""
    axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=INK)
    if len(tables) == 1 and panel.val and (text := best_text(tables[0], panel.val)):
        axis.set_title(text, loc="right", fontsize=9, color=GREY)
    axis.set_xlabel(unit, color=GREY, fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlim(left=0)
    if panel.zoomed:
        _zoom_past_the_start(axis, pd.concat(tables), panel)
    if panel.val and panel.val.format.endswith("%"):
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    if panel.train == "lr":
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(_short_rate))
    axis.grid(color="#e6e8eb", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#c4c8ce")
    axis.tick_params(colors=GREY, labelsize=9)


def _short_rate(rate: float, _position: int) -> str:
    """`3e-4` instead of `0.0003` or `3e-04`."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate else "0"


def _zoom_past_the_start(axis: Axes, table: pd.DataFrame, panel: _Panel) -> None:
    """Scale the panel without the training values of the first epoch, which would flatten the rest."""
    train, val = panel.columns
    epochs = table[table["event"] == "epoch"]
    shown = np.r_[epochs[val], epochs.loc[epochs["epoch"] > 1, train]]
    shown = shown[np.isfinite(shown)]
    steps = table.loc[(table["event"] == "step") & (table["epoch"] > 1), train].dropna()
    if len(shown) > 2:
        bottom, top = min(shown.min(), steps.min()) if len(steps) else shown.min(), shown.max()
        room = 0.06 * (top - bottom) or 1
        axis.set_ylim(bottom - room, top + room)


def _legend(figure: Figure, names: list[str], colours: Sequence, marked: list[str]) -> None:
    """Draw the legend above the panels: the names of the runs, and the meaning of the line styles."""
    train = Line2D([], [], color=GREY, linewidth=1.4, dashes=(4, 2), label="training")
    val = Line2D([], [], color=colours[0] if len(names) == 1 else GREY, linewidth=2, label="validation")
    star = Line2D([], [], color=val.get_color(), label="best epoch", **_STAR)
    marks = [
        Line2D([], [], color=GREY, linewidth=1, linestyle=stroke, label=text)
        for stroke, (text, _) in _MARKS.items()
        if text in marked
    ]
    if len(names) == 1:
        # parse_math=False: `$` and `_` in a name are ordinary characters.
        style = {"fontsize": min(14, 800 / len(names[0])), "fontweight": "bold", "color": INK}
        figure.suptitle(names[0], x=0.01, ha="left", parse_math=False, **style)
    else:
        pairs = zip(names, colours, strict=False)
        runs = [Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in pairs]
        _legend_at(figure, "outside upper left", runs, 4)
    _legend_at(figure, "outside upper right", [train, val, star, *marks], 5 if len(names) == 1 else 3)


def _legend_at(
    figure: Figure,
    place: Literal["outside upper left", "outside upper right"],
    handles: list[Line2D],
    columns: int,
) -> None:
    legend = figure.legend(handles=handles, loc=place, ncols=min(len(handles), columns), frameon=False)
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK, fontsize=9)
