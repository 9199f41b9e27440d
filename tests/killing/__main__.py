"""Kill trainings at random moments and resume them: python -m tests.killing [--times N] [--seed S]

Ends with status 1 if one of them does not end like the training that was left alone.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"


def main() -> int:
    from tests.killing.killer import SETTINGS, Differs, draw_moments, kill_and_resume, prepare, run_alone

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="how many trainings to kill (default: 20)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    args = parser.parse_args()
    draw, kills, differing = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        wholes = [run_alone(prepare(Path(scratch) / str(i), name)) for i, name in enumerate(SETTINGS)]
        for n in range(args.times):
            whole, folder = wholes[n % len(wholes)], Path(scratch) / "killed"
            try:
                kills += kill_and_resume(whole, folder, draw_moments(whole, draw))
            except Differs as error:
                differing += 1
                print(f"differs: {list(SETTINGS)[n % len(wholes)]}, killed at {error}", flush=True)
            shutil.rmtree(folder)
    print(f"killing: seed {args.seed}, {args.times} runs, {kills} kills tried, {differing} runs that differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
