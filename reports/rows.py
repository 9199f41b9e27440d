"""captions.jsonl: a line for each captioned image, added as soon as there is a caption.

So a run of any length can be stopped and resumed, and needs no memory for its captions.
"""

import base64
import json
import os
from collections.abc import Iterator
from io import FileIO
from typing import Any

import numpy as np

from caption_types import Caption, Hypothesis, Word
from data.image_source import ImageSource
from files import cannot_write
from outputs import OutputFolder
from utils import UserError

_BEGINNING = b'{"image": '  # of every row


class CaptionRows:
    """The rows in the file `name` of a folder of results, which only grows."""

    def __init__(self, outputs: OutputFolder, name: str, resume: bool):
        """With `resume`, rows of an earlier run stay.

        Raises UserError if there are any and they are neither to be kept nor those of a run that has ended.
        """
        self.outputs, self.name, self.path = outputs, name, outputs.folder / name
        self.file: FileIO | None = None
        exists = os.path.lexists(self.path)
        if exists and resume and (self.path.is_symlink() or not self.path.is_file()):
            raise UserError(f"{self.path} is not a file; move it, or choose another --output")
        if exists and not resume and not outputs.is_own(name):
            raise UserError(
                f"{self.path} exists, perhaps of a run that was stopped; continue that run with --resume, "
                "remove the file, or choose another --output"
            )

    def begin(self) -> None:
        """Discard the rows of an earlier run."""
        self.outputs.remove(self.name)

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows so far. Cuts off an incomplete last line; raises UserError for a line that was changed."""
        try:
            file = open(self.path, "r+b")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return
        except OSError as error:
            raise cannot_write(self.path, error) from None
        with file:
            size = 0
            for number, line in enumerate(file, start=1):
                is_cut_off = not line.endswith(b"\n")  # the process was killed, or the power failed
                if is_cut_off and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                    file.truncate(size)
                    return
                size += len(line)
                try:
                    row = json.loads(line)
                    if not isinstance(row["image"], str) or not isinstance(row["caption"], str):
                        raise TypeError
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{self.path}: line {number} is not as this program wrote it; move the file, or "
                        "choose another --output"
                    ) from None
                yield row

    def add(self, row: dict[str, Any]) -> None:
        """Append a row. Raises UserError if it cannot be written."""
        # A lone surrogate becomes JSON's escape sequence, as in OutputFolder.write_text.
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (stays open with the object)
            size, rest = os.fstat(self.file.fileno()).st_size, memoryview(line)
            try:
                while rest:
                    rest = rest[self.file.write(rest) :]
            except OSError:
                self.file.truncate(size)
                raise
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """All rows are written. From now on, a new run may replace them."""
        if self.file:
            self.file.close()
            self.file = None
        if self.path.exists():
            self.outputs.record(self.name)


def row_of(name: str, result: Caption, with_attention: bool) -> dict[str, Any]:
    """The row of an image, which `result_of` reads; attention is float32 in base64."""
    row = {"image": name, "caption": result.caption, "log_prob": result.log_prob}
    row |= {"words": result.words, "others": result.others}
    if with_attention and result.attention is not None:
        cells = base64.b64encode(result.attention.astype("<f4").tobytes()).decode("ascii")
        row["attention"] = {"shape": result.attention.shape, "float32": cells}
    return row


def result_of(row: dict[str, Any], source: ImageSource) -> Caption:
    """The result of a row; raises ValueError, KeyError or TypeError if it was changed."""
    attention = None
    if "attention" in row:
        cells = np.frombuffer(base64.b64decode(row["attention"]["float32"]), "<f4")
        attention = cells.reshape(row["attention"]["shape"]).astype(np.float32)
    return Caption(
        source,
        row["caption"],
        row["log_prob"],
        [Word(*word) for word in row["words"]],
        [Hypothesis(*other) for other in row["others"]],
        attention,
    )
