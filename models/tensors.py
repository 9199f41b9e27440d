"""Tensors from files: everything that torch.load reads is checked here before it is used."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from compute import require_memory
from files import require_regular
from utils import UserError

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}

_LARGEST_RATIO = 4  # of a compressed file: weights have few bits that can be saved, captions most of them


class UnreadableError(Exception):
    """Why a file cannot be read, as the part of a message."""


def read_tensors(path: Path) -> object:
    """What torch.save wrote to `path`, on the CPU, without running code from the file.

    Raises:
        UserError: `path` is no regular file, or is larger than the memory.
        UnreadableError: the file cannot be read or is damaged; the message is the reason.
    """
    require_regular(path)
    try:
        require_memory(path.stat().st_size, str(path), "use a smaller file")
        with warnings.catch_warnings():  # of torch, about files that it did not write
            warnings.simplefilter("ignore")
            if zipfile.is_zipfile(path):
                _check_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UserError, UnreadableError):
        raise
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except Exception as error:
        # zipfile and the unpickler raise anything for a damaged file. The unpickler's own text is long, and
        # advises to load the file without any protection.
        raise UnreadableError(f"torch.load ends with {type(error).__name__}") from error


def _check_archive(path: Path) -> None:
    """Raise an UnreadableError for a zip archive that holds too much, or that was damaged.

    torch.load does not look at the checksums (0.1 s for 100 MB), and it would unpack any amount of data.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
            raise UnreadableError("it is compressed in a way that torch does not read")
        if sum(entry.file_size for entry in entries) > _LARGEST_RATIO * path.stat().st_size:
            raise UnreadableError(f"it claims to hold more than {_LARGEST_RATIO} times its size")
        if damaged := archive.testzip():
            raise UnreadableError(f"the checksum of its part {damaged!r} is wrong")


def write_compressed(content: object, path: Path) -> None:
    """What torch.save writes, in less space; the same content gives the same bytes."""
    stored = io.BytesIO()
    torch.save(content, stored)
    with (
        zipfile.ZipFile(stored) as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as compressed,
    ):
        for entry in archive.infolist():
            # With a name instead of a ZipInfo, the archive would contain the time.
            named = zipfile.ZipInfo(entry.filename)
            named.compress_type = zipfile.ZIP_DEFLATED
            compressed.writestr(named, archive.read(entry))


def damage(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What makes one of the tensors unusable as weights, as the end of a message; None if all are usable."""
    for name, tensor in tensors.items():
        if reason := _damage(tensor):
            return f"{name} {reason}"
        if name.endswith("running_var") and tensor.numel() and tensor.min() < 0:
            return f"{name} has a negative variance"
    return None


def _damage(tensor: torch.Tensor) -> str | None:
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    if not is_plain or tensor.is_quantized or tensor.is_nested or tensor.device.type == "meta":
        return "is not an ordinary tensor"
    if tensor.dtype not in _FLOATS | _INTEGERS:
        return f"has numbers of the type {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"has a shape, {tuple(tensor.shape)}, for which its numbers do not suffice"
    return None if is_finite(tensor) else "has numbers that are not finite"


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of the tensor is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # The extremes are NaN if any number is. This is fifty times as fast as tensor.isfinite().all().
    return bool(torch.stack(tensor.aminmax()).float().isfinite().all())


def misfit(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Why `found` is not a state dict for a model whose own is `expected`; None if it is one.

    `expected` may be on torch's meta device: only names, shapes and kinds of numbers are compared.
    """
    for name, own in expected.items():
        if name not in found:
            return f"{name} is missing"
        if (shape := tuple(found[name].shape)) != tuple(own.shape):
            return f"{name} has the shape {shape} instead of {tuple(own.shape)}"
        if found[name].is_floating_point() != own.is_floating_point():
            return f"{name} has {found[name].dtype} instead of {own.dtype}"
    if unknown := found.keys() - expected.keys():
        return f"{min(unknown)} has no place in it"
    return None
