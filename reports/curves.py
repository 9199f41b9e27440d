"""The course of training, of one run or several, on one sheet: loss, accuracy, scores, learning rate."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from files import replacing
from reports.lettering import GREY, INK
from reports.loss_log import best, best_text, find_log, rate_changes, read_log, run_names
from utils import UserError

# title -> training column, validation column ("" where there is none)
PANELS = {
    "Loss": ("train_loss", "val_loss"),
    "Perplexity": ("train_perplexity", "val_perplexity"),
    "Top-5 accuracy": ("train_top5", "val_top5"),
    "Reward": ("train_reward", ""),
    "Entropy": ("train_entropy", ""),
    "Actor loss": ("train_actor_loss", ""),
    "Critic loss": ("train_critic_loss", ""),
    "BLEU-4": ("", "BLEU-4"),
    "CIDEr": ("", "CIDEr"),
    "Learning rate": ("lr", ""),
}
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
# Vertical lines: stroke -> what it means, and the rows of a log that have one.
MARKS = {
    ":": ("resumed", lambda table: table["event"] == "resume"),
    (0, (6, 2, 1, 2)): ("learning rate changed", rate_changes),
}
STAR = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "linestyle": "none"}


def draw_curves(runs: Sequence[Path], output: Path) -> None:
    """Draw `runs` (run folders or loss_log.txt files) on one sheet: png, svg or pdf, as `output` ends.

    One panel per measure that any of the runs has. Training is dashed (its single steps pale), validation
    solid, the best epoch starred. Raises UserError where a log cannot be read or the sheet not be written.
    """
    logs = [find_log(Path(run)) for run in runs]
    tables = [read_log(log) for log in logs]
    names, output = run_names(logs), Path(output)
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw {output}: the name must end in .png, .svg or .pdf")

    colours = COLOURS if len(logs) <= len(COLOURS) else colormaps["turbo"](np.linspace(0, 1, len(logs)))
    everything = pd.concat(tables)
    panels = {title: columns for title, columns in PANELS.items() if _has_any(everything, columns)}
    if not panels:
        raise UserError(f"{logs[0]} has no numbers to draw yet; the first come after train.log_every steps")
    columns_on_sheet = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns_on_sheet)
    size = (max(9.2, 4.6 * columns_on_sheet), 3.2 * rows + 0.9)  # inches; the legend needs the 9.2
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    axes = list(figure.subplots(rows, columns_on_sheet, squeeze=False).flat)
    by_epoch = all((table["event"] == "epoch").any() for table in tables)

    for axis, (title, columns) in zip(axes, panels.items(), strict=False):
        for number, table in enumerate(tables):
            x = _epochs(table) if by_epoch else table["step"]
            _draw_run(axis, table, x, columns, colours[number], alone=len(tables) == 1)
        _dress(axis, title, "epoch" if by_epoch else "step", tables)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    marked = [text for text, rows in MARKS.values() if any(rows(table).any() for table in tables)]
    _legend(figure, names, colours, marked)

    try:
        with replacing(output) as temporary:
            figure.savefig(temporary, format=output.suffix[1:].lower())
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None


def _has_any(table: pd.DataFrame, columns: tuple[str, str]) -> bool:
    return any(np.isfinite(table[column]).any() for column in columns if column)


def _epochs(table: pd.DataFrame) -> pd.Series:
    """Epochs done at each row: 0 at step 0, `e` at the end of epoch e, in proportion between."""
    ends = table[table["event"] == "epoch"].drop_duplicates("step", keep="last").sort_values("step")
    steps, epochs = np.r_[0, ends["step"]], np.r_[0, ends["epoch"]]
    done = np.interp(table["step"], steps, epochs)
    # The epoch that is going on is as long as the last one was.
    beyond = np.maximum(table["step"] - steps[-1], 0)
    return done + beyond * (epochs[-1] - epochs[-2]) / max(steps[-1] - steps[-2], 1)


def _draw_run(
    axis: Axes, table: pd.DataFrame, x: pd.Series, columns: tuple[str, str], colour: str, alone: bool
) -> None:
    """One run's curves in one panel."""
    train, val = columns
    is_epoch = table["event"] == "epoch"
    train_colour = GREY if alone and val else colour
    if train:
        steps = (table["event"] == "step") & np.isfinite(table[train])
        if val:
            done = is_epoch & np.isfinite(table[train])
            pale = 0.35 if done.any() else 0.9
            axis.plot(x[steps], table.loc[steps, train], color=train_colour, alpha=pale, linewidth=0.8)
            # The mean of an epoch belongs to its middle, the validation to its end.
            middle = (x[done] + x[done].shift(fill_value=0)) / 2
            axis.plot(middle, table.loc[done, train], color=train_colour, linewidth=1.4, dashes=(4, 2))
        else:
            steps = steps if steps.any() else is_epoch
            axis.plot(x[steps], table.loc[steps, train], color=colour, linewidth=1.4)
    if val:
        done = is_epoch & np.isfinite(table[val])
        axis.plot(x[done], table.loc[done, val], color=colour, linewidth=2, marker="o", markersize=2.5)
        _star(axis, table, x, val, colour)
    for stroke, (_, rows) in MARKS.items():
        for at in x[rows(table)]:
            axis.axvline(at, color=colour, alpha=0.5 if alone else 0.25, linewidth=1, linestyle=stroke)


def _star(axis: Axes, table: pd.DataFrame, x: pd.Series, column: str, colour: str) -> None:
    """A star on the best epoch."""
    found = best(table, column)
    if found is not None:
        row = table.index[(table["event"] == "epoch") & (table["epoch"] == found[1])][-1]
        axis.plot(x[row], found[0], color=colour, zorder=5, **STAR)


def _dress(axis: Axes, title: str, unit: str, tables: list[pd.DataFrame]) -> None:
    """Titles, scales and grid of one panel, once its curves are drawn."""
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    val = PANELS[title][1]
    if len(tables) == 1 and val and (text := best_text(tables[0], val)):
        axis.set_title(text, loc="right", fontsize=9, color=GREY)
    axis.set_xlabel(unit, color=GREY, fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlim(left=0)
    if title in ("Loss", "Perplexity"):
        _look_past_the_start(axis, pd.concat(tables), PANELS[title])
    elif title == "Top-5 accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    elif title == "Learning rate":
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(_short))
    axis.grid(color="#e6e8eb", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#c4c8ce")
    axis.tick_params(colors=GREY, labelsize=9)


def _short(rate: float, _position: int) -> str:
    """3e-4 rather than 0.0003 or 3e-04."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate else "0"


def _look_past_the_start(axis: Axes, table: pd.DataFrame, columns: tuple[str, str]) -> None:
    """Let the first epoch's training run out of the panel: its perplexity would press the rest flat."""
    train, val = columns
    epochs = table[table["event"] == "epoch"]
    shown = np.r_[epochs[val], epochs.loc[epochs["epoch"] > 1, train]]
    shown = shown[np.isfinite(shown)]
    steps = table.loc[(table["event"] == "step") & (table["epoch"] > 1), train].dropna()
    if len(shown) > 2:
        bottom, top = min(shown.min(), steps.min()) if len(steps) else shown.min(), shown.max()
        room = 0.06 * (top - bottom) or 1
        axis.set_ylim(bottom - room, top + room)


def _legend(figure: Figure, names: list[str], colours: Sequence, marked: list[str]) -> None:
    """Above the panels: the runs by name, and what the strokes mean."""
    train = Line2D([], [], color=GREY, linewidth=1.4, dashes=(4, 2), label="training")
    val = Line2D([], [], color=colours[0] if len(names) == 1 else GREY, linewidth=2, label="validation")
    star = Line2D([], [], color=val.get_color(), label="best epoch", **STAR)
    marks = [
        Line2D([], [], color=GREY, linewidth=1, linestyle=stroke, label=text)
        for stroke, (text, _) in MARKS.items()
        if text in marked
    ]
    if len(names) == 1:
        # A name is a name: `$` and `_` in it are no mathematics.
        style = {"fontsize": min(14, 800 / len(names[0])), "fontweight": "bold", "color": INK}
        figure.suptitle(names[0], x=0.01, ha="left", parse_math=False, **style)
    else:
        pairs = zip(names, colours, strict=False)
        runs = [Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in pairs]
        _legend_at(figure, "outside upper left", runs, 4)
    _legend_at(figure, "outside upper right", [train, val, star, *marks], 5 if len(names) == 1 else 3)


def _legend_at(figure: Figure, place: str, handles: list[Line2D], columns: int) -> None:
    legend = figure.legend(handles=handles, loc=place, ncols=min(len(handles), columns), frameon=False)
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK, fontsize=9)
