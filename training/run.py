"""One training run: epochs, validation, the log, checkpoints, what a resume continues from."""

import math
import signal
import time

import torch
import yaml

from config import Config
from data.dataset import Flickr8kDataset, make_loader, training_batches
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from files import save_checkpoint
from metrics.scores import BLEU, Scorer
from models.model import load_model, pack_model
from models.search import SearchOptions
from progress import Progress
from reports.curves import draw_curves
from training.evaluation import caption_split, validation_loss
from training.loss_log import LossLog
from training.samples import Samples
from training.setup import make_objective
from training.tensorboard import Board
from training.trainer import Trainer
from utils import UserError


class Run:
    """One training run: epochs, validation, checkpoints, the log. `train` is its story."""

    def __init__(
        self,
        config: Config,
        model,
        vocabulary: Vocabulary,
        transform: ImageTransform,
        train_set: Flickr8kDataset,
        val_set: Flickr8kDataset,
        val_references: dict[str, list[str]],
        device: torch.device,
        precision: torch.dtype,
    ):
        self.config, self.model, self.vocabulary, self.transform = config, model, vocabulary, transform
        self.train_set, self.val_set, self.device, self.precision = train_set, val_set, device, precision
        self.folder = config.run_folder
        self.steps_per_epoch = math.ceil(len(train_set) / config.train.batch_size)
        self.objective = make_objective(config, model, train_set, len(vocabulary), device, precision)
        self.trainer = Trainer(model, self.objective, config, self.steps_per_epoch, device, precision)
        self.scorer = Scorer(val_references)
        self.samples = Samples(config.data.images, val_references)
        self.averages = self.objective.averages(device)  # of the epoch so far
        self.interval = self.objective.averages(device)  # since the last row of the log
        # Where the run is: this epoch, this many of its batches done. A run that goes on from a trained model
        # to raise its score first measures that score, as epoch 0: it keeps nothing that is worse.
        self.epoch, self.batch = 1 if config.train.objective == "cross_entropy" else 0, 0
        self.best, self.best_epoch = None, 0  # best monitored figure, and its epoch
        self.seconds_before, self.started = 0.0, time.monotonic()  # training time, across resumes
        self.log: LossLog | None = None
        self.board: Board | None = None
        self.stopping = False

    def train(self) -> int:
        """Train to the end; returns the exit status, 130 if it was stopped by Ctrl-C."""
        self.open_folder()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)
        while self.epoch <= self.config.train.epochs and not self.out_of_patience():
            if self.epoch:
                self.train_epoch()
            if self.stopping:
                self.save()
                print(f"stopped in epoch {self.epoch}; go on with: python train.py --resume {self.folder}")
                return 130
            self.finish_epoch()
        if self.epoch <= self.config.train.epochs:
            config = self.config.train
            print(f"stopped early: no better {config.monitor} for {config.patience} epochs")
        self.say_goodbye()
        return 0

    def open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config.as_dict(), sort_keys=False))
            self.vocabulary.save(self.folder / "vocab.json")
            self.log = self.log or LossLog(self.folder / "loss_log.txt")
            if self.config.run.tensorboard:
                self.board = Board(self.folder, self.trainer.steps)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; set run.folder") from None

    def stop(self, *_) -> None:
        """Signal handler: finish this step, save, end. A second Ctrl-C ends at once."""
        self.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def out_of_patience(self) -> bool:
        return self.best is not None and self.epoch - 1 - self.best_epoch >= self.config.train.patience

    def train_epoch(self) -> None:
        """The rest of the current epoch, with rows in the log and checkpoints on the way."""
        config, trainer = self.config.train, self.trainer
        batches = training_batches(len(self.train_set), config.batch_size, self.config.run.seed, self.epoch)
        loader = make_loader(self.train_set, batches[self.batch :], self.config.data.workers, self.device)
        captions, began = 0, time.monotonic()
        self.model.train()
        title = f"epoch {self.epoch}/{config.epochs}"
        with Progress(len(batches), title, "batches", initial=self.batch) as progress:
            for draws, batch in zip(batches[self.batch :], loader, strict=True):
                loss = trainer.step(batch, [index for index, _ in draws], self.epoch)
                self.averages.add(loss)
                self.interval.add(loss)
                captions += self.objective.captions(batch)
                self.batch += 1
                if trainer.steps % config.log_every == 0:
                    figures = self.check(self.interval.read())
                    self.record("step", prefixed("train", figures))
                    rate = captions / (time.monotonic() - began)
                    progress.note(f"{self.averages.text(figures)}, {rate:.0f} captions/s")
                    self.interval = self.objective.averages(self.device)
                progress.update()
                if self.stopping:
                    return
                if trainer.steps % config.checkpoint_every == 0 and self.batch < len(batches):
                    self.save()

    def check(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures, unless a loss is no number any more: then an end that leaves the last checkpoint."""
        for name, value in figures.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise UserError(
                    f"the {name.replace('_', ' ')} is {value} at step {self.trainer.steps}; go on from the "
                    "last checkpoint with a lower train.lr or without mixed precision: "
                    f"--resume {self.folder} run.precision=float32"
                )
        return figures

    def finish_epoch(self) -> None:
        """Validate, log, keep the best, draw the curves, save."""
        figures = self.validate()
        monitored = figures[self.config.train.monitor]
        sign = -1 if self.config.train.monitor == "loss" else 1
        better = self.best is None or sign * monitored > sign * self.best
        self.trainer.schedule.epoch_ended(better)
        scores = {key: value for key, value in figures.items() if key in (*BLEU, "CIDEr")}
        losses = {key: value for key, value in figures.items() if key not in scores}
        train = self.averages.read() if self.epoch else {}
        self.record("epoch", {**prefixed("train", train), **prefixed("val", losses), **scores})
        if better:
            self.best, self.best_epoch = monitored, self.epoch
            save_checkpoint(self.folder / "best.pth", self.pack(self.trainer.evaluated))
        print(
            f"epoch {self.epoch}: {f'train {self.averages.text(train)}; ' if train else ''}"
            f"validation loss {losses['loss']:.3f}, "
            f"perplexity {losses['perplexity']:.2f}, top-5 {losses['top5']:.1%}, "
            f"BLEU-4 {scores['BLEU-4']:.3f}, CIDEr {scores['CIDEr']:.3f}{' (best)' if better else ''}, "
            f"{self.seconds():.0f} s so far",
            flush=True,
        )
        self.epoch, self.batch, self.averages = self.epoch + 1, 0, self.objective.averages(self.device)
        self.save()
        draw_curves([self.folder / "loss_log.txt"], self.folder / "loss_curve.png")
        sheet = self.samples.draw(self.folder / "samples.png")
        if self.board:
            self.board.add_samples(sheet, self.trainer.steps)

    def validate(self) -> dict[str, float]:
        """loss, perplexity, top5, BLEU-1 to 4 and CIDEr on the validation split; the samples take note."""
        config, model = self.config, self.trainer.evaluated
        common = (config.train.batch_size, config.data.workers, self.device, self.precision)
        figures = validation_loss(model, self.val_set, *common)
        options = self.search_options(config.train.beam)
        captions = caption_split(model, self.val_set, self.vocabulary, options, *common)
        scores = self.scorer.score(captions, (*BLEU, "CIDEr"))
        self.samples.add(self.epoch, scores["CIDEr"], captions)
        return {**figures, **scores}

    def search_options(self, beam: int) -> SearchOptions:
        search = self.config.search
        return SearchOptions(beam=beam, max_length=search.max_length, length_penalty=search.length_penalty)

    def record(self, event: str, figures: dict[str, float]) -> None:
        """A row in loss_log.txt, and on TensorBoard where that is asked for."""
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

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def pack(self, model) -> dict:
        return pack_model(model, self.config, self.vocabulary.words, self.transform.as_dict())

    def save(self) -> None:
        """checkpoints.pth: all of the run, from which --resume goes on."""
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
        save_checkpoint(self.folder / "checkpoints.pth", {**self.pack(self.model), "training": training})

    def load(self, training: dict) -> None:
        """Go on from what `save` wrote."""
        self.epoch, self.batch = training["epoch"], training["batch"]
        self.best, self.best_epoch = training["best"], training["best_epoch"]
        self.averages = self.objective.averages(self.device, training["averages"])
        self.interval = self.objective.averages(self.device, training["interval"])
        self.seconds_before, self.started = training["seconds"], time.monotonic()
        self.log = LossLog(self.folder / "loss_log.txt", training["history"])
        self.samples.history = training.get("samples", [])
        self.log.add(event="resume", epoch=self.epoch, step=training["steps"])
        self.trainer.load_state_dict(training)

    def say_goodbye(self) -> None:
        """The best epoch's scores with the configured beam, and what to do next."""
        loaded = load_model(self.folder / "best.pth")
        loaded.model.to(self.device)
        common = (self.config.train.batch_size, self.config.data.workers, self.device, self.precision)
        options = self.search_options(self.config.search.beam)
        captions = caption_split(loaded.model, self.val_set, self.vocabulary, options, *common)
        scores = self.scorer.score(captions, (*BLEU, "ROUGE-L", "CIDEr"))
        print(f"\n{self.folder / 'best.pth'} is epoch {self.best_epoch}; {self.seconds():.0f} s of training.")
        print(f"Validation scores with beam {options.beam}:")
        print("  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        print("\nNext:")
        print(
            f"  python inference_visualize.py {self.config.data.images} --limit 20 "
            f"--checkpoint {self.folder / 'best.pth'}"
        )
        print(f"  python visualize_loss.py {self.folder}")


def prefixed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{key}": value for key, value in figures.items()}
