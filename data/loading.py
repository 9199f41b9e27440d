"""Batches of a dataset. The processes or threads that read them end with whoever uses the batches."""

import atexit
import contextlib
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from compute import Compute
from data.transforms import read_image
from utils import UserError

T = TypeVar("T")
R = TypeVar("R")
_OUT_OF_MEMORY = "the memory is used up while images are read; lower train.batch_size"
_OUT_OF_SHARED_MEMORY = (
    "the memory, or the memory that processes share, is used up while images are read; set data.workers=0 or "
    "lower train.batch_size"
)
# Otherwise torch would raise the death of a worker anywhere, for example in the middle of an optimiser step.
torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = True


def read_listed_image(path: Path) -> Image.Image:
    """The image of a row of the captions file; raises UserError if it cannot be read."""
    try:
        return read_image(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); replace it or remove its captions") from None


def load(
    dataset: Dataset,
    batches: Iterable[list],
    collate: Callable[[list], Any],
    workers: int,
    compute: Compute,
) -> Generator[Any, None, None]:
    """The items of each batch, collated, in the order of `batches`.

    For a GPU, processes read ahead. If the CPU computes, they would take its cores from the threads that
    compute, of which all wait for the slowest; so these cores read a batch when the one before has been used.

    Args:
        batches: what is passed to `dataset[...]` for the items of each batch.
        collate: list of items -> tensor or tuple of tensors.
        workers: processes that read for a GPU; 0 reads in this process.

    Raises:
        UserError: the dataset raised it for an item, memory is used up, or a worker has died.
    """
    if compute.is_cpu:
        return read_with_threads(dataset, batches, collate, torch.get_num_threads())
    return read_with_processes(dataset, batches, collate, workers, compute.pins_memory)


def read_with_threads(
    dataset: Dataset, batches: Iterable[list], collate: Callable[[list], Any], threads: int
) -> Generator[Any, None, None]:
    """`load` by threads, which read while somebody waits for the batch. Decoding and resizing need no GIL."""
    items = _ErrorsAsItems(dataset)
    # A thread that called torch with several threads would have some of its own.
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        for batch in batches:
            yield _raised(_collate(collate, list(pool.map(items.__getitem__, batch))))


def read_with_processes(
    dataset: Dataset,
    batches: Iterable[list],
    collate: Callable[[list], Any],
    workers: int,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    """`load` by processes, which end when the iterator does: at the last batch, with an error, or when it is
    closed or dropped.
    """
    loader = DataLoader(
        _ErrorsAsItems(dataset),
        batch_sampler=batches,
        collate_fn=partial(_collate, collate),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_ending_to_parent,
        generator=torch.Generator(),  # leaves torch's global generator, which a resume restores, unchanged
    )
    iterator: Any = None
    processes: list[BaseProcess] = []
    try:
        with _signals_blocked():
            iterator = _start(loader)
            processes = getattr(iterator, "_workers", [])
        while (batch := _next(iterator, processes)) is not None:
            yield _raised(batch)
    finally:
        try:
            if processes:
                iterator._shutdown_workers()
        finally:
            _kill(processes)  # those that are still busy


def read_ahead(read: Callable[[T], R], batches: Iterable[T], ahead: int = 2) -> Generator[R, None, None]:
    """`read(batch)` for each batch, in order. A thread reads `ahead` batches while the last one is in use.

    What `read` raises is raised here when it is the turn of its batch. The thread ends when the iterator
    does: at the last batch, with an error, or when it is closed or dropped.
    """
    thread, results = ThreadPoolExecutor(1), deque[Future[R]]()
    try:
        for batch in batches:
            results.append(thread.submit(read, batch))
            if len(results) > ahead:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


class _ErrorsAsItems(Dataset):
    """A dataset with the errors that it raises as its items: torch would add tracebacks to the message."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, i: Any) -> Any:
        try:
            return self.dataset[i]
        except UserError as error:
            return error
        except MemoryError:
            return UserError(_OUT_OF_SHARED_MEMORY if get_worker_info() else _OUT_OF_MEMORY)


def _raised(batch: T | UserError) -> T:
    """The batch; an error that came instead of it is raised."""
    if isinstance(batch, UserError):
        raise batch
    return batch


def _collate(collate: Callable[[list], Any], items: list) -> Any:
    """A batch, or the first error among the items."""
    for item in items:
        if isinstance(item, UserError):
            return item
    batch = collate(items)
    if get_worker_info():
        # torch would do this in a thread that drops the batch if memory is used up; the parent would wait.
        try:
            for tensor in batch if isinstance(batch, tuple) else [batch]:
                tensor.share_memory_()
        except RuntimeError:
            return UserError(_OUT_OF_SHARED_MEMORY)
    return batch


def _leave_ending_to_parent(_worker: int) -> None:
    """Let the parent decide when a worker ends, and what is printed about it."""
    # Ctrl-C and SIGTERM reach all processes, and the parent has to finish its step first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A thread of multiprocessing reports with this hook that the parent has gone. Errors of the dataset are
    # items, so there is nothing else to report.
    sys.excepthook = lambda *_: None


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """For the start of workers, which inherit this: no signal reaches them before they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(loader: DataLoader) -> Iterator:
    try:
        return iter(loader)
    except OSError as error:
        raise UserError(
            f"data.workers={loader.num_workers}: the system starts no more processes ({error}); lower it"
        ) from None


def _next(iterator: Iterator, processes: list[BaseProcess]) -> Any:
    """The next batch, an error, or None at the end; raises UserError if a worker has died."""
    try:
        return next(iterator, None)
    except RuntimeError:
        codes = [process.exitcode for process in processes if process.exitcode is not None]
        if not codes:
            raise
        name = signal.Signals(-codes[0]).name if codes[0] < 0 else f"status {codes[0]}"
        raise UserError(f"a process that reads images has ended ({name}): {_OUT_OF_SHARED_MEMORY}") from None


@atexit.register  # runs before the handler of multiprocessing, which waits for children that ignore SIGTERM
def _kill_all() -> None:
    _kill([process for process in multiprocessing.active_children() if process.daemon])


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
