"""Rewards of sampled captions: CIDEr-D and sentence BLEU-4 of whole batches of token ids, without strings.

n-grams are numbers: four word indices packed into 64 bits. A batch is scored by looking its n-grams up in
sorted arrays, all at once. The scores are pycocoevalcap's on the same sentences, and `<eos>` is the last word
of a sentence here, of the references as of what is scored (as in Rennie et al.'s implementation): without it
in the reward, a caption that breaks off ("a man with a") is as good as one that ends.
"""

from typing import NamedTuple

import numpy as np

from utils import PAD, UserError

ORDERS = 4  # n-grams of 1 to 4 words
BITS = 16  # of a word's index in a packed n-gram
SIGMA = 6.0  # words, the width of CIDEr-D's length penalty


class NGrams(NamedTuple):
    """The different n-grams of each of B sentences, P in all."""

    row: np.ndarray  # (P,) which sentence
    key: np.ndarray  # (P,) int64, the words' indices packed; a shorter n-gram has zeros in front
    order: np.ndarray  # (P,) n - 1
    count: np.ndarray  # (P,) how often it occurs in the sentence


def count_ngrams(tokens: np.ndarray) -> NGrams:
    """`tokens` (B, T) int64, sentences padded on the right with <pad>, which is never part of an n-gram."""
    key = np.zeros_like(tokens, shape=(len(tokens), tokens.shape[1] + 1))
    rows, keys = [], []
    for n in range(min(ORDERS, tokens.shape[1])):
        key = key[:, :-1] << BITS | tokens[:, n:]
        row, at = np.nonzero(tokens[:, n:] != PAD)
        rows.append(row)
        keys.append(key[row, at])
    different, key = np.unique(np.concatenate(keys), return_inverse=True)
    pair, count = np.unique(np.concatenate(rows) * len(different) + key, return_counts=True)
    key = different[pair % len(different)]
    order = sum((key >> BITS * n != 0).astype(np.int64) for n in range(1, ORDERS))
    return NGrams(pair // len(different), key, order, count)


class Rewards:
    """`rewards(tokens, images)` scores captions against the references of the images that they describe."""

    def __init__(
        self, captions: np.ndarray, images: np.ndarray, words: int, cider: float = 1.0, bleu: float = 0.0
    ):
        """Count the references' n-grams; CIDEr-D's document frequencies are those of these references.

        Args:
            captions: (R, T) int64, reference captions: words and <eos>, padded on the right, without <sos>.
            images: (R,) which of the N images a caption describes, ascending, each image at least once.
            words: size of the vocabulary.
            cider, bleu: weights of CIDEr-D (between 0 and 10) and sentence BLEU-4 (between 0 and 1).

        Raises:
            UserError: the vocabulary is too large for an n-gram to fit into 64 bits.
        """
        if words > 1 << BITS:
            raise UserError(
                f"a vocabulary of {words:,} words is too large for rewards (at most {1 << BITS:,}); "
                "raise data.min_freq in the run that train.init_from names"
            )
        self.weights = {"cider": cider, "bleu": bleu}
        per_image = np.bincount(images)
        n, width = len(per_image), per_image.max()
        slot = np.arange(len(images)) - np.repeat(np.cumsum(per_image) - per_image, per_image)

        grams = count_ngrams(captions)
        self.keys, gram = np.unique(grams.key, return_inverse=True)
        # One entry per image and n-gram of its references, with the occurrences in each of them.
        self.entries, entry = np.unique(images[grams.row] * len(self.keys) + gram, return_inverse=True)
        self.counts = np.zeros((len(self.entries), width), np.uint8)
        self.counts[entry, slot[grams.row]] = grams.count
        frequency = np.bincount(self.entries % len(self.keys))
        self.log_images = np.log(n)
        self.idf = self.log_images - np.log(frequency)  # every n-gram known is one of some reference

        norm = length_of_vectors(grams, grams.count * self.idf[gram], len(captions))
        self.norm = np.zeros((n, width, ORDERS))
        self.norm[images, slot] = norm
        self.lengths = np.full((n, width), -1)  # tokens of each reference, -1 where an image has fewer
        self.lengths[images, slot] = (captions != PAD).sum(axis=1)

    def __call__(self, tokens: np.ndarray, images: np.ndarray) -> np.ndarray:
        """The weighted sum of both scores, (B,) float64.

        Args:
            tokens: (B, T) int64, captions: words and <eos>, padded on the right, without <sos>.
            images: (B,) which image each of them describes.
        """
        grams = count_ngrams(tokens)
        idf, references = self.look_up(grams, images)
        lengths = (tokens != PAD).sum(axis=1)
        reward = np.zeros(len(tokens))
        if self.weights["cider"]:
            reward += self.weights["cider"] * self.cider_d(grams, idf, references, lengths, images)
        if self.weights["bleu"]:
            reward += self.weights["bleu"] * self.bleu_4(grams, references, lengths, images)
        return reward

    def look_up(self, grams: NGrams, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each n-gram's idf (P,), and how often it occurs in each reference of its image (P, J)."""
        gram, known = find(grams.key, self.keys)
        # A document frequency of 0 counts as 1, as in pycocoevalcap.
        idf = np.where(known, self.idf[gram], self.log_images)
        entry, found = find(images[grams.row] * len(self.keys) + gram, self.entries)
        return idf, self.counts[entry] * (known & found)[:, None]

    def cider_d(self, grams: NGrams, idf, references, lengths, images) -> np.ndarray:
        """CIDEr-D (Vedantam et al., 2015, section 4), with clipping and the Gaussian length penalty: (B,)."""
        rows, width = len(lengths), references.shape[1]
        weight, theirs = grams.count * idf, references * idf[:, None]
        shared = np.minimum(weight[:, None], theirs) * theirs
        cell = grams.row * ORDERS + grams.order
        dot = np.stack(
            [np.bincount(cell, shared[:, j], rows * ORDERS).reshape(rows, ORDERS) for j in range(width)], 1
        )
        norm = length_of_vectors(grams, weight, rows)[:, None] * self.norm[images]  # (B, J, 4)
        cosine = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0).mean(axis=2)
        # pycocoevalcap measures a sentence by its pairs of words: one of no word is as long as one of one.
        delta = np.maximum(lengths[:, None] - 1, 0) - np.maximum(self.lengths[images] - 1, 0)
        similarity = cosine * np.exp(-(delta**2) / (2 * SIGMA**2))
        return 10 * similarity.sum(axis=1) / (self.lengths[images] >= 0).sum(axis=1)

    def bleu_4(self, grams: NGrams, references, lengths, images) -> np.ndarray:
        """Sentence BLEU-4 (Papineni et al., 2002) against the reference of the nearest length: (B,)."""
        rows = len(lengths)
        clipped = np.minimum(grams.count, references.max(axis=1))
        cell = grams.row * ORDERS + grams.order
        correct = np.bincount(cell, clipped, rows * ORDERS).reshape(rows, ORDERS)
        guesses = np.maximum(lengths[:, None] - np.arange(ORDERS), 0)
        small, tiny = 1e-9, 1e-15  # pycocoevalcap's, which keep it from dividing by zero
        bleu = ((correct + tiny) / (guesses + small)).prod(axis=1) ** (1 / ORDERS)
        theirs = self.lengths[images]
        distance = np.where(theirs < 0, np.inf, np.abs(theirs - lengths[:, None]))
        nearest = np.where(distance == distance.min(axis=1, keepdims=True), theirs, np.inf).min(axis=1)
        ratio = (lengths + tiny) / (nearest + small)
        return bleu * np.exp(np.minimum(1 - 1 / ratio, 0))


def find(wanted: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in `ascending` each value is, and whether it is there; where it is not, any place."""
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return at, ascending[at] == wanted


def length_of_vectors(grams: NGrams, weight: np.ndarray, rows: int) -> np.ndarray:
    """Euclidean norm of the vectors of weights (P,), per sentence and order: (B, 4)."""
    squares = np.bincount(grams.row * ORDERS + grams.order, weight**2, rows * ORDERS)
    return np.sqrt(squares).reshape(rows, ORDERS)
