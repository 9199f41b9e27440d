"""Does data/tokenizer.py split captions as the Java program of the COCO evaluation does? And how fast?

    python -m benchmarks.tokenizer_agreement CAPTIONS.csv

Prints how many captions the two split differently, both versions of each, and the time that both take.
"""

from startup import run_script

import argparse
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pycocoevalcap.tokenizer import ptbtokenizer

from data.tokenizer import tokenize
from metrics.meteor import find_java
from utils import UserError

_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_CLASS = "edu.stanford.nlp.process.PTBTokenizer"


def java_tokens(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of N captions, N lists, from the Java program as pycocoevalcap's PTBTokenizer runs it.

    It is run through pipes, not with a temporary file inside the installed package. Raises UserError if Java
    is missing or fails.
    """
    java = find_java()
    if java is None:
        raise UserError("no Java found; install a Java runtime, or set JAVA_HOME to the folder of one")
    lines = [" ".join(caption.splitlines()) + "\n" for caption in captions]
    command = [java, "-cp", str(_JAR), _CLASS, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    try:
        done = subprocess.run(
            command, input="".join(lines), capture_output=True, encoding="utf-8", timeout=600
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{java} cannot be run ({error}); check JAVA_HOME and PATH") from None
    answers = done.stdout.split("\n")[:-1]
    if done.returncode or len(answers) != len(captions):
        raise UserError(
            f"{java} returned {len(answers)} lines for {len(captions)} captions: {done.stderr[-300:]}"
        )
    kept = [
        [token for token in line.split(" ") if token not in ptbtokenizer.PUNCTUATIONS] for line in answers
    ]
    # The scorers split at any kind of space, including the no-break space in tokens of Java such as "2 1/2".
    return [" ".join(tokens).split() for tokens in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path, help="a CSV file with a column `caption`")
    path = parser.parse_args().captions
    try:
        captions = list(pd.read_csv(path, dtype=str, keep_default_na=False)["caption"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a CSV file with a column `caption` ({error})") from None

    start = time.perf_counter()
    theirs = java_tokens(captions)
    java_seconds = time.perf_counter() - start
    start = time.perf_counter()
    ours = [tokenize(caption) for caption in captions]
    python_seconds = time.perf_counter() - start

    differing = [row for row in zip(captions, theirs, ours, strict=True) if row[1] != row[2]]
    for caption, java, python in differing:
        print(f"caption  {caption}\n  java   {' '.join(java)}\n  python {' '.join(python)}")
    print(f"{len(captions):,} captions, {len(differing):,} differ")
    print(f"java {java_seconds:.2f} s, python {python_seconds:.2f} s")


if __name__ == "__main__":
    run_script(main)
