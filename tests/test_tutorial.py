"""The pages in docs/ show what the code produces, and docs/build.py finds where they do not."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
build = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "build.py")))

PAGE = """# A page

```python
x = 20
```

```python
print(x + 1)
```

```text
21
```

<!-- table:begin -->
| a |
<!-- table:end -->
"""


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with one page that is up to date."""
    (tmp_path / "page.md").write_text(PAGE, "utf-8")
    return tmp_path


def built(docs: Path):
    return build.Build(docs, regions={"table": lambda: "| a |"}, executed=["page.md"])


@pytest.mark.slow
def test_the_pages_show_what_the_code_prints():
    differences = build.Build().differences
    assert not differences, "\n".join(["run `python docs/build.py`:", *map(str, differences)])


def test_a_page_that_is_up_to_date_has_no_differences(docs, capsys):
    assert built(docs).differences == []
    assert build.finish(built(docs), check=True) == 0


@pytest.mark.parametrize(
    ("right", "wrong", "where"),
    [("\n21\n", "\n22\n", "page.md:7"), ("x = 20", "x = 21", "page.md:7"), ("| a |", "| b |", "page.md:15")],
)
def test_a_difference_is_named_by_a_check_and_removed_by_a_build(docs, capsys, right, wrong, where):
    page = docs / "page.md"
    page.write_text(PAGE.replace(right, wrong), "utf-8")
    assert build.finish(built(docs), check=True) == 1
    assert page.read_text("utf-8") == PAGE.replace(right, wrong)
    message = capsys.readouterr().out
    assert where in message
    assert "python docs/build.py" in message
    assert build.finish(built(docs), check=False) == 0
    assert built(docs).differences == []
    if wrong != "x = 21":
        assert page.read_text("utf-8") == PAGE


def test_output_is_added_where_there_is_none_and_removed_where_nothing_is_printed(docs):
    page = docs / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```python\nx = 1\n```\n\n```text\nold\n```\n", "utf-8")
    built(docs).write()
    assert page.read_text("utf-8") == "```python\nprint(1)\n```\n\n```text\n1\n```\n\n```python\nx = 1\n```\n"


def test_a_figure_that_a_page_writes_lies_beside_it(docs):
    code = "from pathlib import Path\n_ = Path('dot.png').write_bytes(b'dot')\n"
    (docs / "page.md").write_text(f"```python\n{code}```\n", "utf-8")
    built(docs).write()
    figure = docs / "page" / "dot.png"
    assert figure.read_bytes() == b"dot"
    assert built(docs).differences == []
    figure.write_bytes(b"another")
    assert [difference.where for difference in built(docs).differences] == ["page/dot.png"]


def test_an_error_in_a_block_names_its_line(docs):
    (docs / "page.md").write_text(PAGE.replace("x = 20", "x = 1 / 0"), "utf-8")
    with pytest.raises(ZeroDivisionError) as error:
        built(docs)
    assert error.value.__notes__ == ["in the block at page.md:3"]


def test_a_region_that_nothing_fills_is_an_error(docs):
    with pytest.raises(ValueError, match=r"page.md:15.*'table'"):
        build.Build(docs, regions={}, executed=[])


def test_the_functions_that_the_tutorial_names_are_in_the_files_that_it_links_to():
    links = re.findall(r"\[(`[^\]]+)\]\(\.\./([\w/.]+)\)", TUTORIAL.read_text("utf-8"))
    assert len(links) > 10
    for names, path in links:
        code = (ROOT / path).read_text("utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"(def|class) {name.split('.')[-1]}\b", code), f"{path} has no {name}"


def test_the_contents_of_the_tutorial_are_its_stations():
    page = TUTORIAL.read_text("utf-8")
    listed = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", page, re.M)
    stations = re.findall(r"^## (\d+)\. (.+)$", page, re.M)
    anchors = [f"{number}-{title}".lower().replace(" ", "-") for number, title in stations]
    assert listed == list(zip([title for _, title in stations], anchors, strict=True))
