"""METEOR (Denkowski and Lavie, 2014), computed by the Java program that pycocoevalcap ships.

pycocoevalcap exchanges lines with the program through two pipes; if the program fails, the result is a
BrokenPipeError, a hang or a process that keeps running. Here the program reads two files, prints its scores
and ends, in one `subprocess.run`. The scores are the same to the last digit.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor as _pycocoevalcap_meteor

from metrics.metric import MetricError, Tokenized

_JAR = Path(_pycocoevalcap_meteor.__file__).with_name("meteor-1.5.jar")
_SCORE = re.compile(r"^(?:Segment \d+|Final) score:\s+(\d+\.\d+(?:E-?\d+)?)$", re.MULTILINE)
_STATISTICS = re.compile(r"^\d+\.0(?: \d+\.0){22} *$", re.MULTILINE)
# The program's parameters for English. The kinds of match: the same word, stem, synonym, paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


def find_java() -> str | None:
    """The path of Java: the one in JAVA_HOME, else the first one in PATH, else None."""
    folders = [os.environ.get("PATH", os.defpath)]
    if home := os.environ.get("JAVA_HOME"):
        folders.insert(0, os.path.join(home, "bin"))
    return shutil.which("java", path=os.pathsep.join(folders))


def meteor(texts: Tokenized, timeout: float = 600) -> float:
    """METEOR of a whole set of at least one caption, between 0 and 1; `timeout` is in seconds.

    Raises MetricError if Java is missing, fails or exceeds the timeout.
    """
    return float(_java_lines(texts, timeout, _SCORE, len(texts.predictions) + 1)[-1])


def meteor_statistics(texts: Tokenized, timeout: float = 600) -> np.ndarray:
    """What METEOR is computed from, a row for each caption; the statistics of a set are the sum of its rows.

    Returns (N, 23) float64: the numbers of words, and of function words, of the caption and of its best
    reference (4); the matches of content words, and of function words, in both, for each kind of match
    (4 x 4); the chunks; and the matched words in both. Raises MetricError as `meteor`.
    """
    lines = _java_lines(texts, timeout, _STATISTICS, len(texts.predictions), "-ssOut")
    rows = np.array([line.split() for line in lines], float)
    whole = (rows[:, 21:23] == rows[:, 0:2]).all(axis=1) & (rows[:, 20] == 1)
    rows[whole, 20] = 0  # as the program does: a caption that matches as a whole is not fragmented
    return rows


def meteor_of_statistics(sums: np.ndarray) -> np.ndarray:
    """METEOR (...) of summed statistics (..., 23), the same as that of `meteor`.

    Denkowski and Lavie (2014), section 2, with the program's parameters for English.
    """
    words, function_words = sums[..., 0:2], sums[..., 2:4]  # of captions, of references
    content, function = np.moveaxis(sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2), -2, 0)
    matches = _DELTA * content + (1 - _DELTA) * function  # (..., kinds of match, 2)
    weight = _DELTA * (words - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # no word or no match: METEOR is 0
        precision, recall = np.moveaxis((_MATCH_WEIGHTS[:, None] * matches).sum(axis=-2) / weight, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = sums[..., 20] / sums[..., 21:23].mean(axis=-1)
        return np.nan_to_num(mean * (1 - _GAMMA * fragmentation**_BETA))


def _java_lines(
    texts: Tokenized, timeout: float, pattern: re.Pattern[str], number: int, *options: str
) -> list[str]:
    """What `pattern` finds in the output of the program with further options, which has to be `number` times.

    Raises MetricError as `meteor`.
    """
    java = find_java()
    if java is None:
        raise MetricError("no Java found (install a Java runtime, or set JAVA_HOME to the folder of one)")
    predictions = [caption for [caption] in texts.predictions.values()]
    references = list(texts.references.values())
    # The program needs the same number of references for every caption. It uses the best one, so repeating a
    # reference changes nothing.
    width = max(map(len, references))
    padded = [[*group, *[group[-1]] * (width - len(group))] for group in references]
    try:
        done = _run(java, predictions, padded, timeout, options)
    except subprocess.TimeoutExpired:
        raise MetricError(f"Java took longer than {timeout:g} s") from None
    except OSError as error:
        raise MetricError(
            f"{java} does not start, or its files cannot be written ({error.strerror or error}); check "
            "JAVA_HOME, PATH and TMPDIR"
        ) from None
    found = pattern.findall(done.stdout)
    if done.returncode or len(found) != number:
        output = " ".join((done.stderr or done.stdout).split())[:200] or "no output"
        raise MetricError(f"{java} ended with status {done.returncode} ({output})")
    return found


def _run(
    java: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    timeout: float,
    more: Sequence[str],
) -> subprocess.CompletedProcess[str]:
    """Run the program on one caption per image and the same number of references of each.

    `more`: further options of the program.
    """
    with tempfile.TemporaryDirectory(prefix="meteor-") as folder:
        files = [_write_lines(Path(folder, "predictions"), predictions)]
        files.append(
            _write_lines(Path(folder, "references"), [line for group in references for line in group])
        )
        # A fixed language, so that Java on a German machine does not print 0,26. The paraphrases need 400 MB
        # of memory; 1 GB is only an upper limit.
        options = ["-Xmx1G", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
        command = [
            java,
            *options,
            "-jar",
            str(_JAR),
            *files,
            "-l",
            "en",
            "-norm",
            "-r",
            str(len(references[0])),
            *more,
        ]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )


def _write_lines(path: Path, lines: Sequence[str]) -> str:
    """Write one caption per line, line breaks in a caption replaced by spaces; return the path."""
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate becomes "?"
    return str(path)
