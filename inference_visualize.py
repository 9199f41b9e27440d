"""Caption your own images: files, folders and globs."""

import glob
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compute import choose_device, choose_precision
from config import Config, argument_parser
from data.captions import read_captions
from data.transforms import ImageTransform, read_image
from data.vocab import Vocabulary
from files import newest_checkpoint, replacing
from metrics.sentences import sentence_scores
from models.model import load_model
from models.search import Captions, SearchOptions
from progress import Progress
from reports.attention import attention_sheet
from reports.captioned import captioned_image
from reports.page import PageEntry, write_page
from training.evaluation import caption_batches
from utils import UserError, run_script

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # looked for in folders
BATCH = 32  # images captioned at once
OVERRIDE = re.compile(rf"({'|'.join(Config.model_fields)})\.\w+=")


def main() -> int:
    args = parse_arguments()
    overrides = [argument for argument in args.arguments if OVERRIDE.match(argument)]
    overrides += [f"search.{key}={value}" for key in ("beam", "temperature", "top_k", "top_p")
                  if (value := getattr(args, key)) is not None]  # fmt: skip
    paths = find_images([argument for argument in args.arguments if not OVERRIDE.match(argument)])[
        : args.limit
    ]
    references, names_there = read_references(args.captions, paths) if args.captions else ({}, {})
    checkpoint = args.checkpoint or newest_checkpoint(Path("runs"))
    loaded = load_model(checkpoint, overrides)
    if args.attention and loaded.config.decoder.kind != "attention":
        raise UserError(
            f"--attention: {checkpoint} has decoder.kind={loaded.config.decoder.kind}, without attention"
        )
    config, vocabulary = loaded.config, Vocabulary(loaded.words)
    transform = ImageTransform.from_dict(loaded.transform)
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)
    loaded.model.to(device)
    options = SearchOptions(
        **config.search.model_dump(), seed=config.run.seed if args.seed is None else args.seed
    )

    unreadable: list[str] = []
    results: list[Result] = []
    names = output_names(paths)
    with Progress(len(paths), "captions", "images") as progress:
        for batch in read_batches(paths, transform, unreadable):
            pixels = torch.stack([tensor for _, _, tensor in batch])
            [captions] = caption_batches(loaded.model, [pixels], options, device, precision)
            for i, (path, image, _) in enumerate(batch):
                said = references.get(names_there.get(path), [])
                result = describe(path, captions, i, vocabulary, said)
                save_images(result, image, args.output, names[path], args.attention)
                results.append(result)
            progress.update(len(batch))
    for problem in unreadable:
        print(f"skipped {problem}", file=sys.stderr)
    if not results:
        raise UserError(f"none of the {len(paths)} images could be read")
    captions = {names_there[r.path]: r.caption for r in results if r.path in names_there}
    scores = sentence_scores(captions, references) if captions else {}
    scores = {path: scores[name] for path, name in names_there.items() if name in scores}
    write_results(results, scores, names, args.output, args.attention)
    for result in results[:10]:
        print(f"{result.path}: {result.caption}")
    if len(results) > 10:
        print(f"… and {len(results) - 10} more")
    print(f"wrote {len(results)} captioned images, captions.json and {args.output / 'captions_result.html'}")
    return 1 if unreadable else 0


def parse_arguments():
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "arguments", nargs="+", metavar="IMAGES", help="images, folders, globs, section.key=value"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a run's best.pth (the newest one under runs/)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), metavar="FOLDER", help="where to write (outputs)"
    )
    parser.add_argument(
        "--captions", type=Path, metavar="FILE",
        help="what people said of these images: shown beside the captions, which are scored against it",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--beam", type=int, metavar="K", help="beam width, 1 is greedy (5)")
    parser.add_argument("--temperature", type=float, metavar="T", help="above 0: sample, flatter as T grows")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest words only")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample among the likeliest words of total P only"
    )
    parser.add_argument("--seed", type=int, help="seed of sampling (the run's)")
    parser.add_argument("--attention", action="store_true", help="also a sheet of where each word looked")
    args = parser.parse_intermixed_args()
    if args.limit is not None and args.limit < 1:
        parser.error("--limit takes a number from 1")
    if args.temperature is None and (args.top_k or args.top_p):
        args.temperature = 1.0  # who cuts the tail off wants to sample
    return args


@dataclass(frozen=True)
class Result:
    """What the model said of one image. Log-probabilities are natural, sums over words and the end."""

    path: Path
    caption: str
    log_prob: float
    words: list[tuple[str, float]]  # each with its probability
    others: list[tuple[str, float]]  # the other beams and their log-probabilities
    alphas: np.ndarray | None  # (words, rows, columns)
    references: list[str]  # what people said of it, as far as known


def find_images(arguments: list[str]) -> list[Path]:
    """The files that the arguments mean, in order, each once."""
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
            if not files:
                raise UserError(f"no images in the folder {path} (looked for {', '.join(sorted(SUFFIXES))})")
        elif path.exists():
            files = [path]
        else:
            files = [Path(f) for f in sorted(glob.glob(argument, recursive=True)) if Path(f).is_file()]
            if not files:
                raise UserError(f"no image, folder or match at {argument}")
        found.update(dict.fromkeys(files))
    if not found:
        raise UserError("no images given; pass files, folders or globs")
    return list(found)


def read_references(file: Path, paths: list[Path]) -> tuple[dict[str, list[str]], dict[Path, str]]:
    """All captions of a captions file by its names of the images, and those names of `paths`.

    An image is named by the end of its path: `images/a.jpg` is `a.jpg` there, or `images/a.jpg`. Raises
    UserError where the file names none of them.
    """
    table = read_captions(file, Path(), images_of=())
    references = {image: group.tolist() for image, group in table.groupby("image", sort=False)["caption"]}
    names = {}
    for path in paths:
        parts = path.resolve().parts
        ends = ("/".join(parts[i:]) for i in range(1, len(parts)))
        if name := next((end for end in ends if end in references), None):
            names[path] = name
    if not names:
        raise UserError(
            f"--captions {file}: none of the {len(paths)} images is in it (the first is {paths[0].name!r}, "
            f"there it is {next(iter(references))!r}); pass the file that belongs to these images"
        )
    return references, names


def read_batches(
    paths: list[Path], transform: ImageTransform, unreadable: list[str]
) -> Iterator[list[tuple[Path, Image.Image, torch.Tensor]]]:
    """Path, image and its tensor in batches; what cannot be read is noted and passed over."""
    batch = []
    for path in paths:
        try:
            image = read_image(path)
        except OSError as error:
            unreadable.append(f"{path}: {error}")
            continue
        batch.append((path, image, transform(image)))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def describe(path: Path, captions: Captions, i: int, vocabulary: Vocabulary, references: list[str]) -> Result:
    """The captions of the i-th image of a batch."""
    texts = [vocabulary.decode(tokens) for tokens in captions.tokens[i].tolist()]
    log_probs = captions.log_probs[i].float()
    best = texts[0]
    others = [
        (" ".join(words), float(log_probs[k].sum()))
        for k, words in enumerate(texts)
        if k > 0 and captions.scores[i, k] > -torch.inf
    ]
    alphas = None
    if captions.attention is not None:
        cells = captions.attention[i, 0, : len(best)].float().cpu().numpy()
        side = isqrt(cells.shape[1])  # the transform makes every image, and so its grid, a square
        alphas = cells.reshape(-1, side, side)
    probabilities = log_probs[0].exp().tolist()[: len(best)]
    return Result(
        path,
        " ".join(best),
        float(log_probs[0].sum()),
        list(zip(best, probabilities, strict=True)),
        others,
        alphas,
        references,
    )


def output_names(paths: list[Path]) -> dict[Path, str]:
    """A name for each image's files: its stem, with a number where several share it."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 2
        while name.lower() in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        names[path] = name
    return names


def save_images(result: Result, image: Image.Image, output: Path, name: str, attention: bool) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        captioned = captioned_image(image, result.caption, result.references)
        captioned.save(output / f"{name}_captioned.jpg", quality=92)
        if attention:
            words = [word for word, _ in result.words]
            attention_sheet(image, words, result.alphas).save(output / f"{name}_attention.jpg", quality=92)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}; choose another --output") from None


def write_results(
    results: list[Result], scores: dict[Path, dict], names: dict[Path, str], output: Path, attention: bool
) -> None:
    """captions.json and captions_result.html."""
    rows, entries = [], []
    root = os.path.commonpath([r.path.absolute().parent for r in results])
    for r in results:
        row = {"image": str(r.path), "caption": r.caption, "log_prob": r.log_prob, "words": r.words}
        row["others"] = r.others
        if r.references:
            row |= {"references": r.references, "scores": scores[r.path]}
        rows.append(row)
        files = {"full size": output / f"{names[r.path]}_captioned.jpg"}
        if attention:
            files["attention sheet"] = output / f"{names[r.path]}_attention.jpg"
        shown = (r.caption, r.log_prob, r.words, r.alphas, r.others, r.references, scores.get(r.path, {}))
        entries.append(PageEntry(os.path.relpath(r.path, root), r.path, *shown, files))
    with replacing(output / "captions.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    write_page(output / "captions_result.html", entries)


if __name__ == "__main__":
    run_script(main)
