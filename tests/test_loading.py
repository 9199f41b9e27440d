"""Batches, and the end of the processes and threads that read them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from data.loading import load, read_ahead, read_with_processes, read_with_threads
from tests.helpers import CPU, GPU
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


def in_threads(dataset, batches):
    return read_with_threads(dataset, batches, torch.stack, 2)


def with_workers(workers):
    return lambda dataset, batches: read_with_processes(dataset, batches, torch.stack, workers)


EVERY_WAY = pytest.mark.parametrize(
    "read", [in_threads, *map(with_workers, range(3))], ids=["threads", "0", "1", "2"]
)


@EVERY_WAY
def test_batches_come_in_their_order_and_nobody_reads_after_the_last_one(read):
    batches = [[3, 1], [2], [0, 4]]
    assert [b.tolist() for b in read(Squares(), batches)] == [[9, 1], [4], [0, 16]]
    assert not multiprocessing.active_children()
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())


@EVERY_WAY
def test_an_error_of_an_item_is_the_same_whoever_reads(read):
    dataset = Squares({2: UserError("2 cannot be squared"), 3: UserError("nor 3")})
    batches = read(dataset, [[0, 1], [2, 3], [4]])
    assert next(batches).tolist() == [0, 1]
    with pytest.raises(UserError, match=r"^2 cannot be squared$"):
        next(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("read", "has_processes"), [(in_threads, False), (with_workers(0), False), (with_workers(2), True)]
)
def test_no_memory_for_an_image_is_one_line_that_does_not_advise_what_is_so_already(read, has_processes):
    with pytest.raises(UserError, match=r"memory.*lower train\.batch_size$") as error:
        list(read(Squares({0: MemoryError()}), [[0]]))
    assert ("data.workers=0" in str(error.value)) == has_processes


def test_threads_read_a_batch_together_when_it_is_wanted():
    meeting, read = threading.Barrier(2, timeout=DEADLINE), []

    class Met(Squares):
        def __getitem__(self, i):
            meeting.wait()  # until two threads are here
            read.append(i)
            return super().__getitem__(i)

    batches = in_threads(Met(), [[0, 1], [2, 3]])
    assert not read
    assert next(batches).tolist() == [0, 1]
    assert sorted(read) == [0, 1]
    assert next(batches).tolist() == [4, 9]


def test_threads_that_read_compute_with_one_thread_each_and_leave_the_others_theirs():
    class Threads(torch.utils.data.Dataset):
        def __getitem__(self, i):
            return torch.tensor(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        [batch] = in_threads(Threads(), [[0, 1]])
        assert batch.tolist() == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_cpu_reads_with_its_threads_and_a_gpu_with_processes():
    for compute, processes in ((CPU, 0), (GPU, 2)):
        batches = load(Squares(), [[0], [1], [2]], torch.stack, 2, compute)
        next(batches)
        assert len(multiprocessing.active_children()) == processes
        batches.close()


def test_no_shared_memory_for_a_batch_is_one_line(monkeypatch):
    def fail(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(UserError, match=r"memory.*data\.workers=0"):
        list(with_workers(1)(Squares(), [[0]]))
    list(with_workers(0)(Squares(), [[0]]))


def test_no_processes_for_workers_is_one_line(monkeypatch):
    def fail(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fail)
    with pytest.raises(UserError, match=r"data\.workers=2.*Resource temporarily unavailable"):
        list(with_workers(2)(Squares(), [[0]]))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals of child processes")
def test_a_worker_that_dies_is_one_line_at_the_next_batch():
    batches = with_workers(1)(Squares(), [[i] for i in range(20)])
    next(batches)
    [worker] = multiprocessing.active_children()
    worker.kill()
    # Nothing is raised here, where a training would be in the middle of a step.
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(UserError, match=r"has ended \(SIGKILL\).*data\.workers=0"):
        list(batches)
    assert not multiprocessing.active_children()


def test_batches_that_nobody_reads_any_more_keep_no_workers():
    for batch in with_workers(2)(Squares(), [[0]] * 20):
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
    batches = with_workers(1)(Hanging(), [[0], [1]])
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
def test_training_with_an_unreadable_image_ends_with_one_line(dataset, features):
    (dataset / "images" / "07.png").write_bytes(b"no image")
    config = write_config(dataset.parent, features={"cache": features})
    out = run(dataset.parent, "train", "--config", config, "--overwrite", status=2)
    assert "07.png cannot be read" in out.strip().splitlines()[-1]


READER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from data.loading import read_with_processes
from startup import run_script
from utils import UserError

class Images(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return torch.tensor(i)

# lives until the interpreter ends
batches = read_with_processes(Images(), [[i] for i in range(10**6)], torch.stack, 2)

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
