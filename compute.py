"""How to compute: the device, the precision, the memory, the processes, and the random state.

A `Compute` is passed to all code that runs the model. The CPU is tested. CUDA, Apple's MPS and Intel's XPU
use the same calls of torch, but have not been tested.
"""

from startup import runs_a_script

import contextlib
import ctypes
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from files import readable_size
from processes import Collectives, group
from threads import busy_cores, cores, threads_are_set
from utils import UserError

_CPU = torch.device("cpu")
# Numbers that a CPU computes at once: few enough (1 MB in float32) that all steps find them in its cache.
BLOCK = 2**18
# In the messages of errors (lower case): allocations that failed, and sizes that no number of 64 bits holds.
_SIGNS_OF_TOO_MUCH = (
    "out of memory",
    "can't allocate memory",
    "invalid buffer size",
    "storage size calculation overflowed",
    "integer multiplication overflow",
    "overflow when unpacking long",
)


@dataclass(frozen=True)
class Compute(Collectives):
    """A device, the dtype of mixed precision, and the rank of this process among `world_size` processes."""

    device: torch.device
    precision: torch.dtype = torch.float32
    rank: int = 0
    world_size: int = 1

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto", threads: int = 0) -> "Compute":
        """From run.device, run.precision and run.threads.

        `auto` takes the accelerator that torch finds, or else the CPU. As a precision, it takes bfloat16 if
        the device supports it, or else float16 on CUDA and float32 on other devices.

        Raises:
            UserError: there is no such device, it does not support the precision, or all of several
                processes would use it.
        """
        chosen, (rank, world_size) = choose_device(device, threads), group()
        if world_size > 1 and chosen.index is not None:
            raise UserError(
                f"run.device={device}: each of several processes has a device of its own; use auto or "
                f"{chosen.type}"
            )
        return cls(chosen, choose_precision(precision, chosen), rank, world_size)

    @property
    def pins_memory(self) -> bool:
        """Whether batches are put into page-locked memory, so that copying overlaps with computing."""
        return self.device.type not in ("cpu", "mps")

    @property
    def is_cpu(self) -> bool:
        """Whether results are there at once, and not only when a device has computed them."""
        return self.device.type == "cpu"

    def to_device(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The tensors on the device; copies from page-locked memory are asynchronous."""
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def autocast(self) -> contextlib.AbstractContextManager:
        """A context for mixed precision; for float32 it does nothing."""
        if self.precision is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def explain_memory(self, advice: str) -> contextlib.AbstractContextManager:
        """Turn an out-of-memory error of the device into a UserError that ends with `advice`."""
        return explain_memory(advice, self.device)

    def free_gpu_memory(self) -> int:
        """Bytes that are free on the NVIDIA GPU; 0 for any other device."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def random_state(self) -> dict[str, torch.Tensor]:
        """The states of torch's random generators, by type of device."""
        state = {"cpu": torch.get_rng_state()}
        if not self.is_cpu:
            state[self.device.type] = torch.get_device_module(self.device).get_rng_state(*self.generator)
        return state

    def restore_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """Set what `random_state` returned; the state of another kind of device is ignored."""
        torch.set_rng_state(state["cpu"])
        if not self.is_cpu and self.device.type in state:
            torch.get_device_module(self.device).set_rng_state(state[self.device.type], *self.generator)

    @property
    def generator(self) -> tuple[torch.device, ...]:
        """The device as an argument of functions that choose its generator; Apple's MPS has only one."""
        return () if self.device.type == "mps" else (self.device,)


def choose_device(name: str, threads: int = 0) -> torch.device:
    """The device `name`; prints a message if `auto` falls back to the CPU, which is rarely intended.

    `threads`: see `use_threads`.
    """
    is_fallback = name == "auto"
    if is_fallback:
        if accelerator := torch.accelerator.current_accelerator(check_available=True):
            return accelerator
        name = "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the device `meta`, without numbers, does not have
    except (RuntimeError, AssertionError):  # torch raises AssertionError when it was built without the device
        raise UserError(f"run.device={name}: this machine has no such device; use auto or cpu") from None
    if device.type == "cpu":
        _keep_freed_memory()
        use_threads(threads)
        if is_fallback:
            count = torch.get_num_threads()
            print(f"No GPU found: running on the CPU with {count} thread{'s' * (count > 1)}.")
    return device


def use_threads(count: int) -> None:
    """Compute with `count` CPU threads; 0: in scripts, with one for each core that other programs leave free.

    OMP_NUM_THREADS, which torchrun sets, takes precedence over 0.
    """
    most = torch.get_num_threads()
    if count:
        torch.set_num_threads(min(count, max(most, cores())))
        return
    if threads_are_set() or not runs_a_script():
        return
    busy = busy_cores()
    free = max(cores() - busy, 1)
    if free < most:
        torch.set_num_threads(free)
        if busy:
            print(f"Other programs keep {busy} of {cores()} cores busy; run.threads={most} uses them too.")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of mixed precision on `device`; see `Compute.choose`."""
    if name != "auto":
        dtype = getattr(torch, name)
        if dtype is torch.float16 and device.type == "cpu":
            raise UserError("run.precision=float16 needs a GPU; on a CPU use auto, bfloat16 or float32")
        return dtype
    if device.type == "cpu":
        # The fallback is for versions of torch that do not have this function.
        fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if fast else torch.float32
    supports_bfloat16 = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if supports_bfloat16 and supports_bfloat16(including_emulation=False):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


@cache
def has_bfloat16_lstm() -> bool:
    """Whether an nn.LSTM runs on this CPU in bfloat16; oneDNN refuses without the instructions for it."""
    with torch.device("meta"):  # draws no random numbers
        lstm = nn.LSTM(8, 8)
    lstm.to_empty(device="cpu")
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            lstm(torch.zeros(1, 1, 8))
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def explain_memory(advice: str, device: torch.device = _CPU) -> Iterator[None]:
    """Turn an out-of-memory error into a UserError that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError, TypeError, OverflowError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{device} has run out of memory; {advice}") from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is an error of an allocation, or of a size that is more than any machine could have."""
    text = str(error).lower()  # not every device raises torch.OutOfMemoryError
    return isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS_OF_TOO_MUCH)


def require_memory(size: int, what: str, advice: str, device: torch.device = _CPU) -> None:
    """Raise a UserError that ends with `advice` if the device does not have `size` bytes of memory.

    What the device has in all is compared, not what is free now: other programs may end. So `size` is a lower
    bound of what `what` takes, and nothing that could be done is refused.
    """
    has = total_memory(device)
    if has is not None and size > has:
        needed = readable_size(min(size, 10**18))
        raise UserError(
            f"{what} needs {needed} of memory or more, and {device} has {readable_size(has)}; {advice}"
        )


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that the device has and this process may use, with swap space; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return _main_memory() if device.type in ("cpu", "mps") else None


@cache
def _main_memory() -> int | None:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    memory, swap = [physical], 0
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not in a container, or `max`
            memory.append(int(Path(limit).read_text()))
    with contextlib.suppress(OSError, ValueError):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        swap = sum(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal"))
    return min(memory) + swap


def _keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for new ones (glibc only).

    By default it returns each large block to the system and requests a new one, which the system first
    fills with zeros. On a CPU, convolutions spend nearly half of their time waiting for that.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        no_mmap, never = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX; M_TRIM_THRESHOLD in bytes
        mallopt(*no_mmap)
        mallopt(*never)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch.

    `deterministic`: CUDA uses deterministic kernels, which are slower. For an operation that has none, such
    as the gradient of encoder.grid, torch prints a warning.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
