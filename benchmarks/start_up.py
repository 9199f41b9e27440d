"""What a command takes in all: seconds of CPU, added up over its threads.

Bound: `import torch, torchvision` in a process of its own.
"""

from startup import run_script

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.measure import Row, divided, row, seconds_in_turn
from benchmarks.report import run_benchmarks
from benchmarks.workload import Settings, config, vocabulary_words
from data.transforms import transform_for
from models.checkpoint import save_checkpoint
from models.model import build_model, pack_model

_ROOT = Path(__file__).resolve().parents[1]


def benchmark(settings: Settings) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "import torch, torchvision": ["-c", "import torch, torchvision"],
            "train.py --help": [str(_ROOT / "train.py"), "--help"],
            "one image captioned": _captioning(settings, Path(folder)),
        }
        runs = [lambda command=command: cpu_seconds(*command) for command in commands.values()]
        rounds = seconds_in_turn(runs, settings)
    bound, *own = zip(*rounds, strict=True)
    return [
        row("start-up", name, "", seconds, "s", "", {"bound": divided(bound, seconds)})
        for name, seconds in zip(list(commands)[1:], own, strict=True)
    ]


def _captioning(settings: Settings, folder: Path) -> list[str]:
    """Writes an image and a model that has learnt nothing; returns the command that captions the image."""
    encoder = {"name": settings.encoders[0], "weights": "none", "image_size": settings.image_size}
    options = config(settings, encoder=encoder)
    model = build_model(options, settings.vocab_size)
    transform = transform_for(options.encoder).as_dict()
    save_checkpoint(folder / "best.pth", pack_model(model, options, vocabulary_words(settings), transform))
    Image.new("RGB", (500, 375), "teal").save(folder / "image.jpg")
    paths = [str(folder / name) for name in ("image.jpg", "best.pth", "outputs")]
    return [str(_ROOT / "inference_visualize.py"), paths[0], "--checkpoint", paths[1], "--output", paths[2]]


def cpu_seconds(*arguments: str) -> float:
    """The seconds of CPU of `python arguments`; raises CalledProcessError if it fails."""
    # As Python does by default, the first run keeps what it compiles, for all others.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
