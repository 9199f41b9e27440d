"""How much of a training step does scoring the sampled captions take?

    python benchmarks/reward_speed.py --checkpoint runs/flickr8k_mobilenet/best.pth

Runs a few steps of self-critical training on the checkpoint's data without saving anything, and prints the
time of a step and the share of scoring.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from startup import run_script

from captioning import Captioner
from compute import seed_everything
from data.captions import read_table
from data.dataset import make_loader, training_batches
from models.checkpoint import find_checkpoint
from training.datasets import make_datasets
from training.objectives import OBJECTIVES
from training.trainer import Trainer


class Timed:
    """A function with the total time of its calls."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments):
        began = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - began
        return result


def main() -> None:
    args = parse_arguments()
    checkpoint = find_checkpoint(args.checkpoint)
    overrides = [f"train.objective={args.objective}", f"train.init_from={checkpoint}"]
    captioner = Captioner.load(checkpoint, [*args.overrides, *overrides])
    config, data = captioner.config, captioner.config.data
    seed_everything(config.run.seed)
    table = read_table(data)
    [dataset] = make_datasets(captioner, table, ["train"], training=True)

    began = time.perf_counter()
    objective = OBJECTIVES[args.objective](captioner.model, config, captioner.compute, dataset)
    print(f"counting the references' n-grams, once: {time.perf_counter() - began:.2f} s")
    objective.rewards = scoring = Timed(objective.rewards)
    trainer = Trainer(objective, args.steps)
    batches = training_batches(len(dataset), config.train.batch_size, config.run.seed, 1)[: args.steps + 1]
    loader = make_loader(dataset, batches, data.workers, captioner.compute)
    for step, (draws, batch) in enumerate(zip(batches, loader, strict=True)):
        if step == 1:  # the first one warms up
            scoring.seconds, began = 0.0, time.perf_counter()
        loss = trainer.step(batch, [index for index, _ in draws], epoch=1)
        loss.sums["reward"].item()  # waits for the device
    seconds = time.perf_counter() - began
    print(
        f"{args.steps} steps, {int(loss.sums['captions'])} captions of {config.train.batch_size} images "
        f"each: {1000 * seconds / args.steps:.1f} ms per step, {1000 * scoring.seconds / args.steps:.1f} ms "
        f"of it ({scoring.seconds / seconds:.1%}) scoring"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="best.pth of a run (default: the newest one in runs/)"
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps to measure (default: 20)")
    parser.add_argument(
        "--objective",
        choices=("self_critical", "actor_critic"),
        default="self_critical",
        help="training objective (default: self_critical)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the configuration"
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_script(main)
