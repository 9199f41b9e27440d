"""The training state in a checkpoint: its types, and restoring tensors from it by name."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, InstanceOf, ValidationError, field_validator
from torch import nn

from models.tensors import is_finite

Count = Annotated[int, Field(ge=0)]
Tensor = InstanceOf[torch.Tensor]
Tensors = dict[str, Tensor]
# `event`, and numbers; the perplexity of a high loss is infinite.
_LogRow = dict[str, int | float | Literal["step", "epoch", "resume", "phase"]]


class Misfit(ValueError):
    """A training state does not fit the run; the message says which part."""


class _State(BaseModel):
    model_config = ConfigDict(strict=True)


class _ScheduleState(_State):
    decay: float = Field(gt=0, le=1)
    waited: Count


class _SkippedState(_State):
    """Steps without an update: in this epoch, since the last row of the log, and in a row until now."""

    epoch: Count = 0
    interval: Count = 0
    in_a_row: Count = 0


class PhaseState(_State):
    """The phase of a training, counted from 0, and the epochs and steps of those before it."""

    number: Count = 0
    epochs: Count = 0
    steps: Count = 0


class _SampleRow(_State):
    epoch: Count
    CIDEr: FiniteFloat
    captions: dict[str, str]


class _Group(_State):
    """A group of an optimiser. Checkpoints of earlier versions do not name the parameters."""

    params: list[Count]
    lr: FiniteFloat
    param_names: list[str] | None = None


class _Moments(_State):
    """What AdamW keeps for a parameter."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class OptimizerState(_State):
    """The state of AdamW: the moments of each parameter that was updated, by its index in the groups."""

    state: dict[Count, _Moments]
    param_groups: list[_Group] = Field(min_length=1)


class TrainingState(_State):
    """Everything that a run continues from, except the model."""

    optimizer: OptimizerState
    # What Objective.training_state returned; earlier versions: none, the objective was cross entropy.
    objective: dict[str, list[OptimizerState] | Tensors | int | float] | None = None
    schedule: _ScheduleState
    scaler: dict[str, FiniteFloat]
    average: Tensors | None
    steps: Count
    random: Tensors  # of the main process
    random_of_others: list[Tensors] = []
    epoch: Count
    batch: Count
    averages: list[FiniteFloat]
    interval: list[FiniteFloat]
    skipped: _SkippedState = _SkippedState()
    phase: PhaseState = PhaseState()
    best: FiniteFloat | None
    best_epoch: Count
    patience_from: Count = 0
    seconds: FiniteFloat = Field(ge=0)
    history: list[_LogRow]
    samples: list[_SampleRow] = []
    threads: Count = 0  # of the CPU; earlier versions: unknown
    data: str | None = None  # digest of the captions; earlier versions: none
    directory: str | None = None  # working directory of the training, to which its paths are relative

    @field_validator("random", "random_of_others")
    @classmethod
    def is_of_generators(cls, value: Any) -> Any:
        for states in value if isinstance(value, list) else [value]:
            if "cpu" not in states or any(state.dtype is not torch.uint8 for state in states.values()):
                raise ValueError("expected bytes for each type of device, among them the CPU")
        return value


def read_state(values: object) -> TrainingState:
    """The checked training state of a checkpoint; raises Misfit."""
    state = _checked(TrainingState, values)
    if name := first_not_finite(state):
        raise Misfit(f"{name} has values that are not finite")
    return state


def first_not_finite(content: object, name: str = "") -> str | None:
    """The name of the first tensor in nested dictionaries, lists and states with NaN or infinite values."""
    if isinstance(content, torch.Tensor):
        return None if is_finite(content) else name
    items: Any = ()
    if isinstance(content, dict | BaseModel):
        items = content.items() if isinstance(content, dict) else content
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    for key, value in items:
        if found := first_not_finite(value, f"{name}.{key}".lstrip(".")):
            return found
    return None


def load_tensors(module: nn.Module, saved: Tensors) -> None:
    """`module.load_state_dict`; raises Misfit if names or shapes differ."""
    own = module.state_dict()
    if wrong := saved.keys() ^ own.keys():
        raise Misfit(f"{min(wrong)} is {'missing' if min(wrong) in own else 'unknown'}")
    for name, tensor in saved.items():
        if tensor.shape != own[name].shape:
            raise Misfit(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
    module.load_state_dict(saved)


def load_moments(optimizer: torch.optim.Optimizer, values: object) -> None:
    """Restore the moments of the parameters, by name if they have names, and nothing else.

    Learning rates and weight decay remain as they are. Parameters of the encoder that were frozen before
    start without moments.

    Raises:
        Misfit: `values` are not the moments of these parameters.
    """
    saved = values if isinstance(values, OptimizerState) else _checked(OptimizerState, values)
    own = optimizer.state_dict()
    names = [name for group in own["param_groups"] for name in group.get("param_names", group["params"])]
    indices = [index for group in saved.param_groups for index in group.params]
    saved_names = [name for group in saved.param_groups for name in group.param_names or ()] or names
    if len(saved_names) != len(indices):
        raise Misfit(f"it has moments for {len(indices)} parameters instead of {len(saved_names)}")
    moments = {name: saved.state.get(i) for name, i in zip(saved_names, indices, strict=True)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        if name not in moments and not str(name).startswith("encoder."):
            raise Misfit(f"the moments of {name} are missing")
        if (saved_moments := moments.get(name)) is None:
            continue
        shapes = [saved_moments.exp_avg.shape, saved_moments.exp_avg_sq.shape]
        if shapes != [parameter.shape] * 2 or saved_moments.step.numel() != 1:
            raise Misfit(f"the moments of {name} have other shapes")
    found = {i: moments.get(name) for i, name in enumerate(names)}
    own["state"] = {i: dict(saved_moments) for i, saved_moments in found.items() if saved_moments}
    optimizer.load_state_dict(own)


def _checked(kind: type[BaseModel], values: object) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise Misfit(f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from None
