"""Several processes that do one job: torchrun starts them, torch.distributed connects them.

    torchrun --nproc-per-node=4 train.py --config config.yaml

Files are written and lines are printed by the main process, whose rank is 0. docs/scale.md explains the rest.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from utils import UserError

T = TypeVar("T")
# Of a single message. No process waits for longer than the others take to write, to draw or to score; a
# process that has ended is noticed at once.
_TIMEOUT = timedelta(hours=1)
_SILENT = 2  # exit status


class Collectives:
    """What the processes of a job tell each other. All of them have to call a method, in the same order.

    A process on its own gets back what it passes.
    """

    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes the files and the log."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """The items for this process: every `world_size`-th one, starting at its rank."""
        return items[self.rank :: self.world_size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, without a gradient."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def sums(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`sum` of scalars by name, as one message."""
        if self.world_size == 1:
            return dict(tensors)
        stacked = torch.stack([tensor.double() for tensor in tensors.values()])
        return dict(zip(tensors, self.sum(stacked).to(torch.float32), strict=True))

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers. It waits for the other processes, but not for a GPU."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)

    def gather(self, item: T) -> list[T]:
        """The items of all processes, by rank."""
        items = [item] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(items, item)
        return items

    def gather_in_main(self, item: T) -> list[T]:
        """The items of all processes, by rank; in the other processes, their own item."""
        items = [item] * self.world_size
        if self.world_size > 1:
            dist.gather_object(item, items if self.is_main else None)
        return items if self.is_main else [item]


def group() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    connects = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connects else (0, 1)


def is_main() -> bool:
    """Whether this process is the one that writes and prints; see Compute.is_main."""
    return group()[0] == 0


def is_restarted() -> bool:
    """Whether torchrun has started this job again, after one of its processes had ended.

    Each machine has a count of its own, so that one that was added later does not know of earlier ends.
    """
    count = torch.tensor(_from_torchrun("RESTART_COUNT"))
    if group()[1] > 1:
        dist.all_reduce(count, dist.ReduceOp.MAX)
    return count.item() > 0


def may_be_restarted() -> bool:
    """Whether torchrun will start this job again if one of its processes ends."""
    return _from_torchrun("MAX_RESTARTS") > 0


def _from_torchrun(name: str) -> int:
    return int(os.environ.get(f"TORCHELASTIC_{name}", 0))


@contextlib.contextmanager
def connected(go_on: str) -> Iterator[None]:
    """Connect the processes that torchrun has started. For a process on its own, this does nothing.

    Args:
        go_on: what to do if one of the processes ends, as the end of a message.

    Raises:
        UserError: there are more processes on this machine than GPUs, another process has ended, or they
            could not be connected again after a restart; or torchrun has not started this process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if missing := {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise UserError(
            f"WORLD_SIZE is set in the environment, but not {min(missing)}; start the processes with "
            "torchrun, or unset WORLD_SIZE"
        )
    if torch.cuda.is_available():
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise UserError(f"--nproc-per-node: this machine has {num_gpus} GPUs; start as many processes")
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world_size = common_store()
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    try:
        with contextlib.ExitStack() as stack:
            if not is_main():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield
    except UserError:
        if not _is_first(store):
            raise SystemExit(_SILENT) from None
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if not _is_first(store):
            raise SystemExit(_SILENT) from None
        raise UserError(f"another process of this job has ended; {go_on}") from None
    dist.destroy_process_group()  # not after an error, when it could wait for a process that has ended


def common_store() -> tuple[dist.Store, int, int]:
    """The store through which the processes find each other, the rank of this one, and their number.

    When torchrun starts processes again, it gives them the store that it gave to the ones before, where they
    would find the addresses of those (https://github.com/pytorch/pytorch/issues/135712). So the addresses
    have the number of the start in their names. Several machines do not count alike, and need new stores.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, world_size
    if may_be_restarted() and int(os.environ["GROUP_WORLD_SIZE"]) > 1:
        if rank:
            raise SystemExit(_SILENT)
        raise UserError(
            "--max-restarts: on several machines, use --rdzv-backend=c10d, and set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of each torchrun"
        )
    return dist.PrefixStore(f"start-{_from_torchrun('RESTART_COUNT')}", store), rank, world_size


def _is_first(store: dist.Store) -> bool:
    """Whether this is the first process that ends with an error. It says why; the others follow from it."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # the main process kept the store, and has ended
        return dist.get_rank() == 1
