"""Caption your own images: files, folders and globs."""

import argparse
import glob
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from captioning import Caption, Captioner, ImageError
from config import Config
from config_reading import argument_parser
from data.captions import read_captions, references
from files import replacing
from metrics.predictions import match_names
from metrics.scores import score_set, scores_table
from metrics.sentences import sentence_scores
from progress import Progress
from reports.attention import attention_sheet
from reports.captioned import captioned_image
from reports.page import PageEntry, write_page
from utils import UserError, run_script

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}  # of images in folders
_OVERRIDE = re.compile(rf"({'|'.join(Config.model_fields)})\.\w+=")
_SHOWN = 10  # captions printed at the end


def main() -> int:
    args = _parse_arguments()
    paths = _find_images(args.images)[: args.limit]
    known, names = _read_references(args.captions, paths) if args.captions else ({}, {})
    captioner = Captioner.load(args.checkpoint, args.overrides)
    if args.attention and not captioner.model.decoder.attends:
        raise UserError(
            f"--attention: the model has no attention (decoder.kind={captioner.config.decoder.kind}); leave "
            "it out"
        )
    with captioner.compute.explain_memory("lower --beam"):
        entries = _caption(captioner, paths, args, {path: known[names[path]] for path in names})
    _add_scores(entries, known, names)
    _write_results(args.output, entries)
    for path, entry in list(entries.items())[:_SHOWN]:
        print(f"{path}: {entry.result.caption}")
    if len(entries) > _SHOWN:
        print(f"… and {len(entries) - _SHOWN} more")
    page = args.output / "captions_result.html"
    print(f"wrote {len(entries)} captioned images, captions.json and {page}")
    return 1 if len(entries) < len(paths) else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__, ("search",))
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="images, folders, globs, and section.key=value overrides"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="best.pth of a run (default: the newest one in runs/)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs"),
        metavar="FOLDER",
        help="folder to write to (default: outputs)",
    )
    parser.add_argument(
        "--captions", type=Path, metavar="FILE",
        help="captions file with references for the images, to show and to score the captions against",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--beam", type=int, metavar="K", help="beam width, the same as search.beam=K; 1 is greedy"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="sample at this temperature if above 0"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely words")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely words with total probability P"
    )
    parser.add_argument("--seed", type=int, help="seed of sampling (default: run.seed)")
    parser.add_argument(
        "--attention", action="store_true", help="also draw a sheet with the attention for each word"
    )
    args = parser.parse_intermixed_args()
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.temperature is None and (args.top_k or args.top_p):
        args.temperature = 1.0  # top-k and top-p only make sense for sampling
    given = args.images
    args.images = [argument for argument in given if not _OVERRIDE.match(argument)]
    args.overrides = [argument for argument in given if _OVERRIDE.match(argument)]
    for key in ("beam", "temperature", "top_k", "top_p"):
        if getattr(args, key) is not None:
            args.overrides.append(f"search.{key}={getattr(args, key)}")
    if args.seed is not None:
        args.overrides.append(f"run.seed={args.seed}")
    return args


def _find_images(arguments: Sequence[str]) -> list[Path]:
    """The files that the arguments select, in order and without duplicates."""
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
            if not files:
                raise UserError(f"no images in the folder {path} (looked for {', '.join(sorted(_SUFFIXES))})")
        elif path.exists():
            files = [path]
        else:
            files = [Path(f) for f in sorted(glob.glob(argument, recursive=True)) if Path(f).is_file()]
            if not files:
                raise UserError(f"no image or folder at {argument}, and no file matches it")
        found.update(dict.fromkeys(files))
    if not found:
        raise UserError("no images given; pass files, folders or globs")
    return list(found)


def _read_references(file: Path, paths: Sequence[Path]) -> tuple[dict[str, list[str]], dict[Path, str]]:
    """The references in a captions file by image name, and the name in that file for each of `paths`.

    Raises UserError if the file has none of the images.
    """
    known = references(read_captions(file, Path(), splits_with_images=()))
    absolute = {str(path.resolve()): path for path in paths}
    matches = match_names(absolute, known, f"--captions {file}")
    if not matches:
        raise UserError(
            f"--captions {file}: it has none of the {len(paths)} images (the first image is "
            f"{paths[0].name!r}, the first in the file {next(iter(known))!r}); pass their captions file"
        )
    return known, {absolute[path]: name for path, name in matches.items()}


def _caption(
    captioner: Captioner, paths: Sequence[Path], args: argparse.Namespace, references: dict[Path, list[str]]
) -> dict[Path, PageEntry]:
    """Caption the images, save each with its caption, and print the names of unreadable images to stderr."""
    entries, problems = {}, []
    file_names = _output_names(paths)
    with Progress(len(paths), "captions", "images") as progress:
        for path, result in zip(paths, captioner(paths, errors="return"), strict=True):
            if isinstance(result, ImageError):
                problems.append(result)
            else:
                files = _save_images(result, references.get(path, []), args, file_names[path])
                # An image takes megabytes, so only its caption stays in memory.
                result = replace(result, image=None)
                entries[path] = PageEntry(str(path), path, result, references.get(path, []), files=files)
            progress.update()
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    if not entries:
        raise UserError(f"none of the {len(paths)} images could be read")
    return entries


def _output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for the files of each image: its stem, with a number if several images have the same stem."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 2
        while name.lower() in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        names[path] = name
    return names


def _save_images(
    result: Caption, references: list[str], args: argparse.Namespace, name: str
) -> dict[str, Path]:
    """Write the captioned image and, with --attention, its attention sheet; returns the files by label."""
    drawn: dict[str, tuple[Path, Image.Image]] = {}
    assert result.image is not None  # dropped only after this
    captioned = captioned_image(result.image, result.caption, references)
    drawn["full size"] = (args.output / f"{name}_captioned.jpg", captioned)
    if args.attention:
        assert result.attention is not None  # `main` has checked the decoder
        sheet = attention_sheet(result.image, [word.text for word in result.words], result.attention)
        drawn["attention sheet"] = (args.output / f"{name}_attention.jpg", sheet)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for path, image in drawn.values():
            image.save(path, quality=92)
    except OSError as error:
        raise UserError(f"cannot write to {args.output}: {error}; choose another --output") from None
    return {label: path for label, (path, _) in drawn.items()}


def _add_scores(
    entries: dict[Path, PageEntry], references: dict[str, list[str]], names: dict[Path, str]
) -> None:
    """Score the captions that have references, one by one and as a set, and print the scores of the set."""
    captions = {names[path]: entry.result.caption for path, entry in entries.items() if path in names}
    if not captions:
        return
    scores = sentence_scores(captions, references)
    for path in entries.keys() & names.keys():
        entries[path] = replace(entries[path], scores=scores[names[path]])
    print(f"scores of the {len(captions)} captions with references:")
    print(scores_table(*score_set(captions, references)))


def _write_results(output: Path, entries: dict[Path, PageEntry]) -> None:
    """Write captions.json and captions_result.html."""
    rows = []
    for path, entry in entries.items():
        result = entry.result
        row = {"image": str(path), "caption": result.caption, "log_prob": result.log_prob}
        row |= {"words": result.words, "others": result.others}
        if entry.references:
            row |= {"references": entry.references, "scores": entry.scores}
        rows.append(row)
    with replacing(output / "captions.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    root = os.path.commonpath([path.absolute().parent for path in entries])
    named = (replace(entry, name=os.path.relpath(path, root)) for path, entry in entries.items())
    write_page(output / "captions_result.html", named)


if __name__ == "__main__":
    run_script(main)
