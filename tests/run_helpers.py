"""A run in this process, over the tiny dataset."""

from pathlib import Path

from captioning import Captioner
from config import Config
from data.captions import read_table, references
from data.transforms import transform_for
from data.vocab import Vocabulary
from models.model import build_model
from tests.helpers import CPU, tiny
from training.datasets import make_datasets
from training.resume import Resumption, captions_digest, resumed
from training.run import Run


def make_run(dataset: Path, **sections) -> Run:
    """A run that has not begun; `sections` of the configuration override those of `tiny`."""
    config = tiny(dataset, **sections)
    table = read_table(config.data)
    vocabulary = Vocabulary.build(table["caption"], 1)
    model = build_model(config, len(vocabulary))
    return _run(Captioner(model, vocabulary, transform_for(config.encoder), config, CPU))


def stopped_run(dataset: Path, **sections) -> Run:
    """A run that was saved in the middle of its first epoch, after 2 of 4 steps."""
    run = make_run(dataset, **sections)
    run.open_folder()
    after_steps(run, 2)
    return run


def after_steps(run: Run, steps: int) -> None:
    """Train until `steps` steps are done, and save."""
    step = run.trainer.step

    def count(*arguments):
        loss = step(*arguments)
        if run.trainer.steps == steps:
            run.interruption.number = 2
        return loss

    run.trainer.step = count  # type: ignore[method-assign]
    run.train_epoch()
    run.trainer.step, run.interruption.number = step, None  # type: ignore[method-assign]
    run.save()
    run.finish_writing()


def go_on(folder: Path, *overrides: str) -> tuple[Run, Resumption]:
    """The run in `folder` as `train.py --resume` continues it, before its next step."""
    resumption = resumed(folder, list(overrides))
    run = _run(Captioner.from_checkpoint(resumption.checkpoint, resumption.config, CPU))
    resumption.restore(run)
    return run, resumption


def _run(captioner: Captioner) -> Run:
    config: Config = captioner.config
    table = read_table(config.data, in_memory=["val"])
    sets = make_datasets(captioner, table, ("train", "val"), training=True)
    return Run(captioner, *sets, references(table, "val"), captions_digest(table, config.data))
