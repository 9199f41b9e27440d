"""The job of inference_visualize.py: images in, a folder with their captions out."""

from startup import one_line

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning import Captioner, ImageError
from data.addresses import Addresses
from progress import Progress
from reports.results import Results
from utils import UserError

_SHOWN = 10  # captions printed at the end


def caption_images(paths: Sequence[Path], args: argparse.Namespace, addresses: Addresses) -> int:
    """Caption the images, and write the results; returns the exit status: 1 if any had to be skipped.

    `addresses`: of those of the `paths` that are to be fetched.
    """
    known, names = _read_references(args.captions, paths) if args.captions else ({}, {})
    results = Results(args.output, paths, args.attention, addresses.shown)
    captioner = Captioner.load(args.checkpoint, args.overrides)
    if args.attention and not captioner.attends:
        raise UserError(
            f"--attention: the model has no attention (decoder.kind={captioner.config.decoder.kind}); leave "
            "it out"
        )
    search = {}
    if args.samples and captioner.config.search.temperature == 0:
        if captioner.config.search.include:
            raise UserError("search.include: sampling cannot do this; leave out --top-k and --top-p")
        search["temperature"] = 1.0  # top-k and top-p only make sense for sampling
    with captioner.compute.explain_memory("lower --beam"):
        of_images = {path: known[names[path]] for path in names}
        skipped = _caption(captioner, results, addresses, of_images, search)
    page = results.write({})
    captions = {path: row["caption"] for path, row in results.rows.items()}
    if scores := _scores(captions, known, names):
        results.write(scores)
    for path, caption in list(captions.items())[:_SHOWN]:
        print(one_line(f"{addresses.shown.get(path, path)}: {caption}"))
    if len(captions) > _SHOWN:
        print(f"… and {len(captions) - _SHOWN} more")
    print(f"wrote {len(captions)} captioned images, captions.json and {one_line(page)}")
    return 1 if skipped else 0


def _read_references(file: Path, paths: Sequence[Path]) -> tuple[dict[str, list[str]], dict[Path, str]]:
    """The references in a captions file by image name, and the name in that file for each of `paths`.

    An image is found by its path as it was given or, failing that, by the path that a symbolic link leads to.

    Raises UserError if the file has none of the images.
    """
    # Here and in `_scores`, because pandas and nltk take long to import, and most images have no references.
    from data.captions import read_captions, references
    from metrics.predictions import match_names

    known = references(read_captions(file, Path(), splits_with_images=()))
    given = {os.path.abspath(path): path for path in paths}
    where = f"--captions {file}"
    names = {given[path]: name for path, name in match_names(given, known, where).items()}
    rest = {os.path.realpath(path): path for path in paths if path not in names}
    unused = [name for name in known if name not in set(names.values())]
    names |= {rest[path]: name for path, name in match_names(rest, unused, where).items()}
    if not names:
        raise UserError(
            f"{where}: it has none of the {len(paths)} images (the first image is "
            f"{paths[0].name!r}, the first in the file {next(iter(known))!r}); pass their captions file"
        )
    return known, names


def _caption(
    captioner: Captioner,
    results: Results,
    addresses: Addresses,
    references: Mapping[Path, list[str]],
    search: Mapping[str, Any],
) -> int:
    """Caption the images of `results`; returns how many had to be skipped, and prints which and why."""
    paths, problems = results.paths, []
    with Progress(len(paths), "captions", "images") as progress, addresses:
        captions = captioner(addresses.fetched(paths), errors="return", **search)
        for path, result in zip(paths, captions, strict=True):
            try:
                if isinstance(result, ImageError):
                    raise result
                results.add(path, result, references.get(path, []))
            except UserError as error:
                problems.append(addresses.explained(path, error))
            addresses.remove(path)
            progress.update()
    for problem in problems:
        print("skipped:", one_line(problem), file=sys.stderr)
    if len(problems) == len(paths):
        raise UserError(f"none of the {len(paths)} images could be captioned")
    return len(problems)


def _scores(
    captions: Mapping[Path, str], references: Mapping[str, list[str]], names: Mapping[Path, str]
) -> dict[Path, dict[str, float]]:
    """The scores of each caption that has references. Prints those of all of them as a set."""
    scored = {names[path]: caption for path, caption in captions.items() if path in names}
    if not scored:
        return {}
    from metrics.scores import score_set, scores_table
    from metrics.sentences import sentence_scores

    print(f"scores of the {len(scored)} captions with references:")
    print(scores_table(*score_set(scored, references)))
    scores = sentence_scores(scored, references)
    return {path: scores[names[path]] for path in captions if path in names}
