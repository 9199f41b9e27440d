"""Training in several processes: what two of them gain, and what many GPUs can be expected to gain.

reference: one process with one thread; each of the two has one thread and as many images, and they exchange
their gradients over Gloo. The efficiency of many GPUs is computed from the time of a step and the bytes that
it exchanges; see `efficiency`.
"""

from startup import run_script

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.loading import cached_set
from benchmarks.measure import Row, divided, row, seconds_in_turn
from benchmarks.report import measured_rows
from benchmarks.training import training_step
from benchmarks.workload import Settings, batch, config, decoder, name_of, trainer
from compute import Compute
from data.dataset import make_loader, training_batches
from processes import connected
from training.objective import Part

_GPUS = (8, 64, 512)
_OF_MACHINE = 8  # GPUs of a machine
_GPU_SPEEDUP = 100  # how many times as fast a GPU is assumed to be as this CPU
_MESSAGE = 30e-6  # seconds of a small message from one machine to another
_SMALL = 2  # sums of a few numbers in each step, for which the GPUs wait


# Rows from which the rest is computed.
_GRADIENTS, _STEP, _READ = "gradients of a step", "step of a process", "features read by a process"


class Link(NamedTuple):
    """How the machines are connected; their GPUs are, by NVLink."""

    name: str
    bandwidth: float  # bytes/s of each machine, in each direction


_LINKS = (Link("InfiniBand, 400 Gbit/s", 50e9), Link("Ethernet, 25 Gbit/s", 3.1e9))
_NVLINK = Link("NVLink", 300e9)


def benchmark(settings: Settings) -> list[Row]:
    cells, channels = settings.grids[0]
    shape = f"{settings.num_images} x {cells} x {channels}"
    alone, together, num_bytes = _two_processes(settings, cells, channels)
    images = [[settings.num_images / s for s in alone], [2 * settings.num_images / s for s in together]]
    step = training_step(settings, settings.compute, cells, channels)
    with tempfile.TemporaryDirectory() as folder:
        train_set = cached_set(settings, Path(folder), cells, channels)
        draws = training_batches(len(train_set), settings.num_images, seed=1, epoch=1)

        def read() -> None:
            for _ in make_loader(train_set, draws, 0, settings.compute):
                pass

        steps, reads = zip(*seconds_in_turn([step, read], settings), strict=True)
    of_step = [settings.num_images / s for s in steps]
    of_reading = [len(train_set) / s for s in reads]
    ratios = {"reference": divided(images[1], images[0])}
    return [
        row("scaling", "1 process, 1 thread", shape, images[0], "images/s", "float32"),
        row("scaling", "2 processes, 1 thread each", shape, images[1], "images/s", "float32", ratios),
        row("scaling", _GRADIENTS, shape, [num_bytes / 1e6] * 2, "MB"),
        row("scaling", _STEP, shape, of_step, "images/s", name_of(settings.compute)),
        row("scaling", _READ, shape, of_reading, "images/s", "float16"),
    ]


def _two_processes(settings: Settings, cells: int, channels: int) -> tuple[list[float], list[float], int]:
    """Seconds of steps of one process and of two, in turn, and bytes of gradients that two exchange."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = tried.getsockname()[1]
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    context.set_forkserver_preload(["benchmarks.training"])
    receiver, sender = context.Pipe(duplex=False)
    processes = [
        context.Process(target=_steps, args=(rank, port, settings, cells, channels, sender))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    sender.close()  # here, so that receiving ends if the processes do
    found = receiver.recv()
    for process in processes:
        process.join()
    return found


def _steps(rank: int, port: int, settings: Settings, cells: int, channels: int, sender: Connection) -> None:
    """One of two processes. In each round, the first of them takes a step alone, and then both together."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in variables.items()}}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    cpu = Compute(torch.device("cpu"))
    alone: list[float] = []
    together: list[float] = []
    num_bytes = 0

    def count(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal num_bytes
        num_bytes += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None: all processes

    with connected("start the benchmark again"):
        both = replace(cpu, rank=rank, world_size=2)
        models = [
            trainer(decoder(replace(settings, compute=cpu), channels), config(settings), compute)
            for compute in (cpu, both)
        ]
        models[1].parallel.register_comm_hook(None, count)
        parts = [Part(batch(settings, cells, channels), range(settings.num_images))]
        for _ in range(settings.rounds + 1):
            for model, seconds in zip(models, (alone, together), strict=True):
                both.wait()
                began = time.perf_counter()
                if model is models[1] or both.is_main:
                    model.step(parts, epoch=1)
                both.wait()
                seconds.append(time.perf_counter() - began)
        if both.is_main:
            # The first round warms up.
            sender.send((alone[1:], together[1:], num_bytes // (settings.rounds + 1)))


def efficiency(seconds: float, num_bytes: float, gpus: int, link: Link) -> float:
    """The share of its time that a GPU computes, if it exchanges gradients only after computing them.

    In fact DistributedDataParallel exchanges them while others are computed. So this is a lower bound, but
    for what it leaves out: input, and other jobs in the network.

    Args:
        seconds: of a step of one GPU; the number of images of each GPU is the same for any number of GPUs.
        num_bytes: of the gradients. In a ring, each GPU sends 2 (n - 1) / n times as many, over the slowest
            link on its way (Patarasuk and Yuan, 2009).
    """
    machines = max(1, gpus // _OF_MACHINE)
    slowest = _NVLINK if machines == 1 else min(_NVLINK, link, key=lambda each: each.bandwidth)
    exchange = 2 * (gpus - 1) / gpus * num_bytes / slowest.bandwidth
    waiting = (_SMALL + 1) * _MESSAGE * 2 * (machines - 1).bit_length()  # in a tree, there and back
    return seconds / (seconds + exchange + waiting)


def expected(rows: Sequence[Row], settings: Settings, speedup: float) -> str:
    """What to expect of many GPUs, each of which is `speedup` times as fast as what was measured."""
    of = {each.name: each.median for each in rows}
    rate, megabytes = of[_STEP] * speedup, of[_GRADIENTS]
    seconds = settings.num_images / rate
    cells, channels = settings.grids[0]
    input_rate = _OF_MACHINE * rate
    lines = [
        f"Expected: each GPU takes a step on {settings.num_images} images in {1000 * seconds:.1f} ms "
        f"({speedup:g} times as fast as measured here), and exchanges {megabytes:.1f} MB of gradients.",
        f"Assumed: {_OF_MACHINE} GPUs in a machine, {_NVLINK.bandwidth / 1e9:g} GB/s between them, "
        f"{1e6 * _MESSAGE:g} us for a message between machines, nothing exchanged while computing.",
        "",
        f"| GPUs | {' | '.join(f'{link.name} ({link.bandwidth / 1e9:g} GB/s)' for link in _LINKS)} |",
        f"| ---: | {' | '.join('---:' for _ in _LINKS)} |",
    ]
    for gpus in _GPUS:
        shares = [f"{efficiency(seconds, megabytes * 1e6, gpus, link):.0%}" for link in _LINKS]
        lines.append(f"| {gpus} | {' | '.join(shares)} |")
    gigabytes = input_rate * cells * channels * 2 / 1e9
    lines += [
        "",
        f"Input: a machine reads {input_rate:,.0f} images/s, {gigabytes:.2f} GB/s of features; its "
        f"{_OF_MACHINE} processes can read {_OF_MACHINE * of[_READ]:,.0f} images/s from this disk or memory.",
    ]
    return "\n".join(lines)


def main() -> None:
    settings: list[Settings] = []

    def measured(given: Settings) -> list[Row]:
        settings.append(given)
        return benchmark(given)

    rows = measured_rows([measured])
    speedup = _GPU_SPEEDUP if settings[0].compute.is_cpu else 1
    print(f"\n{expected(rows, settings[0], speedup)}")


if __name__ == "__main__":
    run_script(main)
