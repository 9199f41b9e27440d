"""Files of encoder weights: state dicts of torch or safetensors, checked before they are used."""

import re
from pathlib import Path

import torch
from torch import nn

from compute import require_memory
from files import require_regular
from models.tensors import UnreadableError, damage, misfit, read_tensors
from utils import UserError


def load_weights(backbone: nn.Module, name: str, path: Path) -> None:
    """Fill a backbone of torchvision from a file; raises UserError if it has the weights of another model."""
    # The file also has the classifier, and the stages after the last one in use.
    state, own = read_weights(path), backbone.state_dict()
    if name.startswith("densenet"):  # torchvision's own files have the names of before 2018
        state = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key): value for key, value in state.items()}
    state = {key: state[key] for key in own if key in state}
    own = {key: own[key] for key in own if key in state or not key.endswith("num_batches_tracked")}
    if reason := misfit(state, own):
        raise UserError(
            f"encoder.weights={path}: not weights of {name} ({reason}); set encoder.name to their model"
        )
    require_undamaged(state, path)
    backbone.load_state_dict(state, strict=False)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file, without what training scripts wrap around it.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    reader = "torch.load reads with weights_only=True"
    try:
        if path.suffix == ".safetensors":
            reader = "safetensors reads"
            state: object = _read_safetensors(path)
        else:
            state = read_tensors(path)
    except UnreadableError as error:
        raise UserError(f"encoder.weights={path}: not a file that {reader} ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise UserError(f"encoder.weights={path}: not a state dict (names with tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def require_undamaged(state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise a UserError if one of the tensors from `path` cannot be used as weights."""
    if reason := damage(state):
        raise UserError(f"encoder.weights={path}: {reason}; download or export the file again")


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"encoder.weights={path} needs the package safetensors: pip install -r requirements-extra.txt"
        ) from None
    require_regular(path)
    require_memory(path.stat().st_size, str(path), "use a smaller file")
    try:
        return load_file(path)
    except Exception as error:  # OSError, or one of safetensors' own
        raise UnreadableError(str(error)) from error
