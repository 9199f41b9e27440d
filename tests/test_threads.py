"""How many threads a CPU computes with."""

import pytest
import torch

import compute
from compute import use_threads
from tests.script_helpers import run
from threads import Times, busy_between, busy_seconds, cores

STATISTICS = """\
cpu  90 90 90 90 90 90 90 90 0 0
cpu0 100 7000 20 5000 9000 3 4 30 0 0
cpu1 1000 0 0 9000 0 0 0 0 0 0
cpu10 9999 0 0 0 0 0 0 0 0 0
intr 12345 0 9
"""


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the cores of the machine, the busy ones among them, and torch's own threads."""

    def set_up(all_cores, busy, own, is_script=True):
        monkeypatch.setattr(compute, "cores", lambda: all_cores)
        monkeypatch.setattr(compute, "busy_cores", lambda: busy)
        monkeypatch.setattr(compute, "runs_a_script", lambda: is_script)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        torch.set_num_threads(own)

    return set_up


def test_busy_time_counts_neither_waiting_nor_programs_of_low_priority_nor_other_cores():
    assert busy_seconds(STATISTICS, {0}, 100) == pytest.approx(1.57)  # 100 + 20 + 3 + 4 + 30 ticks
    assert busy_seconds(STATISTICS, {0, 1}, 100) == pytest.approx(11.57)


@pytest.mark.parametrize(
    ("everyone", "own", "expected"),
    [(2, 2, 0), (4, 2, 1), (2.9, 2, 0), (3.2, 2, 1), (6.1, 2, 2), (1.9, 2, 0)],
)
def test_a_core_is_busy_if_others_use_more_than_half_of_it(everyone, own, expected):
    assert busy_between(Times(10, 100, 0.5), Times(12, 100 + everyone, 0.5 + own)) == expected


def test_too_short_a_time_says_nothing():
    assert busy_between(Times(10, 100, 0.5), Times(10.05, 101, 0.5)) == 0


@pytest.mark.parametrize(
    ("all_cores", "busy", "own", "expected"),
    [(2, 0, 2, 2), (2, 1, 2, 1), (2, 2, 2, 1), (16, 1, 8, 8), (16, 10, 8, 6), (1, 0, 4, 1)],
)
def test_there_is_a_thread_for_each_free_core_but_not_more_than_torch_would_take(
    machine, all_cores, busy, own, expected
):
    machine(all_cores, busy, own)
    use_threads(0)
    assert torch.get_num_threads() == expected


def test_fewer_threads_are_announced_with_the_key_that_takes_all(machine, capsys):
    machine(2, 1, 2)
    use_threads(0)
    assert capsys.readouterr().out == (
        "Other programs keep 1 of 2 cores busy; run.threads=2 uses them too.\n"
    )


def test_what_the_user_asked_for_is_taken_up_to_the_cores_of_the_machine(machine):
    machine(2, 1, 1)
    use_threads(2)
    assert torch.get_num_threads() == 2
    use_threads(64)  # a checkpoint from a larger machine
    assert torch.get_num_threads() == 2


def test_omp_num_threads_and_programs_that_import_the_project_are_left_alone(machine, monkeypatch):
    machine(4, 3, 4, is_script=False)
    use_threads(0)
    assert torch.get_num_threads() == 4
    machine(4, 3, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    use_threads(0)
    assert torch.get_num_threads() == 4


def test_this_machine_has_a_core():
    assert cores() >= 1


def test_a_resumed_run_goes_on_with_as_many_threads_as_before(trained, machine):
    machine(2, busy=0, own=2)
    run(trained, "train", "--resume", "runs/tiny", "train.epochs=13")  # until now with one
    assert torch.get_num_threads() == 1
    run(trained, "train", "--resume", "runs/tiny", "train.epochs=14", "run.threads=2")
    assert torch.get_num_threads() == 2
