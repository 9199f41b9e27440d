"""metrics/rewards.py: the scores that training optimises are the ones that are reported."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider_scorer import CiderScorer

from metrics.rewards import Rewards, count_ngrams
from utils import EOS, UserError

NUM_IMAGES, VOCAB_SIZE = 40, 16


def pad(sentences: list[list[int]]) -> np.ndarray:
    rows = np.zeros((len(sentences), max(map(len, sentences))), np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = sentence
    return rows


def sentences(seed: int, count: int) -> list[list[int]]:
    """Of few words, so that many n-grams agree; 0 to 12 words and, all but every fifth one, <eos>."""
    random = np.random.default_rng(seed)
    return [
        [*random.integers(4, VOCAB_SIZE, random.integers(0, 13)).tolist(), *([EOS] if i % 5 else [4])]
        for i in range(count)
    ]


def invented() -> tuple[list[list[int]], np.ndarray]:
    """Reference captions of NUM_IMAGES images, 1 to 5 for each, and which image each describes."""
    images = np.repeat(np.arange(NUM_IMAGES), 1 + np.arange(NUM_IMAGES) % 5)
    return sentences(0, len(images)), images


def make(**weights) -> Rewards:
    references, images = invented()
    return Rewards(pad(references), images, VOCAB_SIZE, **weights)


def text(sentence: list[int]) -> str:
    return " ".join(map(str, sentence))


def theirs(candidates: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """pycocoevalcap's CIDEr-D and BLEU-4 of one candidate per image."""
    references, images = invented()
    gts = {
        i: [text(s) for s, image in zip(references, images, strict=True) if image == i]
        for i in range(NUM_IMAGES)
    }
    # What pycocoevalcap calls Cider clips and punishes lengths: it is the paper's CIDEr-D.
    cider = CiderScorer(n=4, sigma=6.0)
    for i, candidate in enumerate(candidates):
        cider += (text(candidate), gts[i])
    _, ciders = cider.compute_score()
    _, bleus = Bleu(4).compute_score(gts, {i: [text(c)] for i, c in enumerate(candidates)}, verbose=0)
    return ciders, np.array(bleus[3])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rewards_equal_pycocoevalcaps_on_the_same_sentences(seed):
    candidates = sentences(seed, NUM_IMAGES)
    references, _ = invented()
    candidates[0], candidates[1] = references[0], [5, 5, 5, 5, 5, 5, EOS]
    candidates[2], candidates[3] = [EOS], [15]
    ciders, bleus = theirs(candidates)
    assert (bleus > 0.01).any()
    tokens, images = pad(candidates), np.arange(NUM_IMAGES)
    np.testing.assert_allclose(make()(tokens, images), ciders, atol=1e-9)
    np.testing.assert_allclose(make(cider=0, bleu=1)(tokens, images), bleus, atol=1e-9)
    np.testing.assert_allclose(make(cider=0.5, bleu=2)(tokens, images), 0.5 * ciders + 2 * bleus, atol=1e-9)


def test_a_batch_scores_several_captions_of_an_image_in_any_order():
    candidates = sentences(4, 2 * NUM_IMAGES)
    images = np.concatenate([np.arange(NUM_IMAGES), np.arange(NUM_IMAGES)])
    expected = np.concatenate([theirs(candidates[:NUM_IMAGES])[0], theirs(candidates[NUM_IMAGES:])[0]])
    order = np.random.default_rng(5).permutation(len(images))
    np.testing.assert_allclose(make()(pad(candidates)[order], images[order]), expected[order], atol=1e-9)


def test_every_ngram_of_a_reference_is_found_again():
    references, images = invented()
    scores = make(cider=0, bleu=1)(pad(references), images)
    long = np.array([len(reference) >= 4 for reference in references])
    np.testing.assert_allclose(scores[long], 1, atol=1e-6)


def test_padding_changes_no_reward():
    tokens, images = pad(sentences(6, NUM_IMAGES)), np.arange(NUM_IMAGES)
    wide = np.pad(tokens, ((0, 0), (0, 7)))
    rewards = make(bleu=1)
    np.testing.assert_array_equal(rewards(tokens, images), rewards(wide, images))


def test_a_word_is_counted_however_often_it_occurs():
    often, once = [4] * 260 + [EOS], [4, EOS]  # one byte counts to 255
    rewards = Rewards(pad([often, [5, EOS]]), np.arange(2), VOCAB_SIZE, cider=0, bleu=1)
    same, fewer = rewards(pad([often, once * 2]), np.zeros(2, np.int64))
    assert same == pytest.approx(1)
    assert fewer < 0.5


def test_the_end_of_a_sentence_is_rewarded():
    references = [[4, 5, 6, 7, EOS], [8, 9, 10, 11, EOS], [12, 13, 14, EOS]]
    rewards = Rewards(pad(references), np.arange(3), VOCAB_SIZE, cider=1, bleu=1)
    ended, cut = rewards(pad([[4, 5, 6, 7, EOS], [4, 5, 6, 7]]), np.zeros(2, np.int64))
    assert ended == pytest.approx(10 * 1 + 1)  # idf of <eos> alone is 0, but that of "7 <eos>" is not
    assert cut < ended - 0.5


def test_the_largest_vocabulary_packs_without_collisions_and_a_larger_one_is_refused():
    last = (1 << 16) - 1
    tokens = np.array([[last, 4, last, last], [4, last, 4, last]])
    grams = count_ngrams(tokens)
    assert len(set(grams.key.tolist())) == 2 + 3 + 3 + 2  # of one to four words
    assert np.bincount(grams.order).tolist() == [4, 5, 4, 2]
    Rewards(tokens, np.arange(2), last + 1)
    with pytest.raises(UserError, match=r"data\.min_freq"):
        Rewards(tokens, np.arange(2), last + 2)
