"""Show the model of a configuration: layers, shapes, parameters, multiply-adds, and a figure of it.

python show_model.py                                       the main experiment
python show_model.py --config configs/flickr8k_lstm.yaml   another configuration
python show_model.py encoder.name=resnet152                with overrides

It needs neither weights nor data. Without a vocabulary file it assumes a vocabulary size and prints it.
"""

from startup import importing, run_script

import argparse
from pathlib import Path

from config_reading import config_parser, load_config


def main() -> None:
    args = _parse_arguments()
    config = load_config(args.config, args.overrides)
    with importing():
        from jobs.show_model import show_model
    show_model(config, args)


def _parse_arguments() -> argparse.Namespace:
    parser = config_parser(__doc__, ("data", "encoder", "decoder"))
    parser.add_argument(
        "--vocab-size", type=int, metavar="N",
        help="vocabulary size (default: that of vocab.json in the run's folder or beside the captions)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="figure: png, svg or pdf (default: outputs/model.png and outputs/model.svg)",
    )  # fmt: skip
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_script(main)
