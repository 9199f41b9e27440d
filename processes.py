"""Several processes that train one model: torchrun starts them, torch.distributed connects them.

    torchrun --nproc-per-node=4 train.py --config config.yaml

Files are written and lines are printed by the main process, whose rank is 0.
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
_ENDED = (
    "another process of this training has ended; continue with --resume, or let torchrun do so with "
    "--max-restarts=3"
)


class Collectives:
    """What the processes of a training tell each other. All of them have to call a method, in the same order.

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


def is_main() -> bool:
    """Whether this process is the one that writes and prints; see Compute.is_main."""
    return not dist.is_initialized() or dist.get_rank() == 0


def is_restarted() -> bool:
    """Whether torchrun has started this program again, after one of its processes had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect the processes that torchrun has started. For a process on its own, this does nothing.

    Raises:
        UserError: there are more processes on this machine than GPUs, or another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise UserError(f"--nproc-per-node: this machine has {num_gpus} GPUs; start as many processes")
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
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
        raise UserError(_ENDED) from None
    dist.destroy_process_group()  # not after an error, when it could wait for a process that has ended


def _is_first(store: dist.Store) -> bool:
    """Whether this is the first process that ends with an error. It says why; the others follow from it."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # whoever keeps the store has ended
        return False
