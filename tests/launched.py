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


def both(folder: Path, *jobs: Job) -> list[list[Ended]]:
    """How two processes end each of the jobs, which they do one after the other in `folder`, by rank."""
    ports = _free_ports(len(jobs))
    _join([_start(_one_of_two, rank, ports, str(folder), jobs) for rank in range(2)])
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return [[Ended(*values) for values in of_job] for of_job in zip(*found, strict=True)]


def restarted(folder: Path, job: Job) -> list[list[Ended | None]]:
    """The same for `torchrun --max-restarts=1` and one job: a list for each of the starts.

    None: the process was killed.
    """
    _join([_start(_agent, str(folder), job)])
    files = [[folder / f"start-{start}-{rank}.json" for rank in range(2)] for start in range(2)]
    return [
        [Ended(*json.loads(file.read_text())) if file.exists() else None for file in files_of_start]
        for files_of_start in files
    ]


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
    found = []
    for port, job in zip(ports, jobs, strict=True):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in variables.items()}}
        found.append(_done(folder, job))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def _agent(folder: str, job: Job) -> None:
    """What torchrun --standalone --nproc-per-node=2 --max-restarts=1 does."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=1, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _worker)(folder, job)


def _worker(folder: str, job: Job) -> None:
    start, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    found = _done(folder, job if start == "0" else job._replace(signal_at=None))
    Path(folder, f"start-{start}-{rank}.json").write_text(json.dumps(found))
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
