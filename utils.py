"""Small things that every script uses: errors for people, devices, seeding, checkpoint files."""

import contextlib
import ctypes
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

CHECKPOINT_FORMAT = 1

# Indices of <pad> <sos> <eos> <unk>: what data and models agree on without knowing each other.
PAD, SOS, EOS, UNK = range(4)


class UserError(Exception):
    """Something the user can mend. The message is one line: the thing, the place, the mend."""


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: status 2 and one line for a UserError, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has gone. Point stdout nowhere so that the interpreter's own flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU (said, since it is rarely what was meant)."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        print(f"No CUDA device found: running on the CPU with {torch.get_num_threads()} threads.")
        name = "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # torch raises AssertionError when it was built without CUDA
        raise UserError(f"run.device={name}: this machine has no such device; use auto or cpu") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, for the next ones (glibc; elsewhere nothing is done).

    It would hand each large block back to the system and get the next one anew, page by page, zeroed: on a
    CPU a convolution spends nearly half of its time so.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        no_mmap, never = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX; M_TRIM_THRESHOLD in bytes
        mallopt(*no_mmap)
        mallopt(*never)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of mixed precision: `auto` is bfloat16 where the hardware computes in it.

    A CUDA device without bfloat16 (compute capability below 8) gets float16, a CPU without it float32.
    """
    if name != "auto":
        dtype = getattr(torch, name)
        if dtype is torch.float16 and device.type == "cpu":
            raise UserError("run.precision=float16 needs CUDA; on a CPU use auto, bfloat16 or float32")
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if device.type == "cpu" and fast else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision on `device`; no context at all for float32."""
    if precision is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch. `deterministic` also makes CUDA choose repeatable kernels (slower)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, torch.Tensor]:
    """The states of torch's generators: all that training draws from besides (seed, epoch, index)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Undo of `random_state`; a state of a device that is not here is left out."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def replacing(path: Path):
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    A reader, or a run that is killed while it writes, sees the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a dictionary of plain types and tensors, atomically."""
    try:
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)
    except OSError as error:
        raise UserError(f"cannot write the checkpoint {path}: {error.strerror}") from None


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU without running code from it.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; train one with train.py or pass --checkpoint FILE")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        checkpoint = None  # whatever the unpickler stumbled over: it is not one of our files
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this project (or is damaged); use a run's best.pth")
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {checkpoint['format']}, this code reads {CHECKPOINT_FORMAT}; "
            "use the version of the code that wrote it"
        )
    return checkpoint


def newest_checkpoint(folder: Path) -> Path:
    """The best.pth written last among the runs in `folder`; raises UserError where there is none."""
    found = sorted(folder.glob("*/best.pth"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            f"no checkpoint under {folder.absolute()}; train one with train.py or pass --checkpoint FILE"
        )
    print(f"checkpoint: {found[-1]}")
    return found[-1]
