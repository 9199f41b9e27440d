"""The job of train.py: a new training, one that starts from another model, or a stopped one that goes on."""

import argparse
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch

from compute import Compute, seed_everything
from config import Config
from data.captions import read_table, references
from data.sample import draw_if_missing
from data.shard_paths import is_sharded
from models.checkpoint import Checkpoint, load_checkpoint
from processes import connected, is_main, is_restarted, may_be_restarted
from threads import threads_are_set
from training.datasets import make_datasets
from training.folder import BEST, CHECKPOINT, owned, require_unused, run_to_resume, set_aside
from training.phases import Phase, explicit_keys, phase_configs, require_effect
from training.resume import Resumption, captions_digest, resumed
from training.run import Run
from training.start import check, make_captioner, with_model_of
from utils import UserError

_GO_ON = "continue with --resume, or let torchrun do so with --max-restarts=3"


def train(asked: Config | None, args: argparse.Namespace) -> int:
    """Train; `asked` is the configuration, None if the arguments name the run to resume.

    Returns the exit status.
    """
    with connected(_GO_ON):
        if asked is None or args.resume is not None or _goes_on(asked):
            folder = run_to_resume(Path(args.resume) if asked is None else asked.run_folder)
            with owned(folder):
                resumption = resumed(folder, args.overrides, asked)
                return _train(resumption.config, resumption.checkpoint, resumption)
        require_effect(asked, explicit_keys(asked))
        check(asked)
        with owned(asked.run_folder):
            if is_main():
                require_unused(asked.run_folder, args.overwrite)
                if may_be_restarted():  # a restart goes on with the run that it finds
                    set_aside(asked.run_folder)
            if asked.train.init_from:
                return _train(*with_model_of(asked, asked.train.init_from))
            return _train(asked, None)


def _goes_on(config: Config) -> bool:
    """Whether torchrun has started a training again that has already written a checkpoint."""
    return is_restarted() and (config.run_folder / CHECKPOINT).exists()


def _train(config: Config, checkpoint: Checkpoint | None, resumption: Resumption | None = None) -> int:
    """Train a new run, or one that starts from the model of `checkpoint`, or go on with a stopped one."""
    check(config)
    threads = config.run.threads or _threads_before(resumption)
    compute = Compute.choose(config.run.device, config.run.precision, threads)
    if compute.is_main:
        draw_if_missing(config.data.captions)
    compute.wait()
    table = find_data(config)
    if resumption:
        resumption.require_same_captions(table)
    phase = Phase(**resumption.state.phase.model_dump()) if resumption else Phase()
    configs = phase_configs(config)
    with compute.explain_memory("lower train.batch_size or data.captions_per_image"):
        while True:
            run = _phase(config, phase, checkpoint, table, compute)
            if resumption:
                resumption.restore(run)
            with closing(run.checkpoints):
                status = run.train()
            if status or phase.number + 1 == len(configs):
                return status
            phase, resumption = run.next_phase(), None
            checkpoint = load_checkpoint(config.run_folder / BEST)


def _threads_before(resumption: Resumption | None) -> int:
    """The CPU threads of a stopped run, which goes on with the same, so that its numbers are the same."""
    return resumption.state.threads if resumption and not threads_are_set() else 0


def _phase(
    config: Config, phase: Phase, checkpoint: Checkpoint | None, table: pd.DataFrame, compute: Compute
) -> Run:
    """The run at the beginning of a phase."""
    own = phase_configs(config)[phase.number]
    if config.phases:
        source = f", from the model of epoch {phase.selection.best_epoch}" if phase.selection else ""
        name = list(config.phases)[phase.number]
        print(f"phase {phase.number + 1} of {len(config.phases)}: {name}{source}")
    seed_everything(own.run.seed + phase.number, own.run.deterministic)
    captioner = make_captioner(own, checkpoint, table, compute)
    if compute.is_main and not phase.number and (checkpoint is None or checkpoint.training is None):
        set_aside(own.run_folder)
    train_set, val_set = make_datasets(captioner, table, ("train", "val"), training=True)
    digest = captions_digest(table, config.data)
    run = Run(captioner, train_set, val_set, references(table, "val"), digest, config, phase)
    if compute.rank:
        torch.manual_seed(own.run.seed + phase.number + compute.rank * 2**32)  # of dropout
    return run


def find_data(config: Config) -> pd.DataFrame:
    """The captions table, after a check of its images; draws the sample if the configuration names it."""
    data = config.data
    draw_if_missing(data.captions)
    absent = [] if is_sharded(data) else [path for path in data.captions if not path.exists()]
    if absent:
        raise UserError(
            f"no captions file at {absent[0].absolute()}; download Flickr8k (for example from Kaggle), "
            f"put its captions there and its images into {data.images.absolute()}/, or try the built-in "
            "sample: python train.py --config configs/sample.yaml"
        )
    return read_table(data, in_memory=["val"])
