"""Show the model of a configuration: layers, shapes, parameters, multiply-adds, and a figure of it.

python -m models                                       the main experiment
python -m models --config configs/flickr8k_lstm.yaml   another one
python -m models encoder.name=resnet152                with overrides

No weights are needed, and no data: without a vocabulary file a number of words is assumed, and said.
"""

# A script, though it lies here for the sake of its name: nothing in models/ imports it.
import argparse
from pathlib import Path

from config import Config, config_parser, load_config
from data.transforms import transform_for
from data.vocab import Vocabulary
from models.model import build_model
from models.summary import Row, Summary, summarise, total
from reports.architecture import draw_architecture, short
from utils import UserError, run_script

ASSUMED_WORDS = 10_000  # about COCO's words seen five times or more; Flickr8k has a quarter of them


def parse_arguments() -> argparse.Namespace:
    parser = config_parser(__doc__, ("data", "encoder", "decoder"))
    parser.prog = "python -m models"
    parser.add_argument(
        "--words", type=int, metavar="N",
        help="size of the vocabulary (that of vocab.json, in the run's folder or beside the captions)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="the figure: png, svg or pdf (outputs/model.png and outputs/model.svg)",
    )  # fmt: skip
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    config = load_config(args.config, args.overrides)
    words = args.words if args.words is not None else find_words(config)
    if words < 5:
        raise UserError(f"--words {words}: a vocabulary has four special tokens and at least one word")
    size = transform_for(config.encoder.name, config.encoder.weights, config.encoder.image_size).size
    summary = summarise(build_model(config, words, weights="none"), size)
    print(table(summary, config))
    for output in [args.output] if args.output else [Path("outputs/model.png"), Path("outputs/model.svg")]:
        draw_architecture(summary, config, words, size, output)
        print(f"wrote {output}")


def find_words(config: Config) -> int:
    """The size of the run's vocabulary, or of that beside the captions; if there is none, what is assumed."""
    for path in (config.run_folder / "vocab.json", config.data.captions[0].parent / "vocab.json"):
        if path.exists():
            words = len(Vocabulary.load(path))
            print(f"{words:,} words: {path}")
            return words
    print(f"{ASSUMED_WORDS:,} words assumed: there is no vocab.json yet; --words N sets another number")
    return ASSUMED_WORDS


def table(summary: Summary, config: Config) -> str:
    """The layers under headings, and the sums."""
    lines = [["", "", "gives", "parameters", "trained", "multiply-adds"]]
    parts = [
        (f"{config.encoder.name}, once per image", summary.encoder),
        (f"{config.decoder.kind} decoder, once per image", summary.start),
        (f"{config.decoder.kind} decoder, once per word", summary.step),
    ]
    for title, rows in parts:
        lines += [[title], *([f"  {short_name(row)}", row.kind, *numbers(row)] for row in rows)]
        sums = [total(rows, what) for what in ("parameters", "trained", "multiply_adds")]
        lines.append(["  together", "", "", *map(count, sums)])
    widths = [max(len(line[i]) for line in lines if len(line) > i > 0) if i else 0 for i in range(6)]
    widths[0] = max(len(line[0]) for line in lines if len(line) > 1)
    text = ["  ".join(fit(cell, i, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]
    frozen = summary.parameters - summary.trained
    return "\n".join(
        [
            *text,
            "",
            f"{summary.parameters:,} parameters: {summary.trained:,} trained, {frozen:,} frozen",
            f"{short(summary.per_image)} multiply-adds per image and {short(summary.per_word)} per word "
            "(of convolutions and matrix products; a beam of K takes K words at a time)",
        ]
    )


def short_name(row: Row) -> str:
    return row.name.removeprefix("encoder.backbone.").removeprefix("decoder.")


def numbers(row: Row) -> list[str]:
    shape = " x ".join(map(str, row.shape))
    return [shape, *map(count, (row.parameters, row.trained, row.multiply_adds))]


def count(number: int) -> str:
    return f"{number:,}" if number else "-"


def fit(cell: str, column: int, width: int) -> str:
    """Words to the left, numbers to the right."""
    return cell.ljust(width) if column < 3 else cell.rjust(width)


if __name__ == "__main__":
    run_script(main)
