"""The table of the benchmarks, the same as JSON, what moved between two runs, and the command line."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row
from benchmarks.workload import Settings
from compute import Compute
from files import write_text
from utils import UserError

# A benchmark returns its rows; its docstring says what they are compared with.
Benchmark = Callable[[Settings], list[Row]]


def header(compute: Compute) -> dict[str, Any]:
    """What the numbers depend on. It names no path and no machine."""
    precision = str(compute.precision).removeprefix("torch.")
    found = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instructions": _instructions(),
        "precision": precision,
    }
    if compute.device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(compute.device)
    elif compute.device.type != "cpu":
        found["device"] = compute.device.type
    return found


def _instructions() -> str:
    """The instruction set of the CPU as far as it matters to torch."""
    found = [torch.backends.cpu.get_cpu_capability()]
    for name, query in (("bfloat16", "_is_avx512_bf16_supported"), ("AMX", "_is_amx_tile_supported")):
        if getattr(torch.cpu, query, lambda: False)():
            found.append(name)
    return " + ".join(found)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown. A ratio is how many times as fast a row is as another of the same run."""
    columns = list(dict.fromkeys(column for row in rows for column in row.ratios))
    columns.sort(key=("reference", "tutorial", "bound").index)
    titles = {"reference": "x reference", "tutorial": "x tutorial", "bound": "of bound"}
    cells = [["", "name", "shape", "precision", "median", "spread", "unit", *map(titles.get, columns)]]
    for row in rows:
        ratios = [_ratio(column, row.ratios.get(column)) for column in columns]
        median, spread = _number(row.median), f"{row.spread:.0%}"
        cells.append([row.subject, row.name, row.shape, row.precision, median, spread, row.unit, *ratios])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [title in ("median", "spread", *titles.values()) for title in cells[0]]
    rules = ["-" * (width - 1) + ("-:"[right]) for width, right in zip(widths, numeric, strict=True)]
    form = [f"{'>' if right else '<'}{width}" for width, right in zip(widths, numeric, strict=True)]
    lines = [[format(text, each) for text, each in zip(line, form, strict=True)] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rules, *lines[1:]])


def _ratio(column: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if column == "bound" else f"{value:.1f}"


def _number(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def moved(before: dict, after: dict) -> str:
    """What differs between two runs, as lines: the headers, then each row's median before and after.

    A row is marked if its medians differ by more than the mean spread of both.
    """
    lines = [
        f"{key}: {before['header'].get(key)} before, {after['header'].get(key)} now"
        for key in {**before["header"], **after["header"]}
        if before["header"].get(key) != after["header"].get(key)
    ]
    old = {row.key: row for row in before["rows"]}
    for row in after["rows"]:
        if earlier := old.pop(row.key, None):
            change = row.median / earlier.median - 1
            mark = " *" if abs(change) > (row.spread + earlier.spread) / 2 else ""
            medians = f"{_number(earlier.median)} -> {_number(row.median)} {row.unit}"
            lines.append(f"{_title(row)}: {medians}, {change:+.0%}{mark}")
        else:
            lines.append(f"{_title(row)}: new")
    lines += [f"{_title(row)}: not measured now" for row in old.values()]
    return "\n".join(lines)


def _title(row: Row) -> str:
    return ", ".join(part for part in (row.subject, row.name, row.shape, row.precision) if part)


def run_benchmarks(benchmarks: Sequence[Benchmark], arguments: Sequence[str] | None = None) -> None:
    """The command line of all benchmarks: measure, print the table, write and compare."""
    measured_rows(benchmarks, arguments)


def measured_rows(benchmarks: Sequence[Benchmark], arguments: Sequence[str] | None = None) -> list[Row]:
    """`run_benchmarks`, for more to be said about the rows."""
    parser = argparse.ArgumentParser(
        description="Measure the speed; prints a table. docs/speed.md explains it."
    )
    parser.add_argument("--device", default="auto", help="run.device (default: auto)")
    parser.add_argument(
        "--seconds", type=float, default=Settings.seconds, metavar="S",
        help="time for each comparison, at least three rounds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="read these images, not drawn ones, for the features"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to a JSON file")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="show what moved since that JSON file")
    args = parser.parse_args(arguments)
    before = _read(args.compare) if args.compare else None
    settings = Settings(Compute.choose(args.device), seconds=args.seconds, image_folder=args.images)
    return measure_and_print(benchmarks, settings, args.json, before)


def measure_and_print(
    benchmarks: Sequence[Benchmark], settings: Settings, path: Path | None = None, before: dict | None = None
) -> list[Row]:
    """Run the benchmarks; `path`: file for the JSON; `before`: that of an earlier run, to compare with."""
    found = header(settings.compute)
    print(", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    rows: list[Row] = []
    for benchmark in benchmarks:
        rows += benchmark(settings)
    print(table(rows))
    if path:
        content = {"header": found, "rows": [asdict(row) for row in rows]}
        write_text(path, json.dumps(content, indent=1) + "\n")
    if before:
        after = {"header": found, "rows": rows}
        print("\nWhat moved (*: by more than the spread):")
        print(moved(before, after))
    return rows


def _read(path: Path) -> dict:
    """What `--json` wrote: the header, and the rows as Row."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"header": dict(content["header"]), "rows": [Row(**values) for values in content["rows"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--compare {path}: not a file that --json wrote ({error}); write a new one"
        ) from None
