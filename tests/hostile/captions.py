"""Captions files from anywhere: they are read, or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from data.captions import read_captions
from data.splits import SPLITS
from tests.hostile.attempt import Hostile, Outcome, either, works

DEEP = "[" * 100_000
HUGE = "9" * 5000
_JSON_VALUES = (
    "null",
    "true",
    "7",
    "1.5",
    "-1",
    "1e999",
    "NaN",
    HUGE,
    '""',
    '"x"',
    "[]",
    "{}",
    "[null]",
    '[["a"]]',
)


def is_a_table(outcome: Outcome) -> None:
    """A table of names, captions and splits, or one line."""
    either(outcome)
    if isinstance(outcome.value, pd.DataFrame):
        table = outcome.value
        assert len(table)
        assert set(table["split"]) <= set(SPLITS)
        assert all(isinstance(text, str) and text for text in (*table["image"], *table["caption"]))


def read(name: str) -> Callable[[Path], pd.DataFrame]:
    """The action that reads a captions file of which no images need to exist."""
    return lambda _: read_captions(Path(name), Path("data/images"), splits_with_images=())


def _table(name: str, file: str, content: str | bytes, promise=is_a_table) -> Hostile:
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return Hostile(
        f"captions: {name}", lambda folder: (folder / file).write_bytes(content), read(file), promise
    )


# Valid files, one of each format, in which something is then replaced.
KARPATHY = (
    '{"images": [{"filename": "a.jpg", "imgid": 1, "split": "train", "sentences": [{"raw": "A dog ."}]}]}'
)
COCO = (
    '{"images": [{"id": 1, "file_name": "a.jpg"}], '
    '"annotations": [{"image_id": 1, "id": 2, "caption": "A dog ."}]}'
)
LINES = (
    '{"file_name": "a.jpg", "text": "A dog .", "split": "train"}\n{"file_name": "b.jpg", "text": "A cat ."}\n'
)
TOKEN = "1000268201_693b08cb0e.jpg#0\tA dog .\n1000268201_693b08cb0e.jpg#1\tA cat .\n"
RESULTS = "image_name| comment_number| comment\n1000092795.jpg| 0| A dog .\n1000092795.jpg| 1| A cat .\n"
CSV = "image,caption,split\na.jpg,A dog .,train\nb.jpg,A cat .,val\n"
FILES = {
    "karpathy.json": KARPATHY,
    "coco.json": COCO,
    "metadata.jsonl": LINES,
    "flickr.token": TOKEN,
    "results.csv": RESULTS,
    "captions.csv": CSV,
}


def _values() -> list[Hostile]:
    """JSON in which one value is replaced by one of another type or size."""
    found = []
    for file, content in (("karpathy.json", KARPATHY), ("coco.json", COCO), ("metadata.jsonl", LINES)):
        for part in ('"a.jpg"', '"A dog ."', '"train"', '[{"raw": "A dog ."}]', '{"raw": "A dog ."}', "1"):
            if part in content:
                found += [
                    _table(f"{part} is {value[:9]} in {file}", file, content.replace(part, value))
                    for value in _JSON_VALUES
                ]
    return found


def _texts() -> list[Hostile]:
    """Text that no file of captions has."""
    found = []
    for file, content in FILES.items():
        cases: dict[str, str | bytes] = {
            "empty": "",
            "only white space": " \n\n\t",
            "cut": content[: len(content) // 2],
            "not UTF-8": content.encode().replace(b"dog", b"d\xff\xfeg"),
            "in UTF-16": content.encode("utf-16"),
            "zeros": bytes(5000),
            "zeros behind it": content.encode() + bytes(5000),
            "NUL in a caption": content.replace("dog", "d\0g"),
            "NUL in a name": content.replace(".jpg", "\0.jpg"),
            "a name with ..": content.replace("a.jpg", "../a.jpg").replace("1000", "../1000"),
            "an absolute name": content.replace("a.jpg", "/etc/passwd").replace("1000", "/1000"),
            "a drive": content.replace("a.jpg", "C:a.jpg").replace("1000", "C:1000"),
            "a lone surrogate": content.replace("dog", "\\ud800" if "json" in file else "\ud800"),
            "a surrogate in a name": content.replace(
                ".jpg", ("\\udfff" if "json" in file else "\udfff") + ".jpg"
            ),
            "a caption of a million letters": content.replace("dog", "dog " * 250_000),
            "a name of 5,000 letters": content.replace(".jpg", "a" * 5000 + ".jpg"),
            "escape sequences": content.replace("dog", "\x1b[31mdog\x07").replace(".jpg", "\x1b[2J.jpg"),
            "an unknown split": content.replace("train", "everything"),
            "an open quote": content.replace("A dog", '"A dog'),
            "CR as line end": content.replace("\n", "\r"),
            "deep nesting": DEEP,
            "deep nesting inside": content.replace('"A dog ."', DEEP).replace("A dog .", DEEP),
            "the list of its rows": f"[{content}]",
        }
        found += [_table(f"{name} ({file})", file, text) for name, text in cases.items()]
    return found


def _coco_names() -> list[Hostile]:
    """COCO's files are told by their whole names, and no test image gets into val."""

    def coco(folder: Path, *names: str) -> None:
        for i, name in enumerate(names):
            content = COCO.replace("a.jpg", f"{i}.jpg").replace('"id": 1', f'"id": {i}')
            (folder / name).write_text(content.replace('"image_id": 1', f'"image_id": {i}'))

    def several(*names: str) -> Callable[[Path], pd.DataFrame]:
        return lambda _: read_captions([Path(n) for n in names], Path("data/images"), splits_with_images=())

    three = ("captions_train2014.json", "captions_val2014.json", "captions_test2014.json")

    def test_is_test(outcome: Outcome) -> None:
        either(outcome)
        if isinstance(outcome.value, pd.DataFrame):
            of = dict(zip(outcome.value["image"], outcome.value["split"], strict=True))
            assert (of["0.jpg"], of["2.jpg"]) == ("train", "test"), of

    def by_hash(outcome: Outcome) -> None:
        works(outcome)
        assert "by hash" in outcome.text, outcome.text

    alone = ("captions_trainval2014.json",)
    return [
        Hostile("COCO: train, val and test", lambda f: coco(f, *three), several(*three), test_is_test),
        Hostile("COCO: a lone trainval", lambda f: coco(f, *alone), several(*alone), by_hash),
    ]


_ALL_VALUES = _values()
INPUTS = [*_ALL_VALUES[::6], *_texts(), *_coco_names()]
MORE = [hostile for hostile in _ALL_VALUES if hostile not in INPUTS]
