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

from pycocoevalcap.meteor import meteor as _pycocoevalcap_meteor

from metrics.metric import MetricError, Tokenized

_JAR = Path(_pycocoevalcap_meteor.__file__).with_name("meteor-1.5.jar")
_SCORE = re.compile(r"^(?:Segment \d+|Final) score:\s+(\d+\.\d+(?:E-?\d+)?)$", re.MULTILINE)


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
        done = _run(java, predictions, padded, timeout)
    except subprocess.TimeoutExpired:
        raise MetricError(f"Java took longer than {timeout:g} s") from None
    except OSError as error:
        raise MetricError(
            f"{java} does not start, or its files cannot be written ({error.strerror or error}); check "
            "JAVA_HOME, PATH and TMPDIR"
        ) from None
    scores = [float(score) for score in _SCORE.findall(done.stdout)]
    if done.returncode or len(scores) != len(predictions) + 1:
        output = " ".join((done.stderr or done.stdout).split())[:200] or "no output"
        raise MetricError(f"{java} ended with status {done.returncode} ({output})")
    return scores[-1]


def _run(
    java: str, predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run the program on one caption per image and the same number of references of each."""
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
        ]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )


def _write_lines(path: Path, lines: Sequence[str]) -> str:
    """Write one caption per line, line breaks in a caption replaced by spaces; return the path."""
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="replace")  # a lone surrogate becomes "?"
    return str(path)
