"""Ctrl-C and SIGTERM during a step: the step ends and is saved before the program does."""

import signal


class Interruption:
    """Inside `with`, the first SIGINT or SIGTERM is only recorded. A second one has its usual effect."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal that was received
        self.handlers: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self.handlers = {n: signal.signal(n, self.record) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        self.restore()

    def record(self, number: int, _frame) -> None:
        """Signal handler."""
        self.number = number
        self.restore()

    def restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    @property
    def status(self) -> int:
        """The exit status, as shells report it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.number or 0)
