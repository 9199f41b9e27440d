"""What a search is asked for, and what it returns."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from pydantic import Field

from config_search import SearchConfig
from data.vocab import SPECIAL, Vocabulary
from utils import UserError, did_you_mean


class SearchOptions(SearchConfig):
    """The section `search` of the configuration with tokens for its words, and the seed of sampling."""

    exclude: list[int] = Field([])  # type: ignore[assignment]
    include: list[list[int]] = Field([])  # type: ignore[assignment]  # one token of each list must occur
    seed: int = Field(0, ge=0, description="seed of sampling")

    @classmethod
    def of(cls, config: SearchConfig, vocabulary: Vocabulary, seed: int) -> "SearchOptions":
        """Raises UserError if `vocabulary` does not have a word, or a word is to occur and not to occur."""

        def tokens(key: str, words: Sequence[str]) -> list[int]:
            return [_token(f"search.{key}", word, vocabulary) for word in words]

        exclude = tokens("exclude", config.exclude)
        include = [tokens("include", words.split("|")) for words in config.include]
        for token in set(exclude).intersection(chain(*include)):
            word = vocabulary.words[token]
            raise UserError(f"search.include, search.exclude: {word!r} is in both; remove it from one")
        return cls(**{**config.model_dump(), "exclude": exclude, "include": include, "seed": seed})

    @property
    def num_sequences(self) -> int:
        """Beams, or samples, that are continued for each image."""
        if self.temperature > 0:
            return self.beam if self.rerank != "none" else 1
        return self.beam * 2 ** len(self.include)


def _token(key: str, word: str, vocabulary: Vocabulary) -> int:
    if word in SPECIAL or word not in vocabulary.index:
        words = vocabulary.words[len(SPECIAL) :]
        hint = did_you_mean(word, words) or f"; it has {len(words):,} others"
        raise UserError(f"{key}={word}: the model's vocabulary does not have this word{hint}")
    return vocabulary.index[word]


class Captions(NamedTuple):
    """K captions for each of N images, best first. `<unk>` never occurs.

    K is `search.beam`, or the number of all captions that the search has seen if that is smaller; samples are
    one per image, or with `search.rerank` as many as beams. The sum of a caption's `log_probs` includes that
    of its <eos>.
    """

    tokens: torch.Tensor  # (N, K, T) int64, the words and <eos>, then <pad>
    log_probs: torch.Tensor  # (N, K, T) logarithm of the model's probability of each token; 0 for padding
    scores: torch.Tensor  # (N, K) what the captions are ranked by; -inf if there are fewer captions
    attention: torch.Tensor | None  # (N, K, T, L) alphas of each word, or None

    def select(self, order: torch.Tensor) -> "Captions":
        """Of each image, the captions with these numbers (N, K'), in this order."""
        images = torch.arange(len(order), device=order.device).unsqueeze(1)
        attention = None if self.attention is None else self.attention[images, order]
        tokens, log_probs, scores = (x[images, order] for x in self[:3])
        return Captions(tokens, log_probs, scores, attention)
