"""Batches, and the end of the processes that read them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from data.loading import load, read_ahead
from tests.script_helpers import ENVIRONMENT, ROOT, run, write_config
from utils import UserError

DEADLINE = 15  # seconds after which a process counts as left behind


class Squares(torch.utils.data.Dataset):
    """i -> a tensor of i * i; some items are errors."""

    def __init__(self, errors=()):
        self.errors = dict(errors)

    def __getitem__(self, i):
        if i in self.errors:
            raise self.errors[i]
        return torch.tensor(i * i)


def group_is_empty(process) -> bool:
    """Whether no process of the group that `process` leads is alive at the deadline."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_their_order_and_the_workers_are_gone_after_the_last_one(workers):
    batches = [[3, 1], [2], [0, 4]]
    assert [b.tolist() for b in load(Squares(), batches, torch.stack, workers)] == [[9, 1], [4], [0, 16]]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_of_an_item_is_the_same_with_and_without_workers(workers):
    dataset = Squares({2: UserError("2 cannot be squared"), 3: UserError("nor 3")})
    batches = load(dataset, [[0, 1], [2, 3], [4]], torch.stack, workers)
    assert next(batches).tolist() == [0, 1]
    with pytest.raises(UserError, match=r"^2 cannot be squared$"):
        next(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_no_memory_for_an_image_is_one_line(workers):
    with pytest.raises(UserError, match=r"memory.*data\.workers=0"):
        list(load(Squares({0: MemoryError()}), [[0]], torch.stack, workers))


def test_no_shared_memory_for_a_batch_is_one_line(monkeypatch):
    def fail(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(UserError, match=r"memory.*data\.workers=0"):
        list(load(Squares(), [[0]], torch.stack, 1))
    list(load(Squares(), [[0]], torch.stack, 0))


def test_no_processes_for_workers_is_one_line(monkeypatch):
    def fail(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fail)
    with pytest.raises(UserError, match=r"data\.workers=2.*Resource temporarily unavailable"):
        list(load(Squares(), [[0]], torch.stack, 2))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of child processes")
def test_a_worker_that_dies_is_one_line_at_the_next_batch():
    batches = load(Squares(), [[i] for i in range(20)], torch.stack, 1)
    next(batches)
    [worker] = multiprocessing.active_children()
    worker.kill()
    # Nothing is raised here, where a training would be in the middle of a step.
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(UserError, match=r"has ended \(SIGKILL\).*data\.workers=0"):
        list(batches)
    assert not multiprocessing.active_children()


def test_batches_that_nobody_reads_any_more_keep_no_workers():
    for batch in load(Squares(), [[0]] * 20, torch.stack, 2):
        assert batch.tolist() == [0]
        break
    assert not multiprocessing.active_children()


def test_workers_that_hang_are_killed(monkeypatch):
    class Hanging(Squares):
        def __getitem__(self, i):
            if i:
                time.sleep(1000)
            return super().__getitem__(i)

    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = load(Hanging(), [[0], [1]], torch.stack, 1)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()


def test_batches_are_read_in_their_order_while_the_ones_before_are_in_use():
    started, threads = [], set()
    is_read = {i: threading.Event() for i in range(6)}

    def read(i):
        threads.add(threading.current_thread())
        is_read[i].set()
        return i * i

    for i, square in enumerate(read_ahead(read, (started.append(i) or i for i in range(6)), ahead=2)):
        assert square == i * i
        assert started == list(range(min(i + 3, 6)))  # no more are held than this one and two
        assert is_read[started[-1]].wait(DEADLINE)
    assert len(threads) == 1
    assert threads.isdisjoint(threading.enumerate())


@pytest.mark.parametrize("ending", ["error", "close", "drop"])
def test_the_thread_that_reads_ends_with_the_use_of_the_batches(ending):
    threads, first_is_used = [], threading.Event()

    def read(i):
        threads.append(threading.current_thread())
        if i:
            assert first_is_used.wait(DEADLINE)
        if i == 1 and ending == "error":
            raise UserError("1 cannot be read")
        return i

    batches = read_ahead(read, range(10**9))
    assert next(batches) == 0
    first_is_used.set()
    if ending == "error":
        with pytest.raises(UserError, match=r"^1 cannot be read$"):
            next(batches)
    elif ending == "close":
        batches.close()
    del batches
    assert not threads[0].is_alive()
    assert len(threads) <= 4  # what was not begun is not read


@pytest.mark.parametrize("features", [True, False], ids=["features", "images"])
def test_training_with_an_unreadable_image_ends_with_the_same_line_for_any_number_of_workers(
    dataset, features
):
    (dataset / "images" / "07.png").write_bytes(b"no image")
    config = write_config(dataset.parent, features={"cache": features})
    lines = set()
    for workers in (0, 1, 2):
        out = run(
            dataset.parent, "train", "--config", config, "--overwrite", f"data.workers={workers}", status=2
        )
        lines.add(out.strip().splitlines()[-1])
        assert not multiprocessing.active_children()
    [line] = lines
    assert "07.png cannot be read" in line


READER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from data.loading import load
from startup import run_script
from utils import UserError

class Images(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return torch.tensor(i)

batches = load(Images(), [[i] for i in range(10**6)], torch.stack, 2)  # lives until the interpreter ends

def main():
    for batch in batches:
        if batch == 3:
            print("reading", flush=True)
            if sys.argv[2] == "error":
                raise UserError("no more")

run_script(main)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
@pytest.mark.slow
def test_no_process_is_left_behind_whatever_ends_the_parent():
    """Three at once, because importing torch takes seconds."""
    readers = {
        ending: subprocess.Popen(
            [sys.executable, "-c", READER, str(ROOT), ending], env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )
        for ending in ("error", "SIGTERM", "SIGKILL")
    }  # fmt: skip
    try:
        for process in readers.values():
            assert process.stdout.readline() == "reading\n"
        os.killpg(readers["SIGTERM"].pid, signal.SIGTERM)
        readers["SIGKILL"].kill()  # the parent alone: its workers notice that it is gone
        ended = {}
        for ending, process in readers.items():
            _, errors = process.communicate(timeout=DEADLINE)
            ended[ending] = process.returncode, errors if ending != "SIGKILL" else ""
    finally:
        empty = [group_is_empty(process) for process in readers.values()]
    assert all(empty)
    assert ended == {"error": (2, "error: no more\n"), "SIGTERM": (143, "stopped\n"), "SIGKILL": (-9, "")}
