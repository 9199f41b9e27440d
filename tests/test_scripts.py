"""What all scripts have in common, and the smallest of them."""

import ast
import subprocess
import sys

import pytest

from tests.script_helpers import ROOT, run

SCRIPTS = [
    "train",
    "evaluate",
    "build_vocab",
    "inference_visualize",
    "demo",
    "visualize_loss",
    "show_model",
    "export",
]


def test_the_curves_are_drawn_of_the_newest_run(trained):
    (trained / "runs/tiny/loss_curve.png").unlink()
    text = run(trained, "visualize_loss")
    assert "tiny" in text
    assert (trained / "runs/tiny/loss_curve.png").exists()


@pytest.mark.parametrize("script", ["train", "evaluate", "build_vocab"])
def test_a_misspelt_key_is_one_line_with_the_right_spelling(trained, script):
    assert "did you mean 'data.captions'" in run(trained, script, "data.caption=x", status=2)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(tmp_path, script):
    assert "usage:" in run(tmp_path, script, "--help")


def test_help_and_wrong_arguments_do_not_wait_for_torch():
    """Each of these libraries takes half a second or more to import."""
    code = """
import contextlib, runpy, sys
scripts = sys.argv[1:]
lines = [[script, argument] for script in scripts for argument in ("--help", "--no-such-option")]
lines += [[script, "data.caption=x"] for script in ("train", "build_vocab", "show_model")]
for sys.argv in lines:
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"{sys.argv[0]}.py", run_name="__main__")
    heavy = sys.modules.keys() & {"torch", "torchvision", "numpy", "pandas", "matplotlib"}
    assert not heavy, (sys.argv, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == done.stderr.count("usage:") == len(SCRIPTS)
    assert done.stderr.count("did you mean 'data.captions'") == 3


def imported_first(module: str) -> set[str]:
    """All modules that a module of the project imports at the top of its file, those that they import, …"""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in found or not path.exists():
            found.add(name)
            continue
        found.add(name)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                todo.append(node.module)
            elif isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
    return found


def test_captioning_imports_neither_pandas_nor_nltk():
    """Together they take half of torch's time. Scores, which need them, are computed for references alone."""
    found = {name.split(".")[0] for name in imported_first("jobs.inference_visualize")}
    assert {"torch", "captioning", "reports"} < found
    assert not found & {"pandas", "nltk", "pycocoevalcap"}
