"""The job of inference_visualize.py: images in, a folder with their captions out."""

from startup import one_line

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from captioning import Caption, Captioner, ImageError
from data.addresses import Addresses
from processes import connected, group
from progress import Progress
from reports.results import Results
from utils import UserError

_SHOWN = 10  # captions printed at the end
AT_ONCE = 32  # images of each process, after which the main one gets and writes their captions


def caption_images(paths: Sequence[Path], args: argparse.Namespace, addresses: Addresses) -> int:
    """Caption the images, and write the results; returns the exit status: 1 if any had to be skipped.

    Several processes share the images. The main one writes the results.

    `addresses`: of those of the `paths` that are to be fetched.
    """
    with connected("continue with --resume"):
        if addresses.shown and group()[1] > 1:
            raise UserError(
                f"{next(iter(addresses.shown.values()))}: several processes cannot share fetched images; "
                "start one, without torchrun"
            )
        return _caption_images(paths, args, addresses)


def _caption_images(paths: Sequence[Path], args: argparse.Namespace, addresses: Addresses) -> int:
    known, names = _read_references(args.captions, paths) if args.captions else ({}, {})
    results = Results(args.output, paths[: args.draw], args.attention, args.resume, addresses.shown)
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
    found = _Found({path: known[names[path]] for path in names}, results, addresses)
    with captioner.compute.explain_memory("lower --beam"), addresses:
        _caption(captioner, paths, _todo(captioner, paths, found), found, search)
    if not captioner.compute.is_main:
        return 0
    for problem in found.problems:
        print("skipped:", one_line(problem), file=sys.stderr)
    if not found.num_captions:
        raise UserError(f"none of the {len(paths)} images could be captioned")
    page = results.write({})
    if scores := _scores(found.captions, known, names):
        results.write(scores)
    for name, caption in found.first:
        print(one_line(f"{name}: {caption}"))
    if found.num_captions > _SHOWN:
        print(f"… and {found.num_captions - _SHOWN:,} more")
    if len(paths) > args.draw:
        print(f"drew the first {args.draw:,} images; --draw N draws more")
    print(f"wrote the captions of {found.num_captions:,} images, captions.json and {one_line(page)}")
    return 1 if found.problems else 0


class _Found:
    """What is kept of the captions so far, besides the results."""

    def __init__(self, references: Mapping[Path, list[str]], results: Results, addresses: Addresses):
        self.references, self.results, self.addresses = references, results, addresses
        self.paths_of_names = {results.name(path): path for path in references}
        self.captions: dict[Path, str] = {}  # of images with references
        self.first: list[tuple[str, str]] = []  # name and caption
        self.num_captions = 0
        self.problems: list[UserError] = []

    def add(self, name: str, caption: str) -> None:
        self.num_captions += 1
        if len(self.first) < _SHOWN:
            self.first.append((name, caption))
        if path := self.paths_of_names.get(name):
            self.captions[path] = caption

    def add_earlier(self) -> Iterator[str]:
        """Add the captions of an earlier run; yields the names of their images."""
        for name, caption, result in self.results.earlier():
            try:
                if result:
                    assert isinstance(result.source, Path)
                    [path] = self.addresses.fetched([result.source])
                    self.results.draw(path, result, self.references.get(path, []))
                    self.addresses.remove(path)
            except UserError as error:
                self.problems.append(self.addresses.explained(path, error))
            self.add(name, caption)
            yield name

    def add_new(self, path: Path, result: Caption | UserError) -> None:
        try:
            if isinstance(result, UserError):
                raise result
            self.results.draw(path, result, self.references.get(path, []))
        except UserError as error:
            self.problems.append(self.addresses.explained(path, error))
            return
        finally:
            self.addresses.remove(path)
        self.results.add(path, result, self.references.get(path, []))
        self.add(self.results.name(path), result.caption)


def _todo(captioner: Captioner, paths: Sequence[Path], found: _Found) -> Sequence[int]:
    """The positions of the images that have no captions yet."""
    is_main = captioner.compute.is_main
    [done, *_] = captioner.compute.gather(set(found.add_earlier()) if is_main else set())
    return [i for i, path in enumerate(paths) if found.results.name(path) not in done]


def _caption(
    captioner: Captioner,
    paths: Sequence[Path],
    todo: Sequence[int],
    found: _Found,
    search: Mapping[str, Any],
) -> None:
    """Caption the images at the positions `todo`, each process a share; the main one writes the captions."""
    compute, positions = captioner.compute, captioner.compute.shard(todo)
    images = [paths[i] for i in positions]
    options = {"errors": "return", "batch_size": AT_ONCE, "ahead": 2, **search}
    sources = found.addresses.fetched(images)
    results = zip(images, captioner(sources, positions=positions, **options), strict=True)
    with Progress(len(todo), "captions", "images") as progress:
        for _ in range(ceil(len(todo) / (compute.world_size * AT_ONCE))):
            own = [_to_send(path, result, found.results) for path, result in islice(results, AT_ONCE)]
            of_all = compute.gather_in_main(own)
            for path, result in (each[i] for i in range(AT_ONCE) for each in of_all if i < len(each)):
                if compute.is_main:
                    found.add_new(path, result)
                progress.update()


def _to_send(path: Path, result: Caption | ImageError, results: Results) -> tuple[Path, Caption | UserError]:
    """What the main process needs: errors that can be sent, and attention only for what it draws."""
    if isinstance(result, ImageError):
        return path, UserError(str(result))
    return path, result if path in results.stems else replace(result, attention=None)


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
