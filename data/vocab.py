"""Words and their indices."""

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from config import DataConfig
from data.shard_paths import caption_paths
from files import require_regular, write_text
from utils import CONTROL, EOS, PAD, SOS, UNK, UserError

if TYPE_CHECKING:
    import pandas as pd

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")
_LARGEST = 1 << 28  # bytes of a vocabulary file; 256 MB are some ten million words


def check_words(words: Sequence[str]) -> list[str]:
    """The words of a vocabulary as a list; raises ValueError, which says why, if they cannot be one.

    They begin with the special tokens. Each is a string that occurs once, is not empty, and has no control
    characters, which a terminal would obey.
    """
    if tuple(words[: len(SPECIAL)]) != SPECIAL:
        raise ValueError(f"a vocabulary begins with {' '.join(SPECIAL)}")
    seen = set()
    for i, word in enumerate(words):
        if not isinstance(word, str) or not word:
            raise ValueError(f"word {i} is empty or not a text")
        if word in seen:
            raise ValueError(f"word {i}, {word!r}, is there twice")
        _printable(word)
        seen.add(word)
    return list(words)


def _printable(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError(f"{text!r} has control characters")
    return text


class BuiltFrom(NamedTuple):
    """What the words of a vocabulary were chosen from."""

    captions: list[Annotated[str, AfterValidator(_printable)]]  # names of the captions files, for messages
    digest: str  # of the word counts of the training captions; covers files, splits and tokenizer
    min_freq: Annotated[int, Field(ge=1)]


class _Content(BaseModel):
    """The content of a vocabulary file."""

    words: Annotated[list[str], AfterValidator(check_words)]
    built_from: BuiltFrom | None = None


class Vocabulary:
    """The words of a model, with indices in [0, len). The four special tokens come first."""

    def __init__(self, words: Sequence[str], built_from: BuiltFrom | None = None):
        """`words`: all tokens in index order; raises ValueError as `check_words`."""
        self.words = check_words(words)
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
        words = _tokens(caption)
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

    def as_json(self) -> str:
        """The words and, if known, what they were built from."""
        content: dict[str, Any] = {"words": self.words}
        if self.built_from:
            content = {"built_from": self.built_from._asdict(), **content}
        return json.dumps(content, ensure_ascii=False, indent=0)

    def save(self, path: Path) -> None:
        """Write `as_json` to a file."""
        write_text(path, self.as_json())

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote; raises UserError if there is no vocabulary at `path`."""
        require_regular(path)
        try:
            if path.stat().st_size > _LARGEST:
                raise UserError(f"{path} is too large for a vocabulary; delete it")
            content = _Content.model_validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        except FileNotFoundError:
            raise UserError(f"no vocabulary at {path}; write one with build_vocab.py") from None
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {path} ({error.strerror})") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{path} is not a vocabulary ({where}{': ' * bool(where)}"
                f"{first['msg'].removeprefix('Value error, ')}); delete it or write a new one with "
                "build_vocab.py"
            ) from None
        return cls(content.words, content.built_from)


def find_vocabulary(data: DataConfig, table: "pd.DataFrame") -> Vocabulary:
    """The vocabulary for training on `table`.

    The file that build_vocab.py writes beside the captions is used if it was built from the same training
    captions with the same data.min_freq. Its words may have been edited.
    """
    from data.captions import training_captions  # here, because captioning needs no pandas, which takes time

    captions = training_captions(data, table)
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
    return caption_paths(data)[0].parent / "vocab.json"


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
    return Counter(word for caption in captions for word in _tokens(caption))


def _tokens(caption: str) -> list[str]:
    from data.tokenizer import tokenize  # here, because nltk takes long to import, and captioning needs none

    return tokenize(caption)
