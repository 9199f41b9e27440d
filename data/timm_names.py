"""The models of the library timm by their names; the library is optional (requirements-extra.txt)."""

from types import ModuleType
from typing import Any, NamedTuple

from config import EncoderConfig
from utils import UserError, did_you_mean

_PREFIX = "timm/"


class TimmModel(NamedTuple):
    """A model, and the weights that a configuration means."""

    timm: ModuleType  # the library
    name: str  # as timm.create_model takes it, with the tag of the weights: resnet50.a1_in1k
    weights: list[str]  # what encoder.weights may be, besides a file and none
    config: Any  # timm's PretrainedCfg: what images the weights were trained with, and where they are


def is_timm(name: str) -> bool:
    """Whether encoder.name=`name` is a model of timm."""
    return name.startswith(_PREFIX)


def find_timm_model(encoder: EncoderConfig) -> TimmModel:
    """The model timm/NAME or timm/NAME.TAG; the tag names weights, and encoder.weights=TAG does so, too.

    Raises:
        UserError: timm is not installed, or has no such model or weights.
    """
    try:
        import timm
    except ImportError:
        raise UserError(
            f"encoder.name={encoder.name} needs the package timm: pip install -r requirements-extra.txt"
        ) from None
    name, _, tag = encoder.name.removeprefix(_PREFIX).partition(".")
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models()) or "; timm.list_models() returns all names"
        raise UserError(f"encoder.name={encoder.name}: timm has no such model{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        known = f"it has {', '.join(tags)}" if tags else "it has none"
        raise UserError(f"encoder.name={encoder.name}: timm has no such weights of {name} ({known})")
    weights = [tag] if tag else tags
    if encoder.weights in weights:
        tag = encoder.weights
    config: Any = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    full = f"{name}.{config.tag}" if config.tag else name
    return TimmModel(timm, full, [*weights, "DEFAULT"] if weights else [], config)
