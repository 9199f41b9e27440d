"""Continuing a stopped run: with changed settings, and only with the captions that it began with."""

from startup import one_line

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from config import Config, DataConfig
from config_reading import make_config, without_phase
from data.shard_paths import caption_paths, is_sharded
from data.shard_set import open_shards
from models.checkpoint import Checkpoint, load_checkpoint
from training.changeable import CHANGEABLE, LEARNING
from training.folder import BEST, CHECKPOINT
from training.phases import explicit_keys, phase_configs, require_effect
from training.schedule import Schedule
from training.state import Misfit, TrainingState, read_state
from training.trainer import Trainer
from utils import UserError

if TYPE_CHECKING:
    from training.run import Run


@dataclass(frozen=True)
class Resumption:
    """A stopped run, and how it goes on."""

    config: Config
    before: Config  # before `changes`
    changes: list[str]  # keys
    checkpoint: Checkpoint
    state: TrainingState

    @property
    def learns_differently(self) -> bool:
        """Whether a change concerns training itself, so that an earlier lack of progress means nothing."""
        return any(without_phase(key) in LEARNING for key in self.changes)

    def require_same_captions(self, table: pd.DataFrame) -> None:
        """Raise UserError if the table is not the one that the run began with."""
        if self.state.data not in (None, captions_digest(table, self.config.data)):
            paths = ", ".join(map(str, self.config.data.captions))
            raise UserError(
                f"{paths}: the captions or images of train and val are not those that the run began with; "
                "restore them, or start a new run from its model with run.name=NAME "
                f"train.init_from={self.config.run_folder / BEST}"
            )

    def restore(self, run: "Run") -> None:
        """Restore what `Run.save` wrote; raises UserError if it is not the state of such a run."""
        state, names = self.state, run.objective.averages.names
        try:
            if {len(state.averages), len(state.interval)} != {len(names)}:
                raise Misfit(f"averages: expected {', '.join(names)}")
            run.trainer.load_state(state)
        except Misfit as error:
            raise UserError(
                f"{run.folder / CHECKPOINT}: the training state does not fit this run: {error}; start "
                f"another run from its model with run.name=NAME train.init_from={run.folder / BEST}"
            ) from None
        run.epoch, run.batch = state.epoch, state.batch
        run.averages = run.objective.averages(run.compute, state.averages, state.skipped.epoch)
        run.interval = run.objective.averages(run.compute, state.interval, state.skipped.interval)
        run.record.load_state(state)
        run.selection.load_state(state)
        if run.selection.best is not None and not (run.folder / BEST).exists():
            print(f"{run.folder / BEST} is missing; the best of the epochs to come replaces it")
            run.selection.forget()
        if self.learns_differently:
            run.selection.patience_from = run.epoch - 1
        if not run.is_finished:
            run.record.mark("resume", run.epoch, state.steps)
        self.announce_rate(run.trainer)
        run.is_changed = bool(self.changes)

    def announce_rate(self, trainer: Trainer) -> None:
        """Print what a change of the settings does to the learning rate, if anything."""
        phase = self.state.phase
        earlier, now = (phase_configs(config)[phase.number].train for config in (self.before, self.config))
        before = Schedule(earlier, trainer.steps_per_epoch, phase.steps)
        before.load_state_dict(trainer.schedule.state_dict())
        expected = earlier.lr * before.factor(trainer.steps)
        following = now.lr * trainer.schedule.factor(trainer.steps)
        if expected != following:
            print(f"learning rate: {trainer.lr:.3g} at the last step, {following:.3g} at the next one")


def resumed(folder: Path, overrides: list[str], asked: Config | None = None) -> Resumption:
    """Read the checkpoint of a stopped run, which may have been moved or renamed, and apply changes.

    Args:
        overrides: `section.key=value`.
        asked: the configuration that named the run, if one did. Settings in which it differs from the run
            do not apply, which is printed.

    Raises:
        UserError: the checkpoint cannot be used, or a setting cannot be changed.
    """
    path = folder / CHECKPOINT
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        raise UserError(
            f"{path} holds a model but not the state of a run; start a new run from it with "
            f"train.init_from={path}"
        )
    try:
        state = read_state(checkpoint.training)
    except Misfit as error:
        raise UserError(f"{path}: damaged state of the training: {error}") from None
    values = checkpoint.config.as_dict()
    values["run"] |= {"folder": str(folder.parent), "name": folder.name}
    before = make_config(values, source=str(path))
    config = make_config(values, overrides)
    changes = _differences(before, config)
    for key, (old, new) in changes.items():
        if without_phase(key) not in CHANGEABLE:
            raise UserError(
                f"{key} cannot change from {old} to {new} when a run is resumed; leave it out, or start "
                "another run with run.name=NAME"
            )
    if not 0 <= state.phase.number < len(phase_configs(config)):
        raise UserError(f"{path}: damaged state of the training: phase: there are not so many")
    require_effect(config, changes)
    for key, (old, new) in changes.items():
        print(one_line(f"{key} {old} -> {new}"))
    if asked:
        _print_ignored(asked, config)
    return Resumption(_with_found_paths(config, state.directory), before, list(changes), checkpoint, state)


def captions_digest(table: pd.DataFrame, data: DataConfig) -> str:
    """SHA-256 of the captions that a training uses: image, caption and split of train and val, in order."""
    rows = table.loc[table["split"].isin(["train", "val"]), ["image", "caption", "split"]]
    sha = hashlib.sha256()
    for row in rows.itertuples(index=False, name=None):
        sha.update(("\0".join(row) + "\n").encode("utf-8", "surrogatepass"))
    if is_sharded(data):  # the captions of train are not in the table
        sha.update("".join(facts.digest for facts in open_shards(data, ["train"]).facts).encode())
    return sha.hexdigest()


def _differences(a: Config, b: Config) -> dict[str, tuple]:
    """`section.key` -> both values, for all keys whose values differ."""
    one, other = _flat(a), _flat(b)
    keys = dict.fromkeys([*one, *other])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _flat(config: Config) -> dict[str, object]:
    """`section.key`, or `phases.NAME.section.key`, -> value."""
    values = config.as_dict()
    phases = {f"phases.{name}.": sections for name, sections in values.pop("phases").items()}
    return {
        f"{prefix}{section}.{key}": value
        for prefix, sections in {"": values, **phases}.items()
        for section, keys in sections.items()
        for key, value in keys.items()
    }


def _print_ignored(asked: Config, config: Config) -> None:
    """Print in which settings a configuration differs from the run that it names."""
    keys = {*explicit_keys(asked), *(key for key in _flat(asked) if key.startswith("phases."))}
    differing = [
        f"{key}={new} (not {old})" for key, (old, new) in _differences(asked, config).items() if key in keys
    ]
    if differing:
        print(one_line(f"the run keeps its own settings: {', '.join(differing)}"))


def _with_found_paths(config: Config, directory: str | None) -> Config:
    """If the data are not found, the configuration with paths below `directory`, where the run was started.

    Raises:
        UserError: the data are not there either.
    """
    data = config.data
    paths = [*caption_paths(data), *([] if is_sharded(data) else [data.images])]
    if directory is None or Path(directory) == Path.cwd() or all(path.exists() for path in paths):
        return config
    origin = Path(directory)
    if absent := [path for path in paths if not (origin / path).exists()]:
        raise UserError(
            one_line(f"{absent[0]} is neither here nor in {origin}, where the run was started; ")
            + "set data.captions and data.images to where the data are now"
        )
    print(one_line(f"paths of the data are relative to {origin}, where the run was started"))
    found = {
        "captions": [origin / path for path in data.captions],
        "images": origin / data.images,
        "lists": origin / data.lists if data.lists else None,
        "index_folder": origin / data.index_folder,
    }
    folder = origin / config.features.folder
    return config.model_copy(
        update={
            "data": data.model_copy(update=found),
            "features": config.features.model_copy(update={"folder": folder}),
        }
    )
