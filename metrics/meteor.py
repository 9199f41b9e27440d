"""METEOR (Denkowski and Lavie, 2014) through the Java program that pycocoevalcap carries.

pycocoevalcap talks to the program line by line through two pipes; a program that dies then shows up as a
BrokenPipeError, a hang or a left-over process. Here the program reads two files, writes its scores and ends:
one `subprocess.run`. The scores are the same, to the last digit.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.meteor import meteor as _pycocoevalcap_meteor

_JAR = Path(_pycocoevalcap_meteor.__file__).with_name("meteor-1.5.jar")
_SCORE = re.compile(r"^(?:Segment \d+|Final) score:\s+(\S+)$", re.MULTILINE)


class MeteorError(RuntimeError):
    """METEOR could not be computed; the message is one line that says why and what mends it."""


def find_java() -> str | None:
    """The path of the Java program: that of JAVA_HOME, else the first on PATH, else None."""
    folders = [os.environ.get("PATH", os.defpath)]
    if home := os.environ.get("JAVA_HOME"):
        folders.insert(0, os.path.join(home, "bin"))
    return shutil.which("java", path=os.pathsep.join(folders))


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = 600) -> float:
    """METEOR of N tokenised captions (tokens joined by spaces) against their references.

    predictions: N captions, N at least 1, empty captions allowed; references: N lists of at least one caption
    each; timeout: in seconds.
    Returns the score of the whole set, between 0 and 1.
    Raises MeteorError where Java is missing, fails or exceeds the timeout.
    """
    java = find_java()
    if java is None:
        raise MeteorError("no Java found (install a Java runtime, or let JAVA_HOME name one)")
    # The program wants equally many references per caption. It takes the best, so repeating one is harmless.
    width = max(map(len, references))
    padded = [[*group, *[group[-1]] * (width - len(group))] for group in references]
    with tempfile.TemporaryDirectory(prefix="meteor-") as folder:
        files = [_write_lines(Path(folder, "predictions"), predictions)]
        files.append(_write_lines(Path(folder, "references"), [line for group in padded for line in group]))
        # Language and encoding are fixed, so that a German machine does not print 0,26. The paraphrases fit
        # into 400 MB of memory; 1 GB is a ceiling with room, taken as needed.
        options = ["-Xmx1G", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
        command = [java, *options, "-jar", str(_JAR), *files, "-l", "en", "-norm", "-r", str(width)]
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise MeteorError(f"Java took longer than {timeout:g} s") from None
        except OSError as error:
            raise MeteorError(f"{java} does not start ({error.strerror})") from None
    scores = [float(score) for score in _SCORE.findall(done.stdout)]
    if done.returncode or len(scores) != len(predictions) + 1:
        said = " ".join((done.stderr or done.stdout).split())[:200] or "no output"
        raise MeteorError(f"{java} ended with status {done.returncode} ({said})")
    return scores[-1]


def _write_lines(path: Path, lines: Sequence[str]) -> str:
    """One caption per line, whatever line breaks a caption contains; returns the path."""
    path.write_text("".join(" ".join(line.split()) + "\n" for line in lines), encoding="utf-8")
    return str(path)
