"""Packs a checkpoint for passing on: weights in half precision, compressed, and nothing of the training.

python -m models.pack runs/flickr8k/best.pth small.pth                     less than half the size
python -m models.pack runs/flickr8k/best.pth small.pth search.beam=3      with another default of the search

Loading converts the weights back to float32.
"""

from startup import one_line, run_script

import argparse
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from config_reading import make_config
from files import readable_size
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.model import pack_model, unpack_model
from models.tensors import is_finite, write_compressed
from utils import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a run, or its folder")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("overrides", nargs="*", metavar="search.key=value", help="another default")
    args = parser.parse_args()
    if os.path.lexists(args.output):
        raise UserError(f"{args.output} exists; move it, or choose another name")
    save_checkpoint(args.output, packed(load_checkpoint(args.checkpoint), args.overrides), write_compressed)
    content = args.output.read_bytes()
    print(one_line(f"{args.output}: {readable_size(len(content))}"))
    print(f"SHA-256 {hashlib.sha256(content).hexdigest()}")


def packed(checkpoint: Checkpoint, overrides: list[str]) -> dict:
    """The content of the file: the checkpoint with its matrices rounded to half precision.

    Vectors (biases, and the statistics of batch norms, whose range may be wider) stay as they are: they are a
    hundredth of the numbers. An encoder that the checkpoint does not contain is not in the result either.

    Raises:
        UserError: an override does not fit, or a weight is too large for half precision.
    """
    config = make_config(checkpoint.config.as_dict(), overrides, str(checkpoint.path))
    model = unpack_model(checkpoint, config)
    state = model.state_dict()
    halves = _halves({name: state[name] for name in checkpoint.model}, checkpoint.path)
    for name, half in halves.items():
        state[name].copy_(half)  # the encoder's digest is that of the weights in the file
    content = pack_model(
        model, config, checkpoint.vocabulary.words, checkpoint.transform.as_dict(), checkpoint.neighbours
    )
    return {**content, "model": {name: halves.get(name, value) for name, value in content["model"].items()}}


def _halves(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The matrices of a state dict in half precision; those that share their numbers still do."""
    halves: dict[str, torch.Tensor] = {}
    shared: dict[tuple[int, torch.Size], torch.Tensor] = {}  # by place in memory and shape
    for name, tensor in state.items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            place = tensor.data_ptr(), tensor.shape
            halves[name] = shared.setdefault(place, tensor.half())
            if not is_finite(halves[name]):
                raise UserError(f"{path}: {name} has numbers too large for half precision; use it as it is")
    return halves


if __name__ == "__main__":
    run_script(main)
