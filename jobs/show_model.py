"""The job of show_model.py: the model of a configuration as a table and a figure."""

import argparse
from pathlib import Path

from config import Config
from data.transforms import transform_for
from data.vocab import Vocabulary, vocabulary_path
from models.decoder import Decoder
from models.diagram import Diagram, default_diagram
from models.model import build_model
from models.summary import Row, Summary, summarise, total
from reports.architecture import draw_architecture, short
from utils import UserError

ASSUMED_VOCAB_SIZE = 10_000  # about COCO's with data.min_freq=5; Flickr8k's is a quarter of it


def show_model(config: Config, args: argparse.Namespace) -> None:
    """Print the layers, and draw the figure."""
    vocab_size = _find_vocab_size(config) if args.vocab_size is None else args.vocab_size
    if vocab_size < 5:
        raise UserError(
            f"--vocab-size {vocab_size}: a vocabulary has four special tokens and at least one word"
        )
    image_size = transform_for(config.encoder).size
    model = build_model(config, vocab_size, weights="none")
    summary = summarise(model, image_size)
    print(_table(summary, config))
    diagram = _diagram(config, model.decoder, summary)
    for output in [args.output] if args.output else [Path("outputs/model.png"), Path("outputs/model.svg")]:
        draw_architecture(summary, diagram, config.encoder.name, output)
        print(f"wrote {output}")


def _find_vocab_size(config: Config) -> int:
    """The size of the run's vocabulary, or of the one beside the captions, or an assumed size."""
    for path in (config.run_folder / "vocab.json", vocabulary_path(config.data)):
        if path.exists():
            vocab_size = len(Vocabulary.load(path))
            print(f"{vocab_size:,} words: {path}")
            return vocab_size
    print(f"{ASSUMED_VOCAB_SIZE:,} words assumed: no vocab.json found; --vocab-size N sets another number")
    return ASSUMED_VOCAB_SIZE


def _diagram(config: Config, decoder: Decoder, summary: Summary) -> Diagram:
    """The decoder's diagram, or the default one."""
    if own := decoder.diagram(config.decoder, summary.grid[0]):
        return own
    start, step = ([_short_name(row) for row in rows] for rows in (summary.start, summary.step))
    return default_diagram(f"the decoder {config.decoder.kind}", start, step)


def _table(summary: Summary, config: Config) -> str:
    """The layers under headings, with totals."""
    lines = [["", "", "output", "parameters", "trained", "multiply-adds"]]
    parts = [
        (f"{config.encoder.name}, once per image", summary.encoder),
        (f"{config.decoder.kind} decoder, once per image", summary.start),
        (f"{config.decoder.kind} decoder, once per word", summary.step),
    ]
    for title, rows in parts:
        lines += [[title], *([f"  {_short_name(row)}", row.kind, *_numbers(row)] for row in rows)]
        sums = [total(rows, what) for what in ("parameters", "trained", "multiply_adds")]
        lines.append(["  total", "", "", *map(_count, sums)])
    widths = [max(len(line[i]) for line in lines if len(line) > i > 0) if i else 0 for i in range(6)]
    widths[0] = max(len(line[0]) for line in lines if len(line) > 1)
    text = ["  ".join(_pad(cell, i, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]
    frozen = summary.parameters - summary.trained
    cells, channels = summary.grid
    return "\n".join(
        [
            *text,
            "",
            f"grid: {cells:,} cells of {channels:,} channels, from {', '.join(config.encoder.layers)}",
            f"{summary.parameters:,} parameters: {summary.trained:,} trained, {frozen:,} frozen",
            f"{short(summary.per_image)} multiply-adds per image and {short(summary.per_word)} per word "
            "(convolutions and matrix products; a beam of K computes K words per step)",
        ]
    )


def _short_name(row: Row) -> str:
    return row.name.removeprefix("encoder.backbone.").removeprefix("decoder.")


def _numbers(row: Row) -> list[str]:
    shape = " x ".join(map(str, row.shape))
    return [shape, *map(_count, (row.parameters, row.trained, row.multiply_adds))]


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _pad(cell: str, column: int, width: int) -> str:
    """Names and shapes on the left of their columns, numbers on the right."""
    return cell.ljust(width) if column < 3 else cell.rjust(width)
