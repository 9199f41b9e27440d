"""Progress of long work: a tqdm bar on a terminal, plain lines elsewhere."""

import os
import sys
import time

from tqdm import tqdm

_LINE_EVERY = 15  # seconds between plain lines


class Progress:
    """`with Progress(total, "features", "images") as progress: … progress.update(n)`.

    Shows the count, the rate, the time left, and the latest text passed to `note`.
    """

    def __init__(self, total: int, title: str, unit: str, initial: int = 0, keep: bool = True):
        """`initial`: how many of `total` are already done. `keep`: whether the finished bar or line stays."""
        self.total, self.title, self.unit, self.keep = total, title, unit, keep
        self.done = self.initial = initial
        self.started = self.printed = time.monotonic()
        self.text = ""
        self.bar = tqdm(
            total=total, initial=initial, desc=title, unit=f" {unit}", leave=keep, dynamic_ncols=True,
            disable=not (sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"),  # see processes.py
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def note(self, text: str) -> None:
        """Show `text` after the count, starting with the next update."""
        self.text = text
        self.bar.set_postfix_str(text, refresh=False)

    def update(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self.done += n
        self.bar.update(n)
        now = time.monotonic()
        finished = self.done == self.total
        if self.bar.disable and (now - self.printed > _LINE_EVERY or (finished and self.keep)):
            self.printed = now
            rate = (self.done - self.initial) / max(now - self.started, 1e-9)
            left = (self.total - self.done) / rate
            note = f", {self.text}" if self.text else ""
            print(
                f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left{note}",
                flush=True,
            )
