"""Vectors for words: learned embeddings, one-hot vectors, or vectors from a file."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import nn

from files import require_regular
from utils import UserError

_LONGEST_LINE = 2**18  # bytes; vectors of 10,000 numbers take 130,000


class WordEmbedding(nn.Embedding):
    """Embeddings of unit variance, stored as small weights that the output layer can share.

    Tied weights have two uses. As output weights they must be small, so that the loss starts near log V. As
    input they must be as large as the LSTM's state. The input is therefore scaled by sqrt(dim) (Vaswani et
    al., 2017, section 3.4); otherwise the words hardly change the state in the first epochs.
    """

    def __init__(self, vocab_size: int, dim: int):
        super().__init__(vocab_size, dim)
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) * self.embedding_dim**0.5

    @torch.no_grad()
    def start_from(self, path: Path, words: Sequence[str]) -> int:
        """Initialise words with their vectors in a GloVe or word2vec file; other words stay random.

        All vectors are scaled by one factor to a root mean square of 1 / sqrt(dim), the size of the random
        weights. Their angles and the ratios of their lengths do not change.

        Args:
            path: a text file; see `read_vectors`.
            words: the word of each row.

        Returns:
            How many of the words are in the file.

        Raises:
            UserError: as in `read_vectors`, or none of the words is in the file.
        """
        vectors = read_vectors(path, words, self.embedding_dim)
        if not vectors:
            raise UserError(f"decoder.embeddings={path}: none of the {len(words):,} words is in it")
        rows = [i for i, word in enumerate(words) if word in vectors]
        found = torch.from_numpy(np.stack([vectors[words[i]] for i in rows]))
        scale = (found.square().mean() * self.embedding_dim).sqrt()
        if not 0 < scale < torch.inf:
            raise UserError(f"decoder.embeddings={path}: its vectors are all zero, or too large; use others")
        self.weight[rows] = found / scale
        return len(rows)


class OneHotWords(nn.Module):
    """Each word as a vector with one nonzero element, at its index.

    This element is sqrt(V) instead of 1, which gives unit variance, as in WordEmbedding.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.num_embeddings = self.embedding_dim = vocab_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., V) float32."""
        zeros = torch.zeros(*tokens.shape, self.num_embeddings, device=tokens.device)
        return zeros.scatter_(-1, tokens.unsqueeze(-1), self.num_embeddings**0.5)


def read_vectors(path: Path, words: Sequence[str], dim: int) -> dict[str, np.ndarray]:
    """The vectors of those `words` that are in a GloVe or word2vec text file.

    A line is a word and its numbers. The first line of a word2vec file is a header: the number of words and
    the size of the vectors. GloVe has no header. Lines of other words are not parsed, so even a file of many
    gigabytes is read quickly, and only the returned vectors take memory.

    Args:
        words: words without spaces.
        dim: how many numbers each vector must have.

    Returns:
        word -> (dim,) float32; if a word occurs twice, its first vector.

    Raises:
        UserError: the file is missing or is not a text file of vectors, the vectors have another size, or a
            line is broken.
    """
    wanted = {word.encode(): word for word in words}
    vectors = {}
    try:
        require_regular(path)
    except UserError as error:
        raise UserError(f"decoder.embeddings={error}") from None
    try:
        with open(path, "rb") as file:
            has_header, found_dim = _header_and_dim(path, file)
            if found_dim != dim:
                raise UserError(
                    f"decoder.embed_dim={dim}: the vectors in {path} have {found_dim} numbers; "
                    f"set decoder.embed_dim={found_dim}"
                )
            file.seek(0)
            for number, line in enumerate(_lines(path, file), start=1):
                word = wanted.get(line[: line.find(b" ")])
                if word is None or word in vectors or (has_header and number == 1):
                    continue
                # GloVe's largest file has words with spaces: "at name@domain.com" is not the word "at".
                token, *numbers = line.rstrip().rsplit(b" ", dim)
                if token != word.encode() and len(numbers) == dim:
                    continue
                vectors[word] = _parse(path, number, numbers, dim)
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"decoder.embeddings={path}: {reason}; set it to learned, one_hot, or the path of a GloVe or "
            "word2vec text file"
        ) from None
    return vectors


def _header_and_dim(path: Path, file: IO[bytes]) -> tuple[bool, int]:
    """Whether the first line is a header, and how many numbers a vector has."""
    lines = islice(_lines(path, file), 100)
    first = next(lines, b"").split()
    if len(first) == 2 and all(part.isdigit() and len(part) < 20 for part in first):
        return True, int(first[1])
    # A word may contain spaces, so the shortest of the first lines determines how many numbers there are.
    dim = min([len(first), *(len(line.split()) for line in lines)]) - 1
    if dim < 1 or not all(map(_is_number, first[-dim:])):
        raise UserError(
            f"decoder.embeddings={path} is not a text file of vectors (a word and its numbers on each line); "
            "unpack a .zip or .gz, save a .bin as text"
        )
    return False, dim


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """The lines of the file; raises UserError for one that is too long to be a word and its numbers."""
    for line in iter(partial(file.readline, _LONGEST_LINE), b""):
        if len(line) == _LONGEST_LINE:
            raise UserError(
                f"decoder.embeddings={path} is not a text file of vectors (a line has more than "
                f"{_LONGEST_LINE:,} bytes); set decoder.embeddings to a GloVe or word2vec text file"
            )
        yield line


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(path: Path, number: int, numbers: list[bytes], dim: int) -> np.ndarray:
    """(dim,) float32; raises UserError for a line that is too short or contains anything but numbers."""
    if len(numbers) == dim and all(map(_is_number, numbers)):
        with np.errstate(over="ignore"):  # becomes infinite
            vector = np.array([float(text) for text in numbers], np.float32)
        if np.isfinite(vector).all():
            return vector
    raise UserError(f"decoder.embeddings={path}, line {number}: not {dim} numbers; is the file complete?")
