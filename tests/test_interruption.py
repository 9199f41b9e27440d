"""Ctrl-C and SIGTERM: a step is finished and saved, anything else ends at once, and a resume ends alike."""

from startup import Terminated

import os
import pkgutil
import signal
from pathlib import Path

import pytest

from tests.helpers import write_dataset
from tests.script_helpers import run, signal_handlers_restored, write_config
from tests.test_resume import same_end
from training.interruption import Interruption


@pytest.fixture
def handlers():
    """The handlers of a script, for the time of a test."""

    def terminate(*_):
        raise Terminated

    with signal_handlers_restored():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, terminate)
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_recorded_and_the_second_ends_at_once(handlers, number):
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        assert interruption.number == number
        assert interruption.status == 128 + number
        with pytest.raises((KeyboardInterrupt, Terminated)):
            os.kill(os.getpid(), number)


def test_outside_of_steps_signals_have_their_usual_effect(handlers):
    with Interruption():
        pass
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "data")
    run(folder, "train", "--config", write_config(folder, train={"average": 0.9}))
    return folder / "runs" / "tiny"


@pytest.mark.parametrize(
    ("function", "number", "call", "status"),
    [
        pytest.param("training.datasets.compute_features", signal.SIGTERM, 1, 143, marks=pytest.mark.slow),
        ("training.trainer.Trainer.step", signal.SIGTERM, 3, 143),
        ("training.run.validation_loss", signal.SIGINT, 2, 130),
        pytest.param("training.run.caption_split", signal.SIGTERM, 1, 143, marks=pytest.mark.slow),
        pytest.param("training.record.draw_curves", signal.SIGINT, 1, 130, marks=pytest.mark.slow),
        ("training.ending.caption_split", signal.SIGTERM, 1, 143),  # the final scores
    ],
)
def test_a_stopped_run_ends_where_the_whole_one_ends(
    tmp_path, whole_run, monkeypatch, function, number, call, status
):
    write_dataset(tmp_path / "data")
    config = write_config(tmp_path, train={"average": 0.9})
    original, calls = pkgutil.resolve_name(function), []

    def send(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    monkeypatch.setattr(function, send)
    text = run(tmp_path, "train", "--config", config, status=status)
    assert "stopped" in text
    monkeypatch.undo()
    folder = tmp_path / "runs" / "tiny"
    can_resume = (folder / "checkpoints.pth").exists()
    run(tmp_path, "train", *(["--resume", folder] if can_resume else ["--config", config]))
    same_end(whole_run, folder)
    assert (whole_run / "samples.png").read_bytes() == (folder / "samples.png").read_bytes()
