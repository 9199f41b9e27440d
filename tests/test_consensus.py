"""Minimum-Bayes-risk choice among captions."""

import math

import pytest
import torch

from metrics.consensus import by_consensus
from models.search import Captions, SearchOptions, search
from tests.test_search import WORDS, Bigrams
from utils import EOS


def captions_of(*images: list[list[int]]) -> Captions:
    """Captions without padding at the end, in this order; an empty list is a caption that does not exist."""
    width = max(len(words) for beams in images for words in beams)
    tokens = torch.tensor([[words + [0] * (width - len(words)) for words in beams] for beams in images])
    scores = torch.tensor([[-float(k) if words else -math.inf for k, words in enumerate(b)] for b in images])
    return Captions(tokens, tokens / 100, scores, tokens.unsqueeze(3) / 10)


def test_the_caption_that_is_most_like_the_others_is_chosen():
    # The third shares 4 5 with the second, and 4 5 6 with the fourth; the first shares only <eos>.
    one = [[9, EOS], [4, 5, EOS], [4, 5, 6, EOS], [4, 5, 6, 7, EOS]]
    found = by_consensus(captions_of(one))
    assert found.tokens[0, 0].tolist() == [4, 5, 6, EOS, 0]
    assert found.tokens[0, -1].tolist() == [9, EOS, 0, 0, 0]
    assert torch.equal(found.log_probs, found.tokens / 100)  # everything moves along
    assert torch.equal(found.attention, found.tokens.unsqueeze(3) / 10)


def test_the_score_is_the_mean_cider_with_equal_weights():
    # Both have 5 tokens, of which the first 4 are the same: n-grams of 1 to 4 words share 4, 3, 2 and 1, of
    # 5, 4, 3 and 2. A caption has the score 10 with itself.
    found = by_consensus(captions_of([[4, 5, 6, 7, EOS], [4, 5, 6, 7, 8]]))
    other = 10 * (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 4
    assert found.scores[0].tolist() == pytest.approx([(10 + other) / 2] * 2)
    assert found.tokens[0, 0].tolist() == [4, 5, 6, 7, EOS]  # of equal ones the first remains


def test_captions_that_do_not_exist_count_for_nothing_and_images_do_not_mix():
    one, other = [[4, 5, EOS], [4, 6, EOS], []], [[7, EOS], [8, 9, EOS], [8, 9, EOS]]
    found = by_consensus(captions_of(one, other))
    assert found.tokens[0, 0].tolist() == [4, 5, EOS]
    assert found.scores[0, 2] == -math.inf
    assert found.tokens[1].tolist() == [[8, 9, EOS], [8, 9, EOS], [7, EOS, 0]]
    alone = by_consensus(captions_of(one))
    assert torch.equal(found.scores[0], alone.scores[0])


def test_reranking_needs_several_samples_and_the_first_is_the_one_without():
    grid = torch.randn(20, WORDS, WORDS)
    options = {"temperature": 1.0, "max_length": 5, "seed": 3}
    one = search(Bigrams(), grid, SearchOptions(**options)).tokens
    several = search(Bigrams(), grid, SearchOptions(beam=4, rerank="cider", **options))
    assert several.tokens.shape[:2] == (20, 4)
    assert torch.equal(several.tokens[:, :1, : one.shape[2]], one)
    assert len({tuple(tokens) for tokens in several.tokens[0].tolist()}) > 1
    # A batch changes nothing, and each log-probability belongs to its word.
    half = search(Bigrams(), grid[10:], SearchOptions(beam=4, rerank="cider", **options), range(10, 20))
    width = half.tokens.shape[2]
    assert torch.equal(several.tokens[10:, :, :width], half.tokens)
    own = grid.log_softmax(dim=2)
    for k in range(4):
        first = several.tokens[:, k, 0]
        torch.testing.assert_close(several.log_probs[:, k, 0], own[torch.arange(20), 1, first])
