"""Vocabularies and predictions from anywhere, and what is no file in the place of a file of text."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from data.vocab import SPECIAL, Vocabulary
from metrics.predictions import read_predictions
from tests.hostile.attempt import Hostile, either, nothing, refused, script
from tests.hostile.captions import DEEP, HUGE, read
from tests.hostile.place import WORDS

TABLE = pd.DataFrame({"image": ["a.jpg"], "caption": ["A dog ."], "split": ["test"], "image_id": [1]})


def _readers(kind: str) -> Callable[[str], Callable[[Path], object]]:
    """How a file of this kind is read."""
    return {
        "captions": read,
        "vocabulary": lambda name: lambda _: Vocabulary.load(Path(name)),
        "predictions": lambda name: lambda _: read_predictions(Path(name), TABLE),
    }[kind]


def _unusual() -> list[Hostile]:
    """What is no regular file: refused, and never waited for."""
    kinds: dict[str, Callable[[Path], object]] = {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "loop": lambda path: path.symlink_to("loop"),
        "zero": lambda path: path.symlink_to("/dev/zero"),
        "absent": nothing,
        "nul\0": nothing,
    }
    return [
        Hostile(
            f"{kind}: {name!r}",
            lambda _, name=name, make=make: make(Path(name)),
            _readers(kind)(name),
            refused(),
        )
        for kind in ("captions", "vocabulary", "predictions")
        for name, make in kinds.items()
        if not (kind == "vocabulary" and "\0" in name)  # its name follows from that of the captions
    ]


def _vocabularies() -> list[Hostile]:
    """vocab.json: either what it was, or refused by name."""
    good = {"words": WORDS}
    built = {"captions": ["captions.csv"], "digest": "0" * 64, "min_freq": 1}
    contents: dict[str, object] = {
        "a list": WORDS,
        "text": "words",
        "no words": {},
        "words is null": {"words": None},
        "words is text": {"words": "<pad>"},
        "words is an object": {"words": dict.fromkeys(WORDS, 0)},
        "numbers": {"words": [*WORDS, 7]},
        "a list among the words": {"words": [*WORDS, ["dog"]]},
        "null among the words": {"words": [*WORDS, None]},
        "a word twice": {"words": [*WORDS, "a"]},
        "no special words": {"words": WORDS[4:]},
        "special words elsewhere": {"words": [*WORDS[4:], *SPECIAL]},
        "only three words": {"words": WORDS[:3]},
        "built_from is text": {**good, "built_from": "x"},
        "built_from is a list": {**good, "built_from": [1]},
        "built_from without its digest": {**good, "built_from": {"captions": [], "min_freq": 1}},
        "built_from with more keys": {**good, "built_from": {**built, "x": 1}},
        "built_from with a number as digest": {**good, "built_from": {**built, "digest": 7}},
        "built_from with numbers as captions": {**good, "built_from": {**built, "captions": [1, 2]}},
        "built_from with text as min_freq": {**good, "built_from": {**built, "min_freq": "x"}},
    }
    texts = {name: json.dumps(content) for name, content in contents.items()}
    texts |= {
        "empty": "",
        "cut": json.dumps(good)[:40],
        "deep nesting": DEEP,
        "a huge number": HUGE,
        "NaN": "NaN",
    }
    found = []
    for name, text in texts.items():

        def write(folder: Path, text=text) -> None:
            (folder / "vocab.json").write_text(text)
            (folder / "data" / "vocab.json").write_text(text)

        found.append(
            Hostile(f"vocabulary: {name}", write, _readers("vocabulary")("vocab.json"), refused("vocab.json"))
        )
    escapes = json.dumps({"words": [*WORDS, "\x1b]0;owned\x07", "\x9b31m"], "built_from": built})
    show = script("show_model", "--config", "tiny.yaml", "run.name=other")
    found.append(
        Hostile(
            "vocabulary: escape sequences",
            lambda f: (f / "data/vocab.json").write_text(escapes),
            show,
            either,
        )
    )
    return found


def _predictions() -> list[Hostile]:
    texts: dict[str, str | bytes] = {
        "empty": "",
        "an empty list": "[]",
        "an empty object": "{}",
        "text": '"x"',
        "a number": HUGE,
        "deep nesting": DEEP,
        "deep nesting inside": '{"a.jpg": ' + DEEP,
        "not UTF-8": b'{"a.jpg": "\xff"}',
        "in UTF-16": '{"a.jpg": "x"}'.encode("utf-16"),
        "a caption that is a list": '{"a.jpg": ["x"]}',
        "a caption that is null": '{"a.jpg": null}',
        "two captions": '[{"image": "a.jpg", "caption": "x"}, {"image_id": 1, "caption": "y"}]',
        "an id that is a list": '[{"image_id": [1], "caption": "x"}]',
        "an id that is null": '[{"image_id": null, "caption": "x"}]',
        "an id that is true": '[{"image_id": true, "caption": "x"}]',
        "a huge id": f'[{{"image_id": {HUGE}, "caption": "x"}}]',
        "NaN as id": '[{"image_id": NaN, "caption": "x"}]',
        "rows that are lists": "[[1, 2]]",
        "rows that are null": "[null]",
        "images that are a number": '{"images": 7, "annotations": []}',
        "images that are null": '{"images": null}',
    }
    found = []
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else text.encode()

        def write(folder: Path, content=content) -> None:
            (folder / "p.json").write_bytes(content)

        found.append(
            Hostile(f"predictions: {name}", write, _readers("predictions")("p.json"), refused("p.json"))
        )
    lone = '{"a.jpg": "a dog \\ud800"}'
    read_it = _readers("predictions")("p.json")
    found.append(
        Hostile("predictions: a lone surrogate", lambda f: (f / "p.json").write_text(lone), read_it, either)
    )
    score = script("evaluate", "--config", "tiny.yaml", "--predictions", "p.json")
    lone = lone.replace("a.jpg", "20.png")
    found.append(
        Hostile("scored: a lone surrogate", lambda f: (f / "p.json").write_text(lone), score, either)
    )
    twice = '[{"image": "20.png", "caption": "x"}, {"image": "data/images/20.png", "caption": "y"}]'
    found.append(
        Hostile(
            "scored: an image twice", lambda f: (f / "p.json").write_text(twice), score, refused("20.png")
        )
    )
    return found


INPUTS = [*_unusual(), *_vocabularies(), *_predictions()]
