"""One training run: epochs, validation, the log, checkpoints, and what a resume starts from."""

from startup import Terminated

import math
import time
from collections.abc import Sequence

import yaml

from captioning import Captioner
from config import Config
from data.dataset import Flickr8kDataset
from data.shard_set import open_images
from files import require_space, write_text
from metrics.measures import MEASURES
from models.search import SearchOptions
from progress import Progress
from training.checkpoints import CheckpointWriter, state_of
from training.ending import RATES, diverged, finish_best, report_best
from training.folder import BEST, CHECKPOINT, checkpoint_space, resume_command
from training.interruption import Interruption
from training.objectives import OBJECTIVES
from training.parts import read_parts
from training.phases import Phase, key_in_phase, phase_configs
from training.record import Record, means
from training.samples import Samples
from training.selection import Selection
from training.state import first_not_finite
from training.trainer import Trainer
from training.validation import caption_split, make_scorer, score_captions, validation_loss
from utils import UserError

# Steps in a row without an update that end the run: more than float16 skips at first, until the scale of its
# gradients is low enough.
_MOST_SKIPPED = 20


class Run:
    """One training run in its folder; `train` runs it to the end."""

    def __init__(
        self,
        captioner: Captioner,
        train_set: Flickr8kDataset,
        val_set: Flickr8kDataset,
        references: dict[str, list[str]],
        data: str | None = None,
        asked: Config | None = None,
        phase: Phase | None = None,
    ):
        """
        Args:
            references: the captions of the validation images, by name.
            data: digest of all captions.
            asked: the configuration with all phases; None if there is only this one.
            phase: where this phase begins; None: with a new training.
        """
        self.captioner, self.train_set, self.val_set, self.data = captioner, train_set, val_set, data
        self.config, self.compute = captioner.config, captioner.compute
        self.asked, self.phase = asked or self.config, phase or Phase()
        self.folder = self.config.run_folder
        kind = OBJECTIVES[self.config.train.objective]
        self.objective = kind(captioner.model, self.config, self.compute, train_set)
        self.steps_per_epoch = math.ceil(len(train_set) / self.config.train.batch_size)
        self.trainer = Trainer(self.objective, self.steps_per_epoch, self.phase.steps)
        self.checkpoints = CheckpointWriter(self.folder)
        self.scorer = make_scorer(references, self.compute)
        self.record = self.phase.record or self.new_record(references)
        self.averages = self.objective.averages(self.compute)  # of the epoch so far
        self.interval = self.objective.averages(self.compute)  # since the last row of the log
        # This epoch, and how many of its batches are done. The model of the last phase was validated there.
        self.epoch, self.batch = self.phase.epochs + 1 if self.phase.number else kind.first_epoch, 0
        self.selection = self.phase.selection or Selection(self.config.train)
        self.selection.next_phase(self.config.train, self.phase.epochs)
        self.is_changed = False  # whether a resumed run has other settings than before
        self.interruption = Interruption()

    def new_record(self, references: dict[str, list[str]]) -> Record:
        """An empty log, with columns for all phases."""
        objectives = [OBJECTIVES[config.train.objective] for config in phase_configs(self.asked)]
        figures = [figure for objective in objectives for figure in objective.averages.figures]
        samples = Samples(open_images(self.config.data, ["val"]), references)
        return Record(self.config, figures, samples, self.compute.is_main)

    def train(self) -> int:
        """Train to the end; returns the exit status: 0, or 130 or 143 if a signal stopped it."""
        self.open_folder()
        while not self.is_finished:
            with self.interruption:
                if self.epoch > 0:
                    self.train_epoch()
                if self.is_interrupted():
                    self.save()
                    return self.stopped()
            figures, captions = self.validate_or_save()
            with self.interruption:
                self.finish_epoch(figures, captions)
            if self.is_interrupted():
                return self.stopped()
        if self.epoch <= self.last_epoch:
            config = self.config.train
            print(f"stopped early: no better {config.monitor} for {config.patience} epochs")
        if self.phase.number + 1 >= len(self.asked.phases):
            self.report_best()
        return 0

    def is_interrupted(self) -> bool:
        """Whether any of the processes has received a signal; they all stop after the same step."""
        number = self.compute.largest(self.interruption.number or 0)
        self.interruption.number = number or None
        return number > 0

    @property
    def last_epoch(self) -> int:
        """The last epoch of this phase."""
        return self.phase.epochs + self.config.train.epochs

    @property
    def is_finished(self) -> bool:
        return self.epoch > self.last_epoch or self.selection.out_of_patience(self.epoch)

    def next_phase(self) -> Phase:
        """Where the next phase begins; raises UserError if there is no model to go on with."""
        self.selection.require_best(self.folder)
        self.finish_writing()
        steps = self.trainer.steps
        self.record.mark("phase", self.epoch, steps)
        return Phase(self.phase.number + 1, self.epoch - 1, steps, self.record, self.selection)

    def open_folder(self) -> None:
        """Write what exists before the first step."""
        require_space(self.folder, self.size(), "the checkpoints of this run")
        # Whenever a run is killed, it can be resumed, and with the settings that it has now.
        if self.compute.largest(self.is_changed or not (self.folder / CHECKPOINT).exists()):
            self.save()
        if not self.compute.is_main:
            return
        self.record.open(self.trainer.steps)  # the log first: it shows that the folder is a run's
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.asked.as_dict(), sort_keys=False))
        self.captioner.vocabulary.save(self.folder / "vocab.json")

    def size(self) -> int:
        """Bytes that the checkpoints will need in addition to those that exist."""
        average = self.trainer.average.state_dict() if self.trainer.average else None
        return checkpoint_space(self.folder, self.captioner.checkpoint(), average, self.trainer.parameters())

    def train_epoch(self) -> None:
        """Train for the rest of the current epoch, and write log rows and checkpoints."""
        config, trainer = self.config.train, self.trainer
        seed, workers = self.config.run.seed, self.config.data.workers
        todo = self.train_set.batches(config.batch_size, seed, self.epoch, self.batch)
        num_captions, began = 0, time.monotonic()
        self.captioner.model.train()
        title = f"epoch {self.epoch}/{self.last_epoch}"
        with Progress(self.steps_per_epoch, title, "batches", initial=self.batch) as progress:
            for parts in read_parts(self.train_set, todo, config.accumulate, workers, self.compute):
                sums = trainer.step(parts, self.epoch - self.phase.epochs)
                for averages in (self.averages, self.interval):
                    averages.add_step(sums, trainer.is_finite)
                is_logged = trainer.steps % config.log_every == 0
                # To read this, the host has to wait for a GPU.
                if (is_logged or self.compute.is_cpu) and trainer.skipped_in_a_row >= _MOST_SKIPPED:
                    skipped = int(trainer.skipped_in_a_row)
                    what = f"the loss or its gradient was not finite in {skipped} steps in a row"
                    raise self.diverged(what, [index for part in parts for index in part.indices])
                here = sum(self.objective.num_captions(part.batch) for part in parts)
                num_captions += here * self.compute.world_size
                self.batch += 1
                if is_logged:
                    text = self.log_interval()
                    progress.note(f"{text}, {num_captions / (time.monotonic() - began):.0f} captions/s")
                progress.update()
                if self.is_interrupted():
                    return
                is_due = trainer.steps % config.checkpoint_every == 0 and self.batch < self.steps_per_epoch
                if is_due and trainer.is_finite:
                    self.save()

    def log_interval(self) -> str:
        """Log the means since the last row; returns them as text."""
        text, row = means(self.interval)
        self.record.add("step", self.epoch, self.trainer.steps, self.trainer.lr, row)
        self.interval = self.objective.averages(self.compute)
        return text

    def diverged(self, what: str, indices: Sequence[int] = ()) -> UserError:
        """An error for `what` is not finite; `indices`: the images of the batch."""
        images = [self.train_set.names[i] for i in indices]
        names = {key: key_in_phase(self.asked, self.phase.number, key) for key in RATES}
        return diverged(what, self.config, names, self.trainer.steps, self.trainer.lr, images)

    def validate_or_save(self) -> tuple[dict[str, float], dict[str, str]]:
        """`validate`; a signal ends it at once, after saving a state from which a resume repeats it."""
        if self.compute.world_size > 1:
            self.save()  # before it, because the others may be waiting for this process when the signal comes
            return self.validate()
        try:
            return self.validate()
        except (KeyboardInterrupt, Terminated):
            self.save()
            self.stopped()
            raise

    def validate(self) -> tuple[dict[str, float], dict[str, str]]:
        """The values of MEASURES on the validation split, by name, and the generated captions.

        Raises:
            UserError: the loss is not finite.
        """
        captioner = self.captioner.with_model(self.trainer.evaluated)
        figures = validation_loss(captioner, self.val_set)
        if not math.isfinite(figures["loss"]):
            raise self.diverged(f"the validation loss of epoch {self.epoch} is {figures['loss']}")
        captions = caption_split(captioner, self.val_set, self.search_options(self.config.train.beam))
        return {**figures, **score_captions(captions, self.scorer, self.compute)}, captions

    def finish_epoch(self, figures: dict[str, float], captions: dict[str, str]) -> None:
        """Log, save and draw what `validate` returned."""
        is_best = self.selection.is_best(self.epoch, figures[self.selection.monitor.name])
        self.trainer.schedule.epoch_ended(is_best)
        self.log_epoch(figures, is_best)
        if is_best:
            self.write(BEST, self.captioner.checkpoint(self.trainer.evaluated))
        self.record.samples.add(self.epoch, figures["CIDEr"], captions)
        self.epoch, self.batch, self.averages = self.epoch + 1, 0, self.objective.averages(self.compute)
        self.save()
        self.record.draw(self.trainer.steps)

    def search_options(self, beam: int) -> SearchOptions:
        """The configured search, but the most likely caption: scores of samples would differ between runs."""
        return self.captioner.options(beam=beam, temperature=0.0, groups=1, rerank="none")

    def log_epoch(self, figures: dict[str, float], is_best: bool) -> None:
        """Write a row to the log and a line to the terminal."""
        text, row = means(self.averages) if self.epoch > 0 else ("", {"skipped": 0})
        skipped = f", {row['skipped']} steps skipped" if row["skipped"] else ""
        row |= {measure.column: figures[measure.name] for measure in MEASURES}
        self.record.add("epoch", self.epoch, self.trainer.steps, self.trainer.lr, row)
        texts = [measure.text(figures[measure.name]) for measure in MEASURES if measure.in_curves]
        trained, best = f"train {text}; " if text else "", " (best)" if is_best else ""
        seconds = f", {self.record.seconds():.0f} s so far"
        print(f"epoch {self.epoch}: {trained}{', '.join(texts)}{best}{skipped}{seconds}", flush=True)

    def save(self) -> None:
        """Write checkpoints.pth: the complete state of the run, from which --resume continues."""
        training = state_of(self)
        self.write(CHECKPOINT, {**self.captioner.checkpoint(), "training": training})

    def write(self, name: str, checkpoint: dict) -> None:
        """Begin to write a checkpoint; it is written after the next `write`, or `finish_writing`.

        Raises UserError if a tensor in it is not finite, or the one before it could not be written.
        """
        if tensor := first_not_finite(checkpoint):
            raise self.diverged(f"{tensor} has values that are not finite")
        if self.compute.is_main:
            self.checkpoints.write(name, {**checkpoint, "config": self.asked.as_dict()})

    def finish_writing(self) -> None:
        """Wait until all files are written; raises UserError if one cannot be."""
        self.checkpoints.wait()
        self.compute.wait()

    def stopped(self) -> int:
        """Say how to continue; returns the exit status."""
        self.finish_writing()
        print(f"stopped in epoch {self.epoch}; continue with: {resume_command(self.folder)}", flush=True)
        return self.interruption.status

    def report_best(self) -> None:
        """Print the scores of the best epoch; raises UserError if there is none."""
        self.selection.require_best(self.folder)
        self.finish_writing()
        best, val_set = finish_best(self.captioner, self.asked, self.train_set, self.val_set)
        report_best(best, val_set, self.scorer, self.selection.best_epoch, self.record.seconds())
