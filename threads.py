"""How many threads a CPU computes with: one for each core that other programs leave free.

The threads of an operation wait for the slowest of them. One that shares its core with another program takes
twice as long, so all do: on two cores, beside one busy program, two threads are slower than one.
"""

import contextlib
import os
import time
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

_STATISTICS = Path("/proc/stat")  # Linux
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time, and in how many
# Columns of _STATISTICS that take time from this process: user, system, interrupts, and other virtual
# machines. Programs of a lower priority (nice) are left out, because they give way.
_BUSY = (1, 3, 6, 7, 8)


class Times(NamedTuple):
    clock: float  # seconds
    everyone: float  # CPU seconds of all programs on the cores that this process may use
    own: float  # CPU seconds of this process


def threads_are_set() -> bool:
    """Whether the environment sets the number of threads, as torchrun's does."""
    return "OMP_NUM_THREADS" in os.environ


@cache
def cores() -> int:
    """How many cores this process may use."""
    count = len(_own_cores()) or os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit: `max`
        quota, period = map(int, _QUOTA.read_text().split())
        count = min(count, ceil(quota / period))
    return count


@cache
def busy_cores() -> int:
    """How many of them other programs have kept busy while this one imported its libraries; 0 if unknown."""
    now = _times()
    return busy_between(_STARTED, now) if _STARTED and now else 0


def busy_between(before: Times, now: Times) -> int:
    seconds = now.clock - before.clock
    others = (now.everyone - before.everyone) - (now.own - before.own)
    return max(round(others / seconds), 0) if seconds > 0.1 else 0  # less says nothing


def busy_seconds(statistics: str, own_cores: set[int], ticks_per_second: int) -> float:
    """CPU seconds of all programs on `own_cores` since the system started, from the text of /proc/stat."""
    names = {f"cpu{core}" for core in own_cores}
    rows = [line.split() for line in statistics.splitlines()]
    return sum(int(row[i]) for row in rows if row[0] in names for i in _BUSY) / ticks_per_second


def _own_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _times() -> Times | None:
    try:
        everyone = busy_seconds(_STATISTICS.read_text(), _own_cores(), os.sysconf("SC_CLK_TCK"))
    except OSError:
        return None
    return Times(time.monotonic(), everyone, time.process_time())


_STARTED = _times()  # startup.py imports this file before any library
