"""Fixtures of all tests; plain functions are in tests/helpers.py."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from files import locked
from metrics.meteor import find_java
from models.decoders import DECODERS
from reports.curves import draw_curves
from tests.helpers import small_decoder, write_dataset
from tests.script_helpers import run, write_config

# Tests run side by side, one a core: more threads would only wait for each other, here and in the scripts.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run. The tests marked `browser` skip in their fixture."""
    if item.get_closest_marker("java") and find_java() is None:
        pytest.skip("no Java found")
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


# What tests count as a property of this name is summed up in a line at the end.
_COUNTED = {
    "hostile inputs": "hostile: {:,} inputs tried, {} promises broken",
    "kills": "killing: {:,} kills tried, {} runs that differ",
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line about hostile inputs and one about kills, if there were any; works in several processes."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for name, line in _COUNTED.items():
        counted = [(report, dict(report.user_properties)) for report in reports if report.when == "call"]
        counted = [(report, found[name]) for report, found in counted if name in found]
        if counted:
            failed = sum(report.failed for report, _ in counted)
            terminalreporter.write_line(line.format(sum(number for _, number in counted), failed))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Iterator[None]:
    """Trainings draw no curves, which takes longer than a tiny epoch; those that need them use `curves`."""
    with mock.patch("training.record.draw_curves"):
        yield


@pytest.fixture
def curves(monkeypatch) -> None:
    """Trainings draw their curves."""
    monkeypatch.setattr("training.record.draw_curves", draw_curves)


@pytest.fixture
def no_java(monkeypatch) -> None:
    """A machine without Java. METEOR takes seconds: only tests of METEOR itself compute it."""
    monkeypatch.setattr("metrics.meteor.find_java", lambda: None)


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless, driven by selenium; the tests are skipped where one of the three is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, programs)), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(f"no {'chromedriver' if chromium else 'chromium'} on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the path of the driver, selenium neither searches for one nor downloads one.
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The folder of a tiny dataset: captions.csv and images/."""
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(params=DECODERS)
def decoder(request):
    """A small decoder of each kind: what a test promises of one holds for all that are registered."""
    return small_decoder(request.param)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """What `trained` copies. Tests do not use it: they would see each other's files.

    It is trained once, for the tests in all processes.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "finished"
    with locked(shared / "finished.lock", "another process trains it", wait=True):
        if not (folder / "train.txt").exists():
            _train(folder)
    return folder


def _train(folder: Path) -> None:
    write_dataset(folder / "data")
    config = write_config(
        folder, encoder={"fine_tune": "all"}, train={"epochs": 12, "patience": 12}, decoder={"dropout": 0.0}
    )

    def draw_at_the_end(logs, output):
        if logs[0].read_text().count("\nepoch,") == 12:
            draw_curves(logs, output)

    with mock.patch("training.record.draw_curves", draw_at_the_end):
        (folder / "train.txt").write_text(run(folder, "train", "--config", config))


@pytest.fixture
def trained(finished_run: Path, tmp_path: Path) -> Path:
    """A folder with data/, tiny.yaml, a finished run in runs/tiny, and what it printed in train.txt."""
    return shutil.copytree(finished_run, tmp_path / "trained")
