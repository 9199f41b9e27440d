"""Fills in what the pages in docs/ show but code produces.

    python docs/build.py            update the pages and their figures
    python docs/build.py --check    change nothing; exit status 1 if a page and the code differ

Three parts of a page are generated:

- Regions. The lines between `<!-- NAME:begin -->` and `<!-- NAME:end -->` are what `REGIONS[NAME]` returns.
- Output, in the pages of `EXECUTED`. Their ```python blocks run in order, in one namespace, in an empty
  folder. What a block prints is the ```text block after it; a block that prints nothing has none.
- Figures. A file that such a page writes into that folder is kept in docs/, in a folder of the page's name.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# `python docs/build.py` finds the project's modules. Functions for REGIONS are imported below this line.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.formats import formats_table

DOCS = Path(__file__).resolve().parent
# Name of a region -> the function that returns its Markdown.
REGIONS: dict[str, Callable[[], str]] = {"formats": formats_table}
EXECUTED = ("tutorial.md",)

REGION = re.compile(r"^<!-- (?P<name>\w+):begin -->\n(?P<old>.*?)^<!-- (?P=name):end -->$", re.M | re.S)
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?P<old>\n```text\n.*?^```\n)?", re.M | re.S)


class Difference(NamedTuple):
    """A generated part of a page, or a figure, that is not what the code produces."""

    where: str
    old: str
    new: str

    def __str__(self) -> str:
        old = "".join(f"  - {line}\n" for line in self.old.strip().splitlines())
        return f"{self.where}\n{old}" + "".join(f"  + {line}\n" for line in self.new.strip().splitlines())


class Build:
    """The generated content of all pages in a folder."""

    def __init__(self, docs: Path = DOCS, regions=REGIONS, executed=EXECUTED):
        """Runs the code. An exception in a block names the page and the line of the block."""
        self.docs, self.regions = docs, regions
        self.files: dict[Path, bytes] = {}  # as they should be
        self.differences: list[Difference] = []
        for path in sorted(docs.glob("*.md")):
            page = REGION.sub(self.region(path), path.read_text("utf-8"))
            if path.name in executed:
                page = self.execute(path, page)
            self.files[path] = page.encode()

    def note(self, where: str, old: str, new: str) -> str:
        """Remember the difference, if it is one; returns the new text."""
        if old != new:
            self.differences.append(Difference(where, old, new))
        return new

    def region(self, path: Path) -> Callable[[re.Match], str]:
        def replace(match: re.Match) -> str:
            name = match["name"]
            if name not in self.regions:
                raise ValueError(f"{place(path, match)}: REGIONS in docs/build.py has no {name!r}")
            new = self.note(place(path, match), match["old"], self.regions[name]().strip("\n") + "\n")
            return f"<!-- {name}:begin -->\n{new}<!-- {name}:end -->"

        return replace

    def execute(self, path: Path, page: str) -> str:
        """The page with the output of its blocks; its figures go to `files`."""
        namespace = {"__name__": "page"}

        def replace(match: re.Match) -> str:
            code, where, printed = match["code"], place(path, match), io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, where, "exec"), namespace)
            except Exception as error:
                error.add_note(f"in the block at {where}")
                raise
            output = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
            return f"```python\n{code}```\n{self.note(where, match['old'] or '', output)}"

        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            page = BLOCK.sub(replace, page)
            for file in sorted(Path(folder).iterdir()):
                self.figure(path.with_suffix("") / file.name, file.read_bytes())
        return page

    def figure(self, path: Path, content: bytes) -> None:
        self.files[path] = content
        if not path.exists() or path.read_bytes() != content:
            self.differences.append(Difference(f"{path.parent.name}/{path.name}", "", "another image"))

    def write(self) -> None:
        for path, content in self.files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def place(path: Path, match: re.Match) -> str:
    """`tutorial.md:42`, the line on which the match begins."""
    return f"{path.name}:{match.string.count(chr(10), 0, match.start()) + 1}"


def finish(build: Build, check: bool) -> int:
    """Print the differences, and write the files unless it is a check; returns the exit status."""
    for difference in build.differences:
        print(difference)
    if not build.differences:
        print("The pages show what the code produces.")
    elif check:
        print("The pages and the code differ: run `python docs/build.py` and read what has changed.")
    else:
        build.write()
        print(f"Updated {len(build.differences)} places in {build.docs}.")
    return int(check and bool(build.differences))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill in the generated parts of the pages in docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if any differs")
    return finish(check=parser.parse_args().check, build=Build())


if __name__ == "__main__":
    sys.exit(main())
