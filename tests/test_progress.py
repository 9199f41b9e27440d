"""Long work shows how far it is: a bar on a terminal, plain lines elsewhere."""

import io
from types import SimpleNamespace

import pytest

from progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that `Progress` reads; a test sets `clock.now`, in seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def use_terminal(monkeypatch) -> Terminal:
    """Not a fixture: before each test pytest sets stderr again."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def test_lines_tell_count_rate_and_time_left(clock, capsys):
    with Progress(100, "features", "images") as progress:
        clock.now += 20
        progress.update(40)  # 2 a second
        clock.now += 20
        progress.update(20)  # 1.5 a second since the start
    assert capsys.readouterr().out.splitlines() == [
        "features: 40/100 images, 2.0/s, 30 s left",
        "features: 60/100 images, 1.5/s, 27 s left",
    ]


def test_there_is_a_line_every_15_seconds_and_one_at_the_end(clock, capsys):
    with Progress(60, "features", "images") as progress:
        for _ in range(60):
            clock.now += 1
            progress.update()
    counts = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert counts == ["16/60", "32/60", "48/60", "60/60"]


def test_short_work_that_is_not_kept_prints_nothing(clock, capsys):
    with Progress(2, "captions", "batches", keep=False) as progress:
        clock.now += 1
        progress.update(2)
    assert capsys.readouterr().out == ""


def test_the_rate_leaves_out_what_was_done_before(clock, capsys):
    with Progress(100, "epoch 1/2", "batches", initial=50) as progress:
        clock.now += 20
        progress.update(10)
    assert capsys.readouterr().out == "epoch 1/2: 60/100 batches, 0.5/s, 80 s left\n"


def test_a_line_ends_with_the_latest_note(clock, capsys):
    with Progress(3, "epoch 1/2", "batches") as progress:
        for i, loss in enumerate(("4.2", "3.1")):
            progress.note(f"loss {loss}")
            clock.now += 20
            progress.update(1 + i)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("left")[2] for line in lines] == [", loss 4.2", ", loss 3.1"]


def test_work_that_takes_no_time_has_a_rate(clock, capsys):
    with Progress(1, "features", "images") as progress:
        progress.update()
    assert capsys.readouterr().out.startswith("features: 1/1 images, ")


def test_a_terminal_gets_a_bar_and_no_lines(clock, monkeypatch, capsys):
    terminal = use_terminal(monkeypatch)
    with Progress(100, "features", "images", initial=10) as progress:
        progress.note("loss 4.2")
        clock.now += 20
        progress.update(40)
    assert capsys.readouterr().out == ""
    bar = terminal.getvalue()
    assert "features:" in bar
    assert "50/100" in bar
    assert "images/s" in bar
    assert "loss 4.2" in bar


@pytest.mark.parametrize("keep", [True, False])
def test_a_finished_bar_stays_only_if_it_is_kept(clock, monkeypatch, keep):
    terminal = use_terminal(monkeypatch)
    with Progress(2, "captions", "batches", keep=keep) as progress:
        progress.update(2)
    # A bar that is not kept is overwritten with spaces.
    assert terminal.getvalue().endswith("\n") == keep
