"""Score a model, or captions from anywhere, against the reference captions of a split."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from compute import choose_device, choose_precision
from config import DEFAULT_CONFIG, Config, argument_parser, load_config
from data.captions import SPLITS, read_captions, references
from data.formats import open_captions
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from files import newest_checkpoint, replacing
from metrics.scores import METRICS, Scorer, caption_statistics
from models.model import load_model
from models.search import SearchOptions
from training.evaluation import caption_split
from training.setup import make_datasets
from utils import UserError, run_script


def main() -> None:
    args = parse_arguments()
    if args.predictions:
        config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
        table = read_table(config, images_of=())
        captions, words = read_predictions(args.predictions, table), None
        output = args.output or args.predictions.parent / f"eval-{args.split}"
    else:
        if args.config:
            raise UserError("--config goes with --predictions; a checkpoint carries its own configuration")
        checkpoint = args.checkpoint or newest_checkpoint(Path("runs"))
        beam = [f"search.beam={args.beam}"] if args.beam else []
        loaded = load_model(checkpoint, [*args.overrides, *beam])
        table = read_table(loaded.config, images_of=[args.split])
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
    write_results(output, {**scores, **statistics}, captions, image_ids(table))
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
        help="score these captions instead of a model's: COCO's results format, or any captions file",
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


def read_table(config: Config, images_of: Sequence[str]) -> pd.DataFrame:
    data = config.data
    return read_captions(data.captions, data.images, data.max_bad_rows, images_of)


def image_ids(table: pd.DataFrame) -> dict[str, int | str]:
    """Image name -> its id in the captions file, or the name again where the file has no ids."""
    column = "image_id" if "image_id" in table else "image"
    return dict(zip(table["image"].tolist(), table[column].tolist(), strict=True))


def caption_with(loaded, table: pd.DataFrame, split: str) -> dict[str, str]:
    """Image name -> the model's caption."""
    config: Config = loaded.config
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)
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


def read_predictions(path: Path, table: pd.DataFrame) -> dict[str, str]:
    """Image name -> caption, from COCO's results format or from a captions file with one caption per image.

    COCO's results format is a JSON list of {"image_id", "caption"}. An image is known by its name or by the
    id that `table` has for it.
    """
    if not path.is_file():
        raise UserError(f"no predictions at {path}")
    ids = image_ids(table)
    names = {str(image_id): name for name, image_id in ids.items()} | {name: name for name in ids}
    try:
        results = json.loads(path.read_text("utf-8-sig"))
    except ValueError:
        results = None  # a captions file, or an error that its reader names
    if isinstance(results, list):
        try:
            pairs = [
                (str(row["image"] if "image" in row else row["image_id"]), str(row["caption"]))
                for row in results
            ]
        except (KeyError, TypeError):
            raise UserError(
                f'{path} is a JSON list, but not of {{"image_id": …, "caption": …}} as COCO\'s results are'
            ) from None
    else:
        rows = [row for row in open_captions([path])[0].rows if row.split != ""]
        if problems := [row.problem for row in rows if row.problem]:
            raise UserError(f"{path}: {problems[0]}")
        # The name before the id: what two sources call number 7 may be different images.
        named = [row.image in names or row.image_id is None for row in rows]
        images = [row.image if name else str(row.image_id) for name, row in zip(named, rows, strict=True)]
        pairs = [(image, row.caption) for image, row in zip(images, rows, strict=True)]
    captions = {names.get(image, image): caption for image, caption in pairs}
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
    print(f"  dangling endings   {statistics['dangling_endings']:.1%} (… with a)")
    print(f"  mean length        {statistics['mean_length']:.2f} words")
    used = (
        f" ({statistics['vocabulary_used']:.1%} of the vocabulary)" if "vocabulary_used" in statistics else ""
    )
    print(f"  different words    {statistics['distinct_words']:,}{used}")


def write_results(
    output: Path, scores: dict[str, float], captions: dict[str, str], ids: dict[str, int | str]
) -> None:
    rows = [{"image_id": ids[image], "caption": caption} for image, caption in captions.items()]
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
