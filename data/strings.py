"""Many strings in little memory."""

from collections.abc import Iterable, Sequence

import numpy as np


class Strings(Sequence[str]):
    """Strings in one flat buffer; indexing creates a `str`.

    A list would take a hundred bytes per word, and every worker would copy it as soon as it changes the
    reference counts.
    """

    def __init__(self, buffer: bytes, start: np.ndarray):
        """`start`: where each string begins in the buffer, and the end of the last one."""
        self.buffer, self.start = buffer, start

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Strings":
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        return cls(b"".join(encoded), np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= i < len(self):  # ends an iteration
            raise IndexError(i)
        return self.buffer[self.start[i] : self.start[i + 1]].decode("utf-8", "surrogatepass")
