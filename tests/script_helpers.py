"""How tests run the scripts: in this process, because torch takes seconds to import, or as a process."""

import contextlib
import io
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from tests.helpers import tiny

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}


def command(script: str, *arguments) -> list[str]:
    """The command line of a script, for subprocess."""
    return [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]


@contextlib.contextmanager
def signal_handlers_restored() -> Iterator[None]:
    """Scripts set handlers of SIGINT and SIGTERM; afterwards there are those from before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(folder: Path, script: str, *arguments) -> tuple[int, str, str]:
    """Run a script in `folder`; returns its exit status and what it wrote to stdout and stderr.

    As in a process, text that is no valid Unicode cannot be written to stdout.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    arguments_before, status = sys.argv, 0
    sys.argv = [f"{script}.py", *map(str, arguments)]
    try:
        with (
            signal_handlers_restored(),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.argv = arguments_before
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]  # a BytesIO
    return status, *texts


def run(folder: Path, script: str, *arguments, status: int = 0) -> str:
    """Run a script in `folder`; returns what it printed, after checking its exit status.

    An error of the user's (status 2) has to be a single line.
    """
    found, out, err = ended(folder, script, *arguments)
    assert found == status, out + err
    if status == 2:
        [line] = err.strip().splitlines()
        assert line.startswith("error: ")
    return out + err


def write_config(folder: Path, **sections) -> Path:
    """tiny.yaml in `folder`, over the dataset in `folder`/data. Its paths are relative to `folder`."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(Path("data"), **sections).as_dict()))
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint."""
    return torch.load(path, weights_only=True)["model"]
