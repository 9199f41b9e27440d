"""Trainings in several processes, as torchrun starts them, forked from one that has imported everything."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import uuid
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import jobs.train  # noqa: F401  (imported once, for all processes that are forked)
from tests.script_helpers import ended
from training.trainer import Trainer

_SECONDS = 120  # after which processes that wait for something are ended


class Job(NamedTuple):
    """A script that two processes run together."""

    arguments: Sequence[object]
    script: str = "train"
    signal_at: tuple[int, int] | None = None  # a signal to the process with rank 1, and the training step


class Ended(NamedTuple):
    """How one of the processes ended a job."""

    status: int
    out: str
    err: str


def both(folder: Path, *jobs: Job) -> list[list[Ended | None]]:
    """How two processes end each of the jobs, which they do one after the other in `folder`, by rank.

    None: the process was killed. After an error there can be no other job.
    """
    ports = _free_ports(len(jobs))
    _join([_start(_one_of_two, rank, ports, str(folder), jobs) for rank in range(2)])
    return [_read(folder, f"job-{number}") for number in range(len(jobs))]


def restarted(folder: Path, job: Job) -> list[list[Ended | None]]:
    """The same for `torchrun --max-restarts=1` and one job: a list for each of the starts."""
    _join([_start(_agent, str(folder), job)])
    return [_read(folder, f"start-{start}") for start in range(2)]


def _write(folder: str, name: str, ended: Ended) -> None:
    Path(folder, f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(ended))


def _read(folder: Path, name: str) -> list[Ended | None]:
    """What two processes have written; the files are removed."""
    found: list[Ended | None] = []
    for file in (folder / f"{name}-{rank}.json" for rank in range(2)):
        found.append(Ended(*json.loads(file.read_text())) if file.exists() else None)
        file.unlink(missing_ok=True)
    return found


def _start(target, *arguments) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.launched"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _join(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join(_SECONDS)
    waiting = [process for process in processes if process.is_alive()]
    for process in waiting:
        process.kill()
    assert not waiting


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for tried in sockets:
            tried.bind(("127.0.0.1", 0))
        return [tried.getsockname()[1] for tried in sockets]


def _one_of_two(rank: int, ports: Sequence[int], folder: str, jobs: Sequence[Job]) -> None:
    for number, (port, job) in enumerate(zip(ports, jobs, strict=True)):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in variables.items()}}
        _write(folder, f"job-{number}", _done(folder, job))


def _agent(folder: str, job: Job) -> None:
    """What torchrun --standalone --nproc-per-node=2 --max-restarts=1 does."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=1, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _worker)(folder, job)


def _worker(folder: str, job: Job) -> None:
    start = os.environ["TORCHELASTIC_RESTART_COUNT"]
    found = _done(folder, job if start == "0" else job._replace(signal_at=None))
    _write(folder, f"start-{start}", found)
    raise SystemExit(found.status)


def _done(folder: str, job: Job) -> Ended:
    """Run a script in this process."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    with (
        mock.patch("training.record.draw_curves"),
        mock.patch("metrics.meteor.find_java", return_value=None),
        _signal(*job.signal_at or (0, 0)),
    ):
        return Ended(*ended(Path(folder), job.script, *job.arguments))


@contextlib.contextmanager
def _signal(number: int, at: int) -> Iterator[None]:
    """Let the process with rank 1 receive a signal in step `at`."""
    step = Trainer.step

    def interrupted_step(self, *arguments):
        if self.compute.rank == 1 and self.steps + 1 == at:
            signal.raise_signal(number)
        return step(self, *arguments)

    with mock.patch.object(Trainer, "step", interrupted_step):
        yield
