"""The phases of a training: what the configuration changes in each, and what goes from one to the next."""

from collections.abc import Iterable
from dataclasses import dataclass

from config import Config
from config_reading import all_keys, make_config
from training.folder import BEST
from training.record import Record
from training.selection import Selection
from utils import UserError

# What a phase may change, as sections or keys: how the model is trained, neither its structure nor its data.
_MAY_CHANGE = (
    *("train", "rl", "features", "data.augment", "data.captions_per_image"),
    *("encoder.fine_tune", "decoder.dropout", "decoder.word_dropout", "decoder.freeze_embeddings"),
)
# The best of all epochs is kept, so all phases measure the same.
_STAYS = ("train.monitor", "train.beam", "train.init_from")


@dataclass(frozen=True)
class Phase:
    """Where a phase begins, and what it goes on with."""

    number: int = 0  # from 0
    epochs: int = 0  # of the phases before it
    steps: int = 0
    record: Record | None = None
    selection: Selection | None = None


def phase_configs(config: Config) -> list[Config]:
    """The configuration in each phase; one, unchanged, for a training without phases.

    Raises:
        UserError: a phase changes what it must not, or to a value that is not allowed.
    """
    if not config.phases:
        return [config]
    configs: list[Config] = []
    for name, sections in config.phases.items():
        values = config.as_dict()
        if configs:
            values["train"]["init_from"] = str(config.run_folder / BEST)
        for section, keys in sections.items():
            for key in keys:
                full = f"{section}.{key}"
                if full in _STAYS or not {section, full} & set(_MAY_CHANGE):
                    raise UserError(f"phases.{name}.{full}: a phase cannot change this key; set {full}")
            values[section] = {**values.get(section, {}), **keys}
        configs.append(make_config(values, source=f"phases.{name}"))
    return configs


def key_in_phase(config: Config, number: int, key: str) -> str:
    """How an override names the `section.key` that is in force in a phase."""
    section, name = key.split(".")
    for phase in list(config.phases)[number : number + 1]:
        if name in config.phases[phase].get(section, {}):
            return f"phases.{phase}.{key}"
    return key


def require_effect(config: Config, keys: Iterable[str]) -> None:
    """Raise UserError if one of the keys was set although every phase has a value of its own for it."""
    numbers = range(len(config.phases))
    for key in keys:
        if key in all_keys() and numbers and all(key_in_phase(config, i, key) != key for i in numbers):
            names = " or ".join(key_in_phase(config, i, key) for i in numbers)
            raise UserError(f"{key} has no effect, because each phase sets its own; set {names}")


def explicit_keys(config: Config) -> list[str]:
    """The keys that a file or the command line has set, as `section.key`."""
    sections = [name for name in config.model_fields_set if name != "phases"]
    return [f"{name}.{key}" for name in sections for key in getattr(config, name).model_fields_set]
