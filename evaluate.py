"""Score a model, or captions from anywhere, against the reference captions of a split."""

import json
from pathlib import Path

import pandas as pd

from config import DEFAULT_CONFIG, Config, argument_parser, load_config
from data.captions import SPLITS, check_images, read_captions, references
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from metrics.scores import METRICS, Scorer, caption_statistics
from models.model import load_model
from models.search import SearchOptions
from training.evaluation import caption_split
from training.setup import make_datasets
from utils import UserError, newest_checkpoint, pick_device, pick_precision, replacing, run_script


def main() -> None:
    args = parse_arguments()
    if args.predictions:
        config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
        table = read_captions(config.data.captions)
        captions, words = read_predictions(args.predictions), None
        output = args.output or args.predictions.parent / f"eval-{args.split}"
    else:
        if args.config:
            raise UserError("--config goes with --predictions; a checkpoint carries its own configuration")
        checkpoint = args.checkpoint or newest_checkpoint(Path("runs"))
        beam = [f"search.beam={args.beam}"] if args.beam else []
        loaded = load_model(checkpoint, [*args.overrides, *beam])
        table = read_captions(loaded.config.data.captions)
        captions, words = caption_with(loaded, table, args.split), len(loaded.words) - len(SPECIAL)
        output = args.output or checkpoint.parent / f"eval-{args.split}"

    truth = references(table, args.split)
    if not truth:
        raise UserError(f"the captions file has no images in the split {args.split!r}")
    try:
        scorer = Scorer(truth)
        scores = scorer.score(captions)
    except ValueError as error:
        raise UserError(f"{args.predictions or args.split}: {error}") from None
    statistics = caption_statistics(captions, words)
    print_table(scores, scorer.left_out, statistics, len(captions))
    write_results(output, {**scores, **statistics}, captions)
    print(f"wrote {output / 'scores.json'} and {output / 'captions.json'}")


def parse_arguments():
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a run's best.pth (the newest one under runs/)"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="which split (test)")
    parser.add_argument("--beam", type=int, metavar="K", help="beam width, the same as search.beam=K")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE",
        help="score these captions instead of a model's: JSON in COCO's results format, or a CSV",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="with --predictions: whose data.captions to score against"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write (eval-SPLIT in the run's folder)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the configuration"
    )
    return parser.parse_intermixed_args()


def caption_with(loaded, table: pd.DataFrame, split: str) -> dict[str, str]:
    """Image name -> the model's caption."""
    config: Config = loaded.config
    check_images(table[table["split"] == split], config.data.images)
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    loaded.model.to(device)
    vocabulary = Vocabulary(loaded.words)
    [dataset] = make_datasets(
        config,
        table,
        [split],
        vocabulary,
        loaded.model,
        ImageTransform.from_dict(loaded.transform),
        device,
        precision,
    )
    options = SearchOptions(**config.search.model_dump(), seed=config.run.seed)
    return caption_split(
        loaded.model,
        dataset,
        vocabulary,
        options,
        config.train.batch_size,
        config.data.workers,
        device,
        precision,
    )


def read_predictions(path: Path) -> dict[str, str]:
    """Image -> caption from JSON, a list of {"image_id" or "image", "caption"}, or CSV with image,caption."""
    if not path.is_file():
        raise UserError(f"no predictions at {path}")
    try:
        if path.suffix.lower() == ".csv":
            rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").to_dict(
                "records"
            )
        else:
            rows = json.loads(path.read_text("utf-8-sig"))
        pairs = [
            (str(row["image"] if "image" in row else row["image_id"]), str(row["caption"])) for row in rows
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'{path} is neither a JSON list of {{"image_id": …, "caption": …}} nor a CSV, named .csv, with '
            "the columns image,caption"
        ) from None
    captions = dict(pairs)
    if len(captions) < len(pairs):
        twice = next(image for i, (image, _) in enumerate(pairs) if image in dict(pairs[:i]))
        raise UserError(f"{path} has more than one caption for {twice!r}; keep one")
    return captions


def print_table(scores: dict, left_out: dict, statistics: dict, images: int) -> None:
    print(f"\n{images:,} images")
    for name in METRICS:
        if name in scores:
            print(f"  {name:<18} {scores[name]:.4f}")
    for name, why in left_out.items():
        print(f"  {name:<18} left out: {why}")
    print(f"  distinct captions  {statistics['distinct_captions']:.1%}")
    print(f"  mean length        {statistics['mean_length']:.2f} words")
    used = (
        f" ({statistics['vocabulary_used']:.1%} of the vocabulary)" if "vocabulary_used" in statistics else ""
    )
    print(f"  different words    {statistics['distinct_words']:,}{used}")


def write_results(output: Path, scores: dict[str, float], captions: dict[str, str]) -> None:
    rows = [{"image_id": image, "caption": caption} for image, caption in captions.items()]
    for name, content in (("scores.json", scores), ("captions.json", rows)):
        try:
            with replacing(output / name) as temporary:
                temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise UserError(
                f"cannot write {output / name}: {error.strerror}; choose another --output"
            ) from None


if __name__ == "__main__":
    run_script(main)
