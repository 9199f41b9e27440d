"""Words and their indices."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from config import DataConfig
from data.tokenizer import tokenize
from files import replacing
from utils import EOS, PAD, SOS, UNK, UserError

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")


class BuiltFrom(NamedTuple):
    """What the words of a vocabulary were chosen from."""

    captions: list[str]  # names of the captions files, for messages
    digest: str  # of the word counts of the training captions; covers files, splits and tokenizer
    min_freq: int


class Vocabulary:
    """The words of a model, with indices in [0, len). The four special tokens come first."""

    def __init__(self, words: Sequence[str], built_from: BuiltFrom | None = None):
        """`words`: all tokens in index order; raises ValueError if the special tokens are not first."""
        if tuple(words[:4]) != SPECIAL or len(set(words)) != len(words):
            raise ValueError(f"a vocabulary begins with {' '.join(SPECIAL)} and holds each word once")
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.built_from = built_from

    @classmethod
    def build(cls, captions: Iterable[str], min_freq: int, files: Sequence[Path] = ()) -> "Vocabulary":
        """The words that occur `min_freq` times or more in the training captions, most frequent first.

        `files`: the captions files, to be recorded in `built_from`.
        """
        counts = count_words(captions)
        # Ties are broken alphabetically, so that the order of the captions does not change the indices.
        frequent = sorted((-n, word) for word, n in counts.items() if n >= min_freq and word not in SPECIAL)
        digest = hashlib.sha256(json.dumps(sorted(counts.items())).encode()).hexdigest()
        record = BuiltFrom([file.name for file in files], digest, min_freq)
        return cls([*SPECIAL, *(word for _, word in frequent)], record)

    def __len__(self) -> int:
        return len(self.words)

    def numericalize(self, caption: str, max_length: int | None = None) -> list[int]:
        """`<sos> words <eos>` as indices in [0, len); an unknown word becomes `<unk>`.

        A caption of more than `max_length` words is cut and gets no `<eos>`, because it does not end there.
        """
        words = tokenize(caption)
        end = [EOS] if max_length is None or len(words) <= max_length else []
        return [SOS, *(self.index.get(word, UNK) for word in words[:max_length]), *end]

    def decode(self, indices: Iterable[int]) -> list[str]:
        """The words of a caption, up to `<eos>`, without `<pad>` and `<sos>`."""
        words = []
        for i in indices:
            if i == EOS:
                break
            if i not in (PAD, SOS):
                words.append(self.words[i])
        return words

    def coverage(self, captions: Iterable[str]) -> float:
        """The share of words in the captions that are in the vocabulary."""
        counts = count_words(captions)
        return sum(n for word, n in counts.items() if word in self.index) / max(counts.total(), 1)

    def save(self, path: Path) -> None:
        """Write the words and, if known, what they were built from as JSON."""
        content: dict[str, Any] = {"words": self.words}
        if self.built_from:
            content = {"built_from": self.built_from._asdict(), **content}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=0), "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote; raises UserError if there is no vocabulary at `path`."""
        try:
            content = json.loads(path.read_text("utf-8"))
            record = content.get("built_from")
            return cls(content["words"], BuiltFrom(**record) if record else None)
        except FileNotFoundError:
            raise UserError(f"no vocabulary at {path}; write one with build_vocab.py") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not a vocabulary ({error}); delete it or write a new one with build_vocab.py"
            ) from None


def find_vocabulary(data: DataConfig, table: pd.DataFrame) -> Vocabulary:
    """The vocabulary for training on `table`.

    The file that build_vocab.py writes beside the captions is used if it was built from the same training
    captions with the same data.min_freq. Its words may have been edited.
    """
    captions = table.loc[table["split"] == "train", "caption"]
    built = Vocabulary.build(captions, data.min_freq, data.captions)
    assert built.built_from is not None
    path = vocabulary_path(data)
    if not path.exists():
        return built
    found = Vocabulary.load(path)
    if reason := _difference(found.built_from, built.built_from):
        print(
            f"vocabulary: {path} {reason}, so it is not used and training builds a new one; "
            "run build_vocab.py with the same settings to replace it, or delete it"
        )
        return built
    print(f"vocabulary: {path}")
    return found


def vocabulary_path(data: DataConfig) -> Path:
    """Where build_vocab.py writes the vocabulary and training looks for it: beside the captions."""
    return data.captions[0].parent / "vocab.json"


def _difference(found: BuiltFrom | None, wanted: BuiltFrom) -> str:
    """The difference between the two records as text; empty if there is none."""
    if found is None:
        return "does not record what it was built from"
    reasons = []
    if found.digest != wanted.digest:
        reasons.append(f"from other training captions (of {', '.join(found.captions)})")
    if found.min_freq != wanted.min_freq:
        reasons.append(f"with data.min_freq={found.min_freq} instead of {wanted.min_freq}")
    return "was built " + " and ".join(reasons) if reasons else ""


def count_words(captions: Iterable[str]) -> Counter[str]:
    return Counter(word for caption in captions for word in tokenize(caption))
