"""docs/reliability.md: every promise names a test, and the test exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_a_test_that_exists():
    rows = re.findall(r"^\| (?!fault|-).*\|$", (ROOT / "docs" / "reliability.md").read_text("utf-8"), re.M)
    assert len(rows) > 30
    for row in rows:
        [(file, test)] = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        [path] = (ROOT / "tests").rglob(file)
        assert f"\ndef {test}(" in path.read_text("utf-8"), row
