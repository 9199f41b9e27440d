"""A trained model before and after export.py: size, start-up, speed, and the score of its captions.

    python -m benchmarks.export runs/mine/best.pth
    python -m benchmarks.export runs/mine/best.pth --images 200
    python -m benchmarks.export runs/mine/best.pth search.rerank=none search.beam=5

The last line is for a model with neighbours: exported models search without them, so PyTorch has to as well.

Start-up is the CPU time of a command that captions one image. The speed is images per second of CPU time,
from files to captions. CIDEr is that of the first validation images, and the last column says how many of
their captions are those of PyTorch.
"""

from startup import run_script

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import start_up
from caption_onnx import Model, read_image
from captioning import Captioner
from compute import Compute
from data.captions import read_table, references
from files import readable_size
from jobs.export import export_files
from metrics.scores import Scorer

_ROOT = Path(__file__).resolve().parents[1]
_BATCH = 16


class _Variant(NamedTuple):
    name: str
    files: Sequence[Path]  # that the model consists of
    command: Sequence[str]  # what captions an image, without the image
    caption: Callable[[Sequence[Path]], list[str]]  # a batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="of the validation split")
    parser.add_argument("overrides", nargs="*", metavar="search.key=value", help="for all of them")
    args = parser.parse_args()
    captioner = Captioner.load(args.checkpoint, args.overrides, compute=Compute.choose("cpu", "float32"))
    known = references(read_table(captioner.config.data, ("val",)), "val")
    known = dict(list(known.items())[: args.images])
    paths = [(captioner.config.data.images / name).absolute() for name in known]
    with tempfile.TemporaryDirectory() as folder:
        variants = [
            _in_torch(captioner, args, Path(folder)),
            _exported(args, Path(folder, "onnx"), "ONNX"),
            _exported(args, Path(folder, "int8"), "ONNX with --int8", int8=True),
        ]
        print("| model | size | start-up | images/s | CIDEr | same captions |\n|---|---|---|---|---|---|")
        first: list[str] = []
        for variant in variants:
            captions, speed = _captions(variant, paths)
            first = first or captions
            same = sum(map(str.__eq__, captions, first)) / len(first)
            scores = Scorer(known).score(dict(zip(known, captions, strict=True)))
            size = readable_size(sum(file.stat().st_size for file in variant.files))
            seconds = start_up.cpu_seconds(*variant.command, str(paths[0]))
            cells = size, f"{seconds:.1f} s", f"{speed:.1f}", f"{scores['CIDEr']:.3f}", f"{same:.1%}"
            print(f"| {variant.name} | {' | '.join(cells)} |", flush=True)


def _in_torch(captioner: Captioner, args: argparse.Namespace, folder: Path) -> _Variant:
    options = ["--checkpoint", str(args.checkpoint), "--output", str(folder / "outputs"), "run.device=cpu"]
    return _Variant(
        "PyTorch",
        [args.checkpoint],
        [str(_ROOT / "inference_visualize.py"), *options, *args.overrides],
        lambda batch: [result.caption for result in captioner(batch, batch_size=_BATCH)],
    )


def _exported(args: argparse.Namespace, folder: Path, name: str, int8: bool = False) -> _Variant:
    """Exports the model to `folder`."""
    export_files(argparse.Namespace(**{**vars(args), "output": folder, "format": "onnx", "int8": int8}))
    model = Model(folder)
    return _Variant(
        name,
        sorted(folder.glob("*.onnx")),
        [str(_ROOT / "caption_onnx.py"), str(folder)],
        lambda batch: [caption.text for caption in model([read_image(path) for path in batch])],
    )


def _captions(variant: _Variant, paths: Sequence[Path]) -> tuple[list[str], float]:
    """The captions of all images, and images per second of CPU time."""
    variant.caption(paths[:1])  # the first call allocates
    began, captions = time.process_time(), []
    for i in range(0, len(paths), _BATCH):
        captions += variant.caption(paths[i : i + _BATCH])
    return captions, len(paths) / (time.process_time() - began)


if __name__ == "__main__":
    run_script(main)
