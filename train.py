"""Train a captioner: python train.py [--config FILE] [--resume [RUN]] [section.key=value …]"""

import argparse
from pathlib import Path

from compute import choose_device, choose_precision, seed_everything
from config import Config, config_parser, load_config
from data.captions import read_captions, references
from data.sample import draw_if_asked
from data.transforms import ImageTransform, transform_for
from data.vocab import Vocabulary
from files import load_checkpoint
from models.model import build_model, load_model, unpack_model
from training.run import Run
from training.setup import make_datasets
from training.tensorboard import require_tensorboard
from utils import UserError, run_script


def parse_arguments() -> argparse.Namespace:
    parser = config_parser(
        "Train a captioner.", ("run", "data", "encoder", "features", "decoder", "train", "rl", "search")
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with a stopped run: its folder, or that of the configuration if none is given",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start over in a run folder that holds a run"
    )
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_arguments()
    checkpoint = None
    if args.resume is not None:
        # `--resume train.epochs=20` means the configuration's own run.
        if "=" in args.resume:
            args.overrides, args.resume = [args.resume, *args.overrides], ""
        folder = Path(args.resume) if args.resume else load_config(args.config, args.overrides).run_folder
        checkpoint = load_checkpoint(folder / "checkpoints.pth")
        # The folder may have been moved or renamed since: the run goes on where it lies.
        folder = folder if folder.name.strip(".") else folder.resolve()
        here = [f"run.folder={folder.parent}", f"run.name={folder.name}"]
        loaded = unpack_model(checkpoint, folder / "checkpoints.pth", [*args.overrides, *here])
        config = loaded.config
    else:
        config = load_config(args.config, args.overrides)
        if (config.run_folder / "checkpoints.pth").exists() and not args.overwrite:
            raise UserError(
                f"{config.run_folder} holds a run already; go on with it by --resume, start over by "
                "--overwrite, or give the new one a name with run.name=NAME"
            )

    if config.run.tensorboard:
        require_tensorboard()  # before the features are computed rather than after
    table = find_data(config)
    seed_everything(config.run.seed, config.run.deterministic)
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)

    if checkpoint:
        model, vocabulary = loaded.model, Vocabulary(loaded.words)
        transform = ImageTransform.from_dict(loaded.transform)
    elif config.train.init_from:
        loaded = load_model(config.train.init_from)
        vocabulary, transform = Vocabulary(loaded.words), ImageTransform.from_dict(loaded.transform)
        model = build_model(config, len(vocabulary))
        try:
            model.load_state_dict(loaded.model.state_dict())
        except RuntimeError:
            raise UserError(
                f"train.init_from={config.train.init_from}: the weights are of another model; encoder.* and "
                f"decoder.* have to be those of that run ({config.train.init_from.parent / 'config.yaml'})"
            ) from None
    else:
        vocabulary = find_vocabulary(config, table)
        transform = transform_for(config.encoder.name, config.encoder.weights, config.encoder.image_size)
        model = build_model(config, len(vocabulary))
        if vectors := config.decoder.vectors:
            found = model.decoder.embedding.start_from(vectors, vocabulary.words)
            print(f"embeddings: {found:,} of {len(vocabulary):,} words start from {vectors}")
    model.to(device)
    describe(config, model, vocabulary, device, precision)

    train_set, val_set = make_datasets(
        config, table, ("train", "val"), vocabulary, model, transform, device, precision
    )
    run = Run(
        config, model, vocabulary, transform, train_set, val_set, references(table, "val"), device, precision
    )
    if checkpoint:
        run.load(checkpoint["training"])
    return run.train()


def find_data(config: Config):
    """The captions table, its images checked; the built-in sample is drawn if it is asked for."""
    data = config.data
    draw_if_asked(data.captions)
    if absent := [path for path in data.captions if not path.exists()]:
        raise UserError(
            f"no data: looked for {absent[0].absolute()} and {data.images.absolute()}/; get Flickr8k "
            "(Kaggle's 'flickr8k' has images and captions), put captions.csv and images/ there, or try the "
            "built-in sample: python train.py --config configs/sample.yaml"
        )
    return read_captions(data.captions, data.images, data.max_bad_rows)


def find_vocabulary(config: Config, table) -> Vocabulary:
    """vocab.json beside the captions, if build_vocab.py has written one; else that of the training split."""
    path = config.data.captions[0].parent / "vocab.json"
    if path.exists():
        print(f"vocabulary: {path}")
        return Vocabulary.load(path)
    return Vocabulary.build(table.loc[table["split"] == "train", "caption"], config.data.min_freq)


def describe(config: Config, model, vocabulary: Vocabulary, device, precision) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    print(
        f"{config.run.name}: {config.encoder.name} + {config.decoder.kind} decoder, {len(vocabulary):,} "
        f"words, {trained / 1e6:.1f} M parameters trained, {frozen / 1e6:.1f} M frozen, "
        f"{str(precision).removeprefix('torch.')} on {device}"
    )


if __name__ == "__main__":
    run_script(main)
