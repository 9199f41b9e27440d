"""How busy does feature extraction keep the backbone?

    python benchmarks/feature_extraction.py IMAGES [--encoder NAME] [--images 512] [--rounds 5]

Measures, several times in turn, the backbone alone on a batch in memory, and data/features.py from image
files to features on disk. Prints the images per second of both, and the ratio of their medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from startup import run_script

from compute import Compute
from config import EncoderConfig
from config_reading import make_config
from data.features import FeatureStore
from data.loading import read_listed_image
from data.transforms import transform_for
from models.encoder import EncoderCNN
from utils import UserError

BATCH = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image_folder", type=Path, metavar="IMAGES", help="image folder")
    parser.add_argument(
        "--encoder", default="resnet50", metavar="NAME", help="torchvision model (default: resnet50)"
    )
    parser.add_argument("--images", type=int, default=512, help="images per round (default: 512)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    defaults = make_config({})
    parser.add_argument(
        "--workers", type=int, default=defaults.data.workers, help="processes that read images"
    )
    args = parser.parse_args()

    paths = sorted(
        path for path in args.image_folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    paths = paths[: args.images]
    if len(paths) < BATCH:
        raise UserError(f"{args.image_folder} has {len(paths)} images; pass a folder with {BATCH} or more")
    names = [path.name for path in paths]
    compute = Compute.choose()
    # The values of the weights do not affect the speed.
    config = EncoderConfig(name=args.encoder, weights="none")
    encoder, transform = EncoderCNN(config).to(compute.device).eval(), transform_for(config)
    for_inference = encoder.for_inference()  # as training/datasets.py computes features

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with compute.autocast():
            return for_inference(transform.normalise(pixels.to(compute.device)))

    @torch.inference_mode()
    def backbone_alone(batch: torch.Tensor) -> float:
        """Images per second of the encoder alone, without fused batch norms."""
        began = time.perf_counter()
        with compute.autocast():
            for _ in range(len(names) // BATCH):
                encoder(batch)
        if compute.device.type != "cpu":
            torch.accelerator.synchronize(compute.device)
        return len(names) // BATCH * BATCH / (time.perf_counter() - began)

    def extraction(folder: Path) -> float:
        """Images per second from files to features on disk."""
        began = time.perf_counter()
        store = FeatureStore(folder, {}, encode, args.image_folder, transform, workers=args.workers)
        store.grids(dict.fromkeys(names, 1))
        return len(names) / (time.perf_counter() - began)

    pixels = torch.stack([transform.pixels(read_listed_image(path)) for path in paths[:BATCH]])
    batch = transform.normalise(pixels.to(compute.device))
    backbone_alone(batch)  # to warm up
    alone, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.rounds):
            alone.append(backbone_alone(batch))
            whole.append(extraction(Path(folder) / str(i)))
    precision = str(compute.precision).removeprefix("torch.")
    print(f"{args.encoder}, {precision} on {compute.device}, {len(names)} images per round")
    print(f"backbone alone: {statistics.median(alone):.1f} images/s")
    print(f"extraction:     {statistics.median(whole):.1f} images/s")
    print(f"ratio:          {statistics.median(w / a for w, a in zip(whole, alone, strict=True)):.1%}")
    return 0


if __name__ == "__main__":
    run_script(main)
