"""One training run: epochs, validation, the log, checkpoints, and what a resume starts from."""

import math
import signal
import time

import yaml

from captioning import Captioner
from data.dataset import Flickr8kDataset, make_loader, training_batches
from files import save_checkpoint
from metrics.measures import MEASURES, find_monitor
from metrics.scores import VALIDATION_METRICS, Scorer
from models.search import SearchOptions
from progress import Progress
from reports.curves import draw_curves
from training.loss_log import LossLog
from training.objectives import OBJECTIVES
from training.samples import Samples
from training.tensorboard import Board
from training.trainer import Trainer
from training.validation import caption_split, validation_loss
from utils import UserError


class Run:
    """One training run in its folder; `train` runs it to the end."""

    def __init__(
        self,
        captioner: Captioner,
        train_set: Flickr8kDataset,
        val_set: Flickr8kDataset,
        references: dict[str, list[str]],
    ):
        """`references`: the captions of the validation images, by name."""
        self.captioner, self.train_set, self.val_set = captioner, train_set, val_set
        self.config, self.compute = captioner.config, captioner.compute
        self.folder = self.config.run_folder
        kind = OBJECTIVES[self.config.train.objective]
        self.objective = kind(captioner.model, self.config, self.compute, train_set)
        self.trainer = Trainer(self.objective, math.ceil(len(train_set) / self.config.train.batch_size))
        self.monitor = find_monitor(self.config.train.monitor)
        self.scorer = Scorer(references, VALIDATION_METRICS)
        self.samples = Samples(self.config.data.images, references)
        self.averages = self.objective.averages(self.compute)  # of the epoch so far
        self.interval = self.objective.averages(self.compute)  # since the last row of the log
        self.epoch, self.batch = kind.first_epoch, 0  # this epoch, and how many of its batches are done
        self.best: float | None = None  # best value of the monitor
        self.best_epoch = 0  # and its epoch
        self.seconds_before, self.started = 0.0, time.monotonic()  # training time, across resumes
        self.log = LossLog(self.folder / "loss_log.txt", self.objective.averages.figures)
        self.board: Board | None = None
        self.stopping = False

    def train(self) -> int:
        """Train to the end; returns the exit status, 130 if it was stopped by Ctrl-C."""
        self.open_folder()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)
        while self.epoch <= self.config.train.epochs and not self.out_of_patience():
            if self.epoch > 0:
                self.train_epoch()
            if self.stopping:
                self.save()
                print(f"stopped in epoch {self.epoch}; continue with: python train.py --resume {self.folder}")
                return 130
            self.finish_epoch()
        if self.epoch <= self.config.train.epochs:
            config = self.config.train
            print(f"stopped early: no better {config.monitor} for {config.patience} epochs")
        self.report_best()
        return 0

    def open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config.as_dict(), sort_keys=False))
            self.captioner.vocabulary.save(self.folder / "vocab.json")
            self.log.write()
            if self.config.run.tensorboard:
                self.board = Board(self.folder, self.trainer.steps)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; change run.folder") from None

    def stop(self, *_) -> None:
        """Signal handler: finish this step, save and end. A second Ctrl-C ends immediately."""
        self.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def out_of_patience(self) -> bool:
        return self.best is not None and self.epoch - 1 - self.best_epoch >= self.config.train.patience

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
                loss = trainer.step(batch, [index for index, _ in draws], self.epoch)
                self.averages.add(loss.sums)
                self.interval.add(loss.sums)
                num_captions += self.objective.num_captions(batch)
                self.batch += 1
                if trainer.steps % config.log_every == 0:
                    figures = self.log_interval()
                    rate = num_captions / (time.monotonic() - began)
                    progress.note(f"{self.averages.text(figures)}, {rate:.0f} captions/s")
                progress.update()
                if self.stopping:
                    return
                if trainer.steps % config.checkpoint_every == 0 and self.batch < len(batches):
                    self.save()

    def log_interval(self) -> dict[str, float]:
        """Log the means since the last row; raises UserError for a loss that is not finite."""
        figures = self.interval.read()
        for name, value in figures.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise UserError(
                    f"the {name.replace('_', ' ')} is {value} at step {self.trainer.steps}; continue from "
                    "the last checkpoint with a lower train.lr or without mixed precision: "
                    f"--resume {self.folder} run.precision=float32"
                )
        self.record("step", _prefixed(figures))
        self.interval = self.objective.averages(self.compute)
        return figures

    def finish_epoch(self) -> None:
        """Validate, log, save, and draw."""
        figures, captions = self.validate()
        is_best = self.is_best(figures[self.monitor.name])
        self.trainer.schedule.epoch_ended(is_best)
        self.log_epoch(figures, is_best)
        if is_best:
            save_checkpoint(self.folder / "best.pth", self.captioner.checkpoint(self.trainer.evaluated))
        self.samples.add(self.epoch, figures["CIDEr"], captions)
        self.epoch, self.batch, self.averages = self.epoch + 1, 0, self.objective.averages(self.compute)
        self.save()
        self.draw()

    def validate(self) -> tuple[dict[str, float], dict[str, str]]:
        """The values of MEASURES on the validation split, by name, and the generated captions."""
        captioner = self.captioner.with_model(self.trainer.evaluated)
        figures = validation_loss(captioner, self.val_set)
        captions = caption_split(captioner, self.val_set, self.search_options(self.config.train.beam))
        return {**figures, **self.scorer.score(captions)}, captions

    def search_options(self, beam: int) -> SearchOptions:
        """The configured search, but without sampling: scores of samples would differ between runs."""
        return self.captioner.options(beam=beam, temperature=0.0)

    def is_best(self, figure: float) -> bool:
        """Whether the value of the monitor is the best so far; if so, it is recorded."""
        is_best = self.best is None or self.monitor.is_better(figure, self.best)
        if is_best:
            self.best, self.best_epoch = figure, self.epoch
        return is_best

    def log_epoch(self, figures: dict[str, float], is_best: bool) -> None:
        """Write a row to the log and a line to the terminal."""
        train = self.averages.read() if self.epoch > 0 else {}
        validation = {measure.column: figures[measure.name] for measure in MEASURES}
        self.record("epoch", {**_prefixed(train), **validation})
        texts = [measure.text(figures[measure.name]) for measure in MEASURES if measure.in_curves]
        print(
            f"epoch {self.epoch}: {f'train {self.averages.text(train)}; ' if train else ''}"
            f"{', '.join(texts)}{' (best)' if is_best else ''}, {self.seconds():.0f} s so far",
            flush=True,
        )

    def record(self, event: str, figures: dict[str, float]) -> None:
        """Write a row to loss_log.txt, and to TensorBoard if run.tensorboard is set."""
        row = {
            "event": event,
            "epoch": self.epoch,
            "step": self.trainer.steps,
            "seconds": round(self.seconds(), 1),
            "lr": self.trainer.lr,
            **figures,
        }
        self.log.add(**row)
        if self.board:
            self.board.add(row)

    def draw(self) -> None:
        """Draw loss_curve.png and samples.png."""
        draw_curves([self.folder / "loss_log.txt"], self.folder / "loss_curve.png")
        sheet = self.samples.draw(self.folder / "samples.png")
        if self.board:
            self.board.add_samples(sheet, self.trainer.steps)

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def save(self) -> None:
        """Write checkpoints.pth: the complete state of the run, from which --resume continues."""
        training = {
            **self.trainer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "averages": self.averages.sums.tolist(),
            "interval": self.interval.sums.tolist(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds(),
            "history": self.log.history,
            "samples": self.samples.history,
        }
        save_checkpoint(
            self.folder / "checkpoints.pth", {**self.captioner.checkpoint(), "training": training}
        )

    def load(self, training: dict) -> None:
        """Restore what `save` wrote."""
        self.epoch, self.batch = training["epoch"], training["batch"]
        self.best, self.best_epoch = training["best"], training["best_epoch"]
        self.averages = self.objective.averages(self.compute, training["averages"])
        self.interval = self.objective.averages(self.compute, training["interval"])
        self.seconds_before, self.started = training["seconds"], time.monotonic()
        resume = {"event": "resume", "epoch": self.epoch, "step": training["steps"]}
        self.log.history = [*training["history"], resume]
        self.samples.history = training.get("samples", [])
        self.trainer.load_state_dict(training)

    def report_best(self) -> None:
        """Print the scores of the best epoch with the configured beam, and the next commands."""
        best = self.folder / "best.pth"
        captioner = Captioner.load(best, compute=self.compute)
        options = self.search_options(self.config.search.beam)
        captions = caption_split(captioner, self.val_set, options)
        scores = self.scorer.score(captions)
        print(f"\n{best} is epoch {self.best_epoch}; {self.seconds():.0f} s of training.")
        print(f"Validation scores with beam {options.beam}:")
        print("  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        print("\nNext:")
        print(f"  python inference_visualize.py {self.config.data.images} --limit 20 --checkpoint {best}")
        print(f"  python visualize_loss.py {self.folder}")


def _prefixed(figures: dict[str, float]) -> dict[str, float]:
    return {f"train_{key}": value for key, value in figures.items()}
