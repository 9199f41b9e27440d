"""How tests run the scripts: in this process, because torch takes seconds to import, or as a process."""

import contextlib
import io
import os
import runpy
import signal
import sys
from pathlib import Path

import torch
import yaml

from tests.helpers import tiny

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def command(script: str, *arguments) -> list[str]:
    """The command line of a script, for subprocess."""
    return [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]


def run(folder: Path, script: str, *arguments, status: int = 0) -> str:
    """Run a script in `folder`; returns what it printed, after checking its exit status.

    An error of the user's (status 2) has to be a single line.
    """
    out, err = io.StringIO(), io.StringIO()
    arguments_before, signals = sys.argv, (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in signals]
    sys.argv = [f"{script}.py", *map(str, arguments)]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        ended = None
    except SystemExit as error:
        ended = error.code
    finally:
        sys.argv = arguments_before
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
    assert (ended or 0) == status, out.getvalue() + err.getvalue()
    if status == 2:
        [line] = err.getvalue().strip().splitlines()
        assert line.startswith("error: ")
    return out.getvalue() + err.getvalue()


def write_config(folder: Path, **sections) -> Path:
    """tiny.yaml in `folder`, over the dataset in `folder`/data. Its paths are relative to `folder`."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(Path("data"), **sections).as_dict()))
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint."""
    return torch.load(path, weights_only=True)["model"]
