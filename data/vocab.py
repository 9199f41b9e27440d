"""Words and their indices."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.tokenizer import tokenize
from files import replacing
from utils import EOS, PAD, SOS, UNK, UserError

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")


class Vocabulary:
    """The words a model knows, with indices in [0, len). The four special tokens come first."""

    def __init__(self, words: Sequence[str]):
        """`words`: every token in order of index, special tokens first; raises ValueError otherwise."""
        if tuple(words[:4]) != SPECIAL or len(set(words)) != len(words):
            raise ValueError(f"a vocabulary begins with {' '.join(SPECIAL)} and holds each word once")
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, captions: Iterable[str], min_freq: int) -> "Vocabulary":
        """From training captions: the words seen `min_freq` times or more, most frequent first."""
        counts = count_words(captions)
        # Ties go by the alphabet, so that the order of the captions file does not change the indices.
        frequent = sorted((-n, word) for word, n in counts.items() if n >= min_freq and word not in SPECIAL)
        return cls([*SPECIAL, *(word for _, word in frequent)])

    def __len__(self) -> int:
        return len(self.words)

    def numericalize(self, caption: str, max_length: int | None = None) -> list[int]:
        """`<sos> words <eos>` as indices in [0, len); a word that is not here becomes `<unk>`.

        A caption of more than `max_length` words is cut and gets no `<eos>`: it did not end there.
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
        """Share of the captions' words that are in the vocabulary."""
        counts = count_words(captions)
        return sum(n for word, n in counts.items() if word in self.index) / max(counts.total(), 1)

    def save(self, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"words": self.words}, ensure_ascii=False, indent=0), "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Raises UserError where there is no vocabulary at `path`."""
        try:
            return cls(json.loads(path.read_text("utf-8"))["words"])
        except FileNotFoundError:
            raise UserError(f"no vocabulary at {path}; build_vocab.py writes one") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a vocabulary ({error}); write it anew with build_vocab.py"
            ) from None


def count_words(captions: Iterable[str]) -> Counter[str]:
    return Counter(word for caption in captions for word in tokenize(caption))


def find_vocabulary(data, table) -> Vocabulary:
    return Vocabulary.build(table.loc[table["split"] == "train", "caption"], data.min_freq)
