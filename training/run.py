"""One training run: epochs, validation, the log, checkpoints, and what a resume starts from."""

from startup import Terminated

import math
import os
import time
from collections.abc import Sequence

import yaml

from captioning import Captioner
from data.dataset import Flickr8kDataset, make_loader, training_batches
from files import require_space, write_text
from metrics.measures import MEASURES
from metrics.scores import VALIDATION_METRICS, Scorer
from models.checkpoint import save_checkpoint, size_of
from models.search import SearchOptions
from progress import Progress
from training.ending import diverged, report_best
from training.folder import BEST, CHECKPOINT, resume_command
from training.interruption import Interruption
from training.objectives import OBJECTIVES
from training.record import Record, means
from training.resume import Resumption
from training.samples import Samples
from training.selection import Selection
from training.state import Misfit, first_not_finite
from training.trainer import Trainer
from training.validation import caption_split, validation_loss
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
    ):
        """`references`: the captions of the validation images, by name. `data`: digest of all captions."""
        self.captioner, self.train_set, self.val_set, self.data = captioner, train_set, val_set, data
        self.config, self.compute = captioner.config, captioner.compute
        self.folder = self.config.run_folder
        kind = OBJECTIVES[self.config.train.objective]
        self.objective = kind(captioner.model, self.config, self.compute, train_set)
        self.trainer = Trainer(self.objective, math.ceil(len(train_set) / self.config.train.batch_size))
        self.scorer = Scorer(references, VALIDATION_METRICS)
        samples = Samples(self.config.data.images, references)
        self.record = Record(self.config, self.objective.averages.figures, samples)
        self.averages = self.objective.averages(self.compute)  # of the epoch so far
        self.interval = self.objective.averages(self.compute)  # since the last row of the log
        self.epoch, self.batch = kind.first_epoch, 0  # this epoch, and how many of its batches are done
        self.selection = Selection(self.config.train)
        self.is_changed = False  # whether a resumed run has other settings than before
        self.interruption = Interruption()

    def train(self) -> int:
        """Train to the end; returns the exit status: 0, or 130 or 143 if a signal stopped it."""
        self.open_folder()
        while not self.is_finished:
            with self.interruption:
                if self.epoch > 0:
                    self.train_epoch()
                if self.interruption.number:
                    self.save()
                    return self.stopped()
            figures, captions = self.validate_or_save()
            with self.interruption:
                self.finish_epoch(figures, captions)
            if self.interruption.number:
                return self.stopped()
        if self.epoch <= self.config.train.epochs:
            config = self.config.train
            print(f"stopped early: no better {config.monitor} for {config.patience} epochs")
        self.report_best()
        return 0

    @property
    def is_finished(self) -> bool:
        return self.epoch > self.config.train.epochs or self.selection.out_of_patience(self.epoch)

    def open_folder(self) -> None:
        """Write what exists before the first step."""
        require_space(self.folder, self.size(), "the checkpoints of this run")
        # Whenever a run is killed, it can be resumed, and with the settings that it has now.
        if self.is_changed or not (self.folder / CHECKPOINT).exists():
            self.save()
        self.record.open(self.trainer.steps)  # the log first: it shows that the folder is a run's
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        self.captioner.vocabulary.save(self.folder / "vocab.json")

    def size(self) -> int:
        """Bytes that the checkpoints will need in addition to those that exist, at their peak."""
        model = size_of(self.captioner.checkpoint())
        average = size_of(self.trainer.average.state_dict()) if self.trainer.average else 0
        latest = model + average + 2 * size_of(self.trainer.parameters())  # AdamW keeps two moments
        existing = [self.folder / name for name in (CHECKPOINT, BEST)]
        # A new file is written beside the old one.
        return max(0, 2 * latest + model - sum(path.stat().st_size for path in existing if path.exists()))

    def train_epoch(self) -> None:
        """Train for the rest of the current epoch, and write log rows and checkpoints."""
        config, trainer = self.config.train, self.trainer
        batches = training_batches(len(self.train_set), config.batch_size, self.config.run.seed, self.epoch)
        todo = [list(self.compute.shard(draws)) for draws in batches[self.batch :]]
        loader = make_loader(self.train_set, todo, self.config.data.workers, self.compute)
        num_captions, began = 0, time.monotonic()
        self.captioner.model.train()
        title = f"epoch {self.epoch}/{config.epochs}"
        with Progress(len(batches), title, "batches", initial=self.batch) as progress:
            for draws, batch in zip(todo, loader, strict=True):
                indices = [index for index, _ in draws]
                loss = trainer.step(batch, indices, self.epoch)
                for averages in (self.averages, self.interval):
                    averages.add_step(loss.sums, trainer.is_finite)
                is_logged = trainer.steps % config.log_every == 0
                # To read this, the host has to wait for a GPU.
                if (is_logged or self.compute.is_cpu) and trainer.skipped_in_a_row >= _MOST_SKIPPED:
                    skipped = int(trainer.skipped_in_a_row)
                    what = f"the loss or its gradient was not finite in {skipped} steps in a row"
                    raise self.diverged(what, indices)
                num_captions += self.objective.num_captions(batch)
                self.batch += 1
                if is_logged:
                    text = self.log_interval()
                    progress.note(f"{text}, {num_captions / (time.monotonic() - began):.0f} captions/s")
                progress.update()
                if self.interruption.number:
                    return
                is_due = trainer.steps % config.checkpoint_every == 0 and self.batch < len(batches)
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
        return diverged(what, self.config, self.trainer.steps, self.trainer.lr, images)

    def validate_or_save(self) -> tuple[dict[str, float], dict[str, str]]:
        """`validate`; a signal ends it at once, after saving a state from which a resume repeats it."""
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
        return {**figures, **self.scorer.score(captions)}, captions

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
        """The configured search, but without sampling: scores of samples would differ between runs."""
        return self.captioner.options(beam=beam, temperature=0.0)

    def log_epoch(self, figures: dict[str, float], is_best: bool) -> None:
        """Write a row to the log and a line to the terminal."""
        text, row = means(self.averages) if self.epoch > 0 else ("", {"skipped": 0})
        row |= {measure.column: figures[measure.name] for measure in MEASURES}
        self.record.add("epoch", self.epoch, self.trainer.steps, self.trainer.lr, row)
        texts = [measure.text(figures[measure.name]) for measure in MEASURES if measure.in_curves]
        skipped = self.averages.skipped
        print(
            f"epoch {self.epoch}: {f'train {text}; ' if text else ''}{', '.join(texts)}"
            f"{' (best)' if is_best else ''}{f', {skipped} steps skipped' if skipped else ''}"
            f", {self.record.seconds():.0f} s so far",
            flush=True,
        )

    def save(self) -> None:
        """Write checkpoints.pth: the complete state of the run, from which --resume continues."""
        training = {
            **self.trainer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "averages": self.averages.sums.tolist(),
            "interval": self.interval.sums.tolist(),
            "skipped": {
                "epoch": self.averages.skipped,
                "interval": self.interval.skipped,
                "in_a_row": int(self.trainer.skipped_in_a_row),
            },
            **self.selection.state_dict(),
            **self.record.state_dict(),
            "data": self.data,
            "directory": os.getcwd(),
        }
        self.write(CHECKPOINT, {**self.captioner.checkpoint(), "training": training})

    def write(self, name: str, checkpoint: dict) -> None:
        """Save a checkpoint. Raises UserError if a tensor in it is not finite, or it cannot be written."""
        if tensor := first_not_finite(checkpoint):
            raise self.diverged(f"{tensor} has values that are not finite")
        save_checkpoint(self.folder / name, checkpoint)

    def load(self, resumption: Resumption) -> None:
        """Restore what `save` wrote; raises UserError if it is not the state of such a run."""
        state, names = resumption.state, self.objective.averages.names
        try:
            if {len(state.averages), len(state.interval)} != {len(names)}:
                raise Misfit(f"averages: expected {', '.join(names)}")
            self.trainer.load_state(state)
        except Misfit as error:
            raise UserError(
                f"{self.folder / CHECKPOINT}: the training state does not fit this run: {error}; start "
                f"another run from its model with run.name=NAME train.init_from={self.folder / BEST}"
            ) from None
        self.epoch, self.batch = state.epoch, state.batch
        self.averages = self.objective.averages(self.compute, state.averages, state.skipped.epoch)
        self.interval = self.objective.averages(self.compute, state.interval, state.skipped.interval)
        self.record.load_state(state)
        self.selection.load_state(state)
        if self.selection.best is not None and not (self.folder / BEST).exists():
            print(f"{self.folder / BEST} is missing; the best of the epochs to come replaces it")
            self.selection.forget()
        if resumption.learns_differently:
            self.selection.patience_from = self.epoch - 1
        if not self.is_finished:
            row = {"event": "resume", "epoch": self.epoch, "step": state.steps, "skipped": 0}
            self.record.log.history.append(row)
        resumption.announce_rate(self.trainer)
        self.is_changed = bool(resumption.changes)

    def stopped(self) -> int:
        """Say how to continue; returns the exit status."""
        print(f"stopped in epoch {self.epoch}; continue with: {resume_command(self.folder)}", flush=True)
        return self.interruption.status

    def report_best(self) -> None:
        """Print the scores of the best epoch; raises UserError if there is none."""
        if self.selection.best is None:
            raise UserError(
                f"{self.selection.monitor.name} (train.monitor) was not finite in any epoch, so there is no "
                f"{self.folder / BEST}; start again with a lower train.lr"
            )
        options, best_epoch = self.search_options(self.config.search.beam), self.selection.best_epoch
        report_best(self.captioner, self.val_set, self.scorer, options, best_epoch, self.record.seconds())
