"""Search for inputs that break a promise: python -m tests.hostile [--minutes N] [--only TEXT]

Tries all tables, then valid files with random damage until the time is over. Ends with the number of inputs
and of broken promises, and with status 1 if there are any.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from tests.hostile.attempt import Hostile, broken
from tests.hostile.mutations import DOORS, Door
from tests.hostile.place import build, copy_of
from tests.hostile.tables import GROUPS, INPUTS, MORE

_EXAMPLES = 200  # of a door, before the next one has its turn


class Search:
    """Tries inputs and counts them; broken promises are printed."""

    def __init__(self, scratch: Path, only: str):
        self.scratch, self.only = scratch, only
        self.place = build(scratch / "place")
        self.tried = self.broken = 0

    def tables(self) -> None:
        for inputs in ([hostile] for hostile in (*INPUTS, *MORE)):
            self.group(inputs)
        for inputs in GROUPS.values():
            self.group(inputs)

    def group(self, inputs: list[Hostile]) -> None:
        inputs = [hostile for hostile in inputs if self.only in hostile.name]
        if inputs:
            folder = copy_of(self.place, self.scratch / "copy")
            self.report(broken(inputs, folder))
            self.tried += len(inputs)
            shutil.rmtree(folder)

    def report(self, lines: list[str]) -> None:
        for line in lines:
            print(f"broken: {line}", flush=True)
        self.broken += len(lines)

    def door(self, door: Door) -> None:
        """Random damage; of what breaks the promise, hypothesis finds the smallest, which is shown."""
        folder, last = copy_of(self.place, self.scratch / "copy"), [""]

        @seed(random.SystemRandom().getrandbits(64))
        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(door.content)
        def is_survived(content: object) -> None:
            self.tried += 1
            found = broken([door.hostile(content)], folder)
            last[:] = found or last
            assert not found

        try:
            is_survived()
        except AssertionError:
            self.report(last)
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=0, help="how long to search (default: the tables only)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only inputs with TEXT in their name")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of Pillow, about damaged files
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        search = Search(Path(scratch), args.only)
        search.tables()
        doors = [door for name, door in DOORS.items() if args.only in name]
        while doors and time.monotonic() < deadline:
            for door in doors:
                if time.monotonic() < deadline:
                    search.door(door)
    print(f"hostile: {search.tried:,} inputs tried, {search.broken:,} promises broken")
    return 1 if search.broken else 0


if __name__ == "__main__":
    sys.exit(main())
