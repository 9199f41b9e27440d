"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a file imports from its own line and from the lines above it.
LAYERS = [
    ["utils", "threads"],
    ["startup", "progress", "processes", "compute", "files"],
    ["config_types", "config_search", "config", "yaml_reading"],
    ["outputs", "config_reading"],
    ["data"],
    ["models"],
    ["caption_types", "captioning", "metrics"],
    ["reports"],
    ["training"],
    ["jobs"],
    [
        "build_vocab",
        "demo",
        "evaluate",
        "export",
        "inference_visualize",
        "show_model",
        "train",
        "visualize_loss",
    ],
    ["caption_onnx"],  # imports nothing of the project, and nothing imports it
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LONGEST = 280  # lines
FILES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {"tests", "benchmarks", "docs"} & set(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    and path.relative_to(ROOT).parts[0] in LEVEL.keys() | {f"{name}.py" for name in LEVEL}
)
USERS = [*FILES, *(path for room in ("tests", "benchmarks", "docs") for path in (ROOT / room).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it but under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return modules


def test_every_file_at_the_top_has_its_layer():
    assert {path.stem for path in ROOT.glob("*.py")} <= LEVEL.keys()
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    rooms = {module.split(".")[0] for module in imported(path)}
    upwards = {room for room in rooms & LEVEL.keys() if LEVEL[room] > LEVEL[room_of(path)]}
    assert not upwards


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_holds_one_idea(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def top_level_names(path: Path) -> set[str]:
    """Functions, classes and constants at the top of a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
    return {name for name in names if not name.startswith("__")}


def test_an_underscore_marks_what_only_its_own_file_uses():
    words = {path: set(re.findall(r"\w+", path.read_text(encoding="utf-8"))) for path in USERS}
    used = Counter(word for own in words.values() for word in own)  # word -> number of files
    defined = Counter(name for path in USERS for name in top_level_names(path))
    wrong = []
    for path in FILES:
        elsewhere = {word for word in words[path] if used[word] > 1}
        for name in top_level_names(path):
            # Another file may have a private name of its own that is spelt the same.
            if name.startswith("_") and name in elsewhere and defined[name] == 1:
                wrong.append(f"{name_of(path)}: {name} is used in another file, so it needs no underscore")
            is_type = name[0].isupper() and not name.isupper()  # what others get as values, unnamed
            if not (name.startswith("_") or name in elsewhere or name == "main" or is_type):
                wrong.append(f"{name_of(path)}: {name} is used only there, so it needs an underscore")
    assert not wrong, "\n".join(wrong)
