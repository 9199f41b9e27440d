"""Rewards of sampled captions: CIDEr-D and sentence BLEU-4 of whole batches of token ids, without strings.

An n-gram is a number: up to four word indices packed into 64 bits. All n-grams of a batch are looked up in
sorted arrays at once. The scores equal pycocoevalcap's on the same sentences. `<eos>` counts as the last word
of a sentence, in references and captions alike (as in the implementation of Rennie et al.): without it, a
caption that breaks off ("a man with a") would get as much reward as a complete one.
"""

from dataclasses import dataclass

import numpy as np

from utils import PAD, UserError

_ORDERS = 4  # n-grams of 1 to 4 words
_BITS = 16  # of a word's index in a packed n-gram
_SIGMA = 6.0  # words, the width of CIDEr-D's length penalty


@dataclass(frozen=True)
class _NGrams:
    """The distinct n-grams of each of B sentences, P in all."""

    keys: np.ndarray  # (D,) int64, the packed word indices, ascending; a shorter n-gram has zeros in front
    row: np.ndarray  # (P,) index of the sentence
    key: np.ndarray  # (P,) index of the n-gram in `keys`
    order: np.ndarray  # (P,) n - 1
    count: np.ndarray  # (P,) how often the n-gram occurs in the sentence


def count_ngrams(tokens: np.ndarray) -> _NGrams:
    """`tokens`: (B, T) int64, sentences padded on the right with <pad>, which is never part of an n-gram."""
    key = np.zeros_like(tokens, shape=(len(tokens), tokens.shape[1] + 1))
    rows, keys = [], []
    for n in range(min(_ORDERS, tokens.shape[1])):
        key = key[:, :-1] << _BITS | tokens[:, n:]
        row, at = np.nonzero(tokens[:, n:] != PAD)
        rows.append(row)
        keys.append(key[row, at])
    distinct, key = np.unique(np.concatenate(keys), return_inverse=True)
    pair, count = np.unique(np.concatenate(rows) * len(distinct) + key, return_counts=True)
    row, key = np.divmod(pair, len(distinct))
    order = sum((distinct >> _BITS * n != 0).astype(np.int64) for n in range(1, _ORDERS))
    return _NGrams(distinct, row, key, order[key], count)


class Rewards:
    """`rewards(tokens, image_index)` scores captions against the references of their images."""

    def __init__(
        self,
        captions: np.ndarray,
        image_index: np.ndarray,
        vocab_size: int,
        cider: float = 1.0,
        bleu: float = 0.0,
        equal_weights: bool = False,
    ):
        """Count the n-grams of the references, which also yield the document frequencies of CIDEr-D.

        Args:
            captions: (R, T) int64, reference captions: words and <eos>, padded on the right, without <sos>.
            image_index: (R,) which of the N images a caption describes, ascending, each image at least once.
            vocab_size: number of words in the vocabulary.
            cider: weight of CIDEr-D, which lies between 0 and 10.
            bleu: weight of sentence BLEU-4, which lies between 0 and 1.
            equal_weights: CIDEr-D without document frequencies: all n-grams have the weight 1.

        Raises:
            UserError: the vocabulary is too large for an n-gram to fit into 64 bits.
        """
        if vocab_size > 1 << _BITS:
            raise UserError(
                f"a vocabulary of {vocab_size:,} words is too large for rewards (at most {1 << _BITS:,}); "
                "raise data.min_freq in the run that train.init_from names"
            )
        self.weights = {"cider": cider, "bleu": bleu}
        per_image = np.bincount(image_index)
        n, width = len(per_image), per_image.max()
        slot = np.arange(len(image_index)) - np.repeat(np.cumsum(per_image) - per_image, per_image)

        grams = count_ngrams(captions)
        self.keys, gram = grams.keys, grams.key
        # One entry for each image and n-gram of its references, with its count in each of them.
        self.entries, entry = np.unique(image_index[grams.row] * len(self.keys) + gram, return_inverse=True)
        self.counts = np.zeros((len(self.entries), width), np.min_scalar_type(grams.count.max()))
        self.counts[entry, slot[grams.row]] = grams.count
        frequency = np.bincount(self.entries % len(self.keys))
        self.log_images = np.log(n)
        self.idf = self.log_images - np.log(frequency)  # every key occurs in a reference: no log of 0
        if equal_weights:
            self.log_images, self.idf = 1.0, np.ones(len(frequency))

        norm = _vector_norms(grams, grams.count * self.idf[gram], len(captions))
        self.norm = np.zeros((n, width, _ORDERS))
        self.norm[image_index, slot] = norm
        self.lengths = np.full((n, width), -1)  # tokens of each reference, -1 if there are fewer
        self.lengths[image_index, slot] = (captions != PAD).sum(axis=1)

    def __call__(self, tokens: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        """The weighted sum of both scores, (B,) float64.

        Args:
            tokens: (B, T) int64, captions: words and <eos>, padded on the right, without <sos>.
            image_index: (B,) which of the N images each caption describes.
        """
        grams = count_ngrams(tokens)
        idf, references = self.look_up(grams, image_index)
        lengths = (tokens != PAD).sum(axis=1)
        reward = np.zeros(len(tokens))
        if self.weights["cider"]:
            reward += self.weights["cider"] * self.cider_d(grams, idf, references, lengths, image_index)
        if self.weights["bleu"]:
            reward += self.weights["bleu"] * self.bleu_4(grams, references, lengths, image_index)
        return reward

    def look_up(self, grams: _NGrams, image_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each n-gram's idf (P,), and how often it occurs in each reference of its image (P, J)."""
        gram, known = (found[grams.key] for found in _find(grams.keys, self.keys))
        # A document frequency of 0 counts as 1, as in pycocoevalcap.
        idf = np.where(known, self.idf[gram], self.log_images)
        entry, found = _find(image_index[grams.row] * len(self.keys) + gram, self.entries)
        return idf, self.counts[entry] * (known & found)[:, None]

    def cider_d(self, grams: _NGrams, idf, references, lengths, image_index) -> np.ndarray:
        """CIDEr-D (Vedantam et al., 2015, section 4), with clipping and the Gaussian length penalty: (B,)."""
        num_captions, width = len(lengths), references.shape[1]
        weight, reference_weight = grams.count * idf, references * idf[:, None]
        shared = np.minimum(weight[:, None], reference_weight) * reference_weight
        bins = grams.row * _ORDERS + grams.order
        sums = [np.bincount(bins, shared[:, j], num_captions * _ORDERS) for j in range(width)]
        dot = np.stack([each.reshape(num_captions, _ORDERS) for each in sums], axis=1)  # (B, J, 4)
        norm = _vector_norms(grams, weight, num_captions)[:, None] * self.norm[image_index]  # (B, J, 4)
        cosine = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0).mean(axis=2)
        # pycocoevalcap's length is the number of word pairs, so no word and one word are equally long.
        delta = np.maximum(lengths[:, None] - 1, 0) - np.maximum(self.lengths[image_index] - 1, 0)
        similarity = cosine * np.exp(-(delta**2) / (2 * _SIGMA**2))
        return 10 * similarity.sum(axis=1) / (self.lengths[image_index] >= 0).sum(axis=1)

    def bleu_4(self, grams: _NGrams, references, lengths, image_index) -> np.ndarray:
        """Sentence BLEU-4 (Papineni et al., 2002) against the reference of the nearest length: (B,)."""
        num_captions = len(lengths)
        clipped = np.minimum(grams.count, references.max(axis=1))
        bins = grams.row * _ORDERS + grams.order
        correct = np.bincount(bins, clipped, num_captions * _ORDERS).reshape(num_captions, _ORDERS)
        guesses = np.maximum(lengths[:, None] - np.arange(_ORDERS), 0)
        small, tiny = 1e-9, 1e-15  # as in pycocoevalcap, to avoid a division by zero
        bleu = ((correct + tiny) / (guesses + small)).prod(axis=1) ** (1 / _ORDERS)
        reference_lengths = self.lengths[image_index]
        distance = np.where(reference_lengths < 0, np.inf, np.abs(reference_lengths - lengths[:, None]))
        is_nearest = distance == distance.min(axis=1, keepdims=True)
        nearest = np.where(is_nearest, reference_lengths, np.inf).min(axis=1)
        ratio = (lengths + tiny) / (nearest + small)
        return bleu * np.exp(np.minimum(1 - 1 / ratio, 0))


def _find(wanted: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of each value in `ascending`, and whether it is there; otherwise it is arbitrary."""
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return at, ascending[at] == wanted


def _vector_norms(grams: _NGrams, weight: np.ndarray, num_sentences: int) -> np.ndarray:
    """Euclidean norm of each sentence's vector of n-gram weights (P,), per order: (B, 4)."""
    bins = grams.row * _ORDERS + grams.order
    return np.sqrt(np.bincount(bins, weight**2, num_sentences * _ORDERS)).reshape(num_sentences, _ORDERS)
