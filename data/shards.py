"""Write the images and captions of any captions format as shards in WebDataset's form.

python -m data.shards data.captions=captions.csv data.images=images --output shards

A shard is a tar file in which the files of an image follow one another: dog.jpg, and dog.json with its name,
its captions and, if the captions file has one, its id. The name of a shard begins with its split. Images of
train are in random order, so that a few shards are a fair sample of all.
"""

from startup import importing, run_script

import argparse
from pathlib import Path

from config_reading import config_parser, load_config
from utils import UserError


def main() -> None:
    args = _parse_arguments()
    config = load_config(args.config, args.overrides)
    with importing():
        from data.shard_writer import write_shards
    write_shards(config.data, args.output, args.images_per_shard)


def _parse_arguments() -> argparse.Namespace:
    parser = config_parser(__doc__ or "", ("data",))
    parser.add_argument(
        "--output", type=Path, default=Path("shards"), metavar="FOLDER",
        help="folder to write to (default: shards)",
    )  # fmt: skip
    parser.add_argument(
        "--images-per-shard", type=int, default=5000, metavar="N", help="images in each shard (default: 5000)"
    )
    args = parser.parse_intermixed_args()
    if args.images_per_shard < 1:
        raise UserError(f"--images-per-shard {args.images_per_shard}: a shard has 1 image or more")
    return args


if __name__ == "__main__":
    run_script(main)
