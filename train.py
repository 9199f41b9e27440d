"""Train a captioner: python train.py [--config FILE] [--resume [RUN]] [section.key=value …]"""

import argparse
from pathlib import Path

import pandas as pd

from compute import Compute, seed_everything
from config import Config
from config_reading import config_parser, load_config
from data.captions import read_table, references
from data.sample import draw_if_missing
from training.datasets import make_datasets
from training.run import Run
from training.start import check, make_captioner, resumed, with_model_of
from utils import UserError, run_script


def main() -> int:
    config, checkpoint = _configure(_parse_arguments())
    check(config)
    table = find_data(config)
    seed_everything(config.run.seed, config.run.deterministic)
    compute = Compute.choose(config.run.device, config.run.precision)
    captioner = make_captioner(config, checkpoint, table, compute)
    with compute.explain_memory("lower train.batch_size or data.captions_per_image"):
        train_set, val_set = make_datasets(captioner, table, ("train", "val"))
        run = Run(captioner, train_set, val_set, references(table, "val"))
        if checkpoint and "training" in checkpoint:
            run.load(checkpoint["training"])
        return run.train()


def _parse_arguments() -> argparse.Namespace:
    parser = config_parser(
        "Train a captioner.", ("run", "data", "encoder", "features", "decoder", "train", "rl", "search")
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue a stopped run; RUN is its folder (default: the folder of the configuration's run)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start again in the folder of an existing run"
    )
    args = parser.parse_intermixed_args()
    if args.resume and "=" in args.resume:  # `--resume train.epochs=20`: no RUN, only an override
        args.overrides, args.resume = [args.resume, *args.overrides], ""
    return args


def _configure(args: argparse.Namespace) -> tuple[Config, dict | None]:
    """The configuration of the run, and the checkpoint that it starts from, if any."""
    if args.resume:
        return resumed(Path(args.resume), args.overrides)
    config = load_config(args.config, args.overrides)
    if args.resume is not None:
        return resumed(config.run_folder, args.overrides)
    if (config.run_folder / "checkpoints.pth").exists() and not args.overwrite:
        raise UserError(
            f"{config.run_folder} already contains a run; continue it with --resume, start again with "
            "--overwrite, or choose another name with run.name=NAME"
        )
    if config.train.init_from:
        return with_model_of(config, config.train.init_from)
    return config, None


def find_data(config: Config) -> pd.DataFrame:
    """The captions table, after a check of its images; draws the sample if the configuration names it."""
    data = config.data
    draw_if_missing(data.captions)
    if absent := [path for path in data.captions if not path.exists()]:
        raise UserError(
            f"no captions file at {absent[0].absolute()}; download Flickr8k (for example from Kaggle), "
            f"put its captions there and its images into {data.images.absolute()}/, or try the built-in "
            "sample: python train.py --config configs/sample.yaml"
        )
    return read_table(data)


if __name__ == "__main__":
    run_script(main)
