"""Checkpoint files: written whole, and checked as a whole before anything in them is used."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from config import Config
from config_reading import make_config
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from files import replacing
from models.neighbours import Neighbours
from models.tensors import UnreadableError, damage, read_tensors
from utils import UserError

CHECKPOINT_FORMAT = 2
# The model that comes with the project; the card beside it describes it.
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained" / "flickr8k.pth"
_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,4096}")  # can be printed on one line


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, checked; `unpack_model` in models/model.py makes a model of it."""

    path: Path  # for messages
    config: Config
    vocabulary: Vocabulary
    transform: ImageTransform
    encoder_digest: str  # SHA-256 of the encoder's weights, see EncoderCNN.digest
    model: dict[str, torch.Tensor]  # the weights, all finite; the encoder may be missing, see `pack_model`
    training: dict[str, Any] | None  # the state of the run in checkpoints.pth, not checked; None in best.pth
    neighbours: Neighbours | None = None  # see training/neighbours.py


def _is_plain(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A configuration as `Config.as_dict` writes it: it can be printed in messages."""
    for section, values in config.items():
        depth = 2 if section == "phases" else 0  # a phase has sections with keys
        for key, value in values.items():
            if not all(
                _is_plain_value(item, depth) for item in (value if isinstance(value, list) else [value])
            ):
                raise ValueError(f"{section}.{key} is neither a number, nor text on one line, nor a list")
    return config


def _is_plain_value(value: object, depth: int) -> bool:
    """Whether it is a number, None or text on one line; with `depth` above 0, or a dictionary of such."""
    if isinstance(value, dict) and depth:
        texts = all(isinstance(key, str) and _TEXT.fullmatch(key) for key in value)
        items = [i for item in value.values() for i in (item if isinstance(item, list) else [item])]
        return texts and all(_is_plain_value(item, depth - 1) for item in items)
    return (
        value is None
        or isinstance(value, bool | float)
        or (isinstance(value, int) and abs(value) < 2**63)
        or (isinstance(value, str) and _TEXT.fullmatch(value) is not None)
    )


_Mean = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
_Deviation = Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)]


class _Transform(BaseModel):
    model_config = ConfigDict(strict=True)

    size: int = Field(ge=32, le=8192)
    mean: list[_Mean] = Field(min_length=3, max_length=3)
    std: list[_Deviation] = Field(min_length=3, max_length=3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


class _Content(BaseModel):
    """The dictionary in a checkpoint file."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    format: int
    config: Annotated[dict[str, dict[str, Any]], AfterValidator(_is_plain)]
    vocabulary: list[str]
    transform: _Transform
    encoder_digest: str = Field(pattern="^[0-9a-f]{64}$")
    model: dict[str, torch.Tensor]
    training: dict[str, Any] | None = None
    neighbours: dict[str, torch.Tensor] | None = None


def save_checkpoint(path: Path, checkpoint: dict, write: Callable[[dict, Path], None] | None = None) -> None:
    """Write a dictionary of plain types and tensors, atomically, with `write` instead of torch.save."""
    with replacing(path, size_of(checkpoint)) as temporary:
        (write or torch.save)(checkpoint, temporary)


def size_of(content: object) -> int:
    """Bytes of all tensors in nested dictionaries and lists: about the size of the file that holds them."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        content = list(content.values())
    return sum(map(size_of, content)) if isinstance(content, list | tuple) else 0


def load_checkpoint(path: Path | None) -> Checkpoint:
    """Read and check a checkpoint, without running code from it.

    Whether the weights fit the configuration is checked by `unpack_model`, which may be given another one.

    Args:
        path: the file, or the folder of a run, whose best.pth is read; None: see `find_checkpoint`.

    Raises:
        UserError: there is no such file, or it is damaged or not a checkpoint of this project.
    """
    path = find_checkpoint(path)
    content = _read(path)
    try:
        vocabulary = Vocabulary(content.vocabulary)
    except ValueError as error:
        raise _not_a_checkpoint(path, error) from None
    if content.format == 1:
        _upgrade(content)
    if reason := damage(content.model):
        raise _not_a_checkpoint(path, f"model: {reason}")
    neighbours = None
    if content.neighbours is not None:
        if reason := damage(content.neighbours):
            raise _not_a_checkpoint(path, f"neighbours: {reason}")
        try:
            neighbours = Neighbours.from_dict(content.neighbours, len(vocabulary))
        except ValueError as error:
            raise _not_a_checkpoint(path, f"neighbours: {error}") from None
    return Checkpoint(
        path,
        make_config(content.config, source=str(path)),
        vocabulary,
        ImageTransform.from_dict(content.transform.model_dump()),
        content.encoder_digest,
        content.model,
        content.training,
        neighbours,
    )


def _read(path: Path) -> _Content:
    """The dictionary in the file, with the right keys and types."""
    try:
        raw = read_tensors(path)
    except UnreadableError as error:
        raise _not_a_checkpoint(path, error) from error
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise _not_a_checkpoint(path, "it has no format number")
    if not 1 <= raw["format"] <= 999:
        raise _not_a_checkpoint(path, "its format number is not one")
    if raw["format"] not in (1, CHECKPOINT_FORMAT):
        raise UserError(
            f"{path} has checkpoint format {raw['format']}, this code reads {CHECKPOINT_FORMAT}; "
            "use the version of the code that wrote it"
        )
    try:
        return _Content.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part)[:40] for part in problem["loc"])
        raise _not_a_checkpoint(path, f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None


def _not_a_checkpoint(path: Path, reason: object) -> UserError:
    return UserError(
        f"{path} is not a checkpoint of this project, or it is damaged ({reason}); use a run's best.pth"
    )


def _upgrade(content: _Content) -> None:
    """Format 1 -> 2: one layer of the LSTM decoder was renamed."""
    average = (content.training or {}).get("average")
    for state in (content.model, average if isinstance(average, dict) else {}):
        for key in [key for key in state if re.match(r"(decoder|module)\.picture\.", str(key))]:
            state[key.replace("picture.", "project_image.", 1)] = state.pop(key)


def find_checkpoint(path: Path | None = None) -> Path:
    """The checkpoint at `path`, or in the run folder `path`; None: see `newest_checkpoint`.

    Raises:
        UserError: there is none.
    """
    if path is None:
        return newest_checkpoint(Path("runs"))
    if os.path.isdir(path):
        path = path / "best.pth"
    if not os.path.exists(path):
        raise UserError(f"no checkpoint at {path}; train one with train.py or pass --checkpoint FILE")
    return path


def newest_checkpoint(folder: Path) -> Path:
    """The most recent best.pth of the runs in `folder` or, without one, PRETRAINED. Prints which.

    Raises:
        UserError: there is neither.
    """
    found = sorted(filter(os.path.isfile, folder.glob("*/best.pth")), key=os.path.getmtime)
    if not found and PRETRAINED.is_file():
        print(f"checkpoint: {PRETRAINED} (no run in {folder.absolute()} has one)")
        return PRETRAINED
    if not found:
        raise UserError(
            f"no checkpoint under {folder.absolute()}; train one with train.py or pass --checkpoint FILE"
        )
    print(f"checkpoint: {found[-1]}")
    return found[-1]
