"""Caption images with a model that `export.py --format onnx` wrote: without torch, without this project.

    python caption_onnx.py outputs/onnx dog.jpg cat.jpg

The captions are those of inference_visualize.py. This file needs NumPy, Pillow and onnxruntime alone: copy it
and the folder of the model to where images are captioned. A program can import it:

    model = Model("outputs/onnx")
    [caption] = model([read_image("dog.jpg")])
    print(caption.text)
"""

import argparse
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable, Sequence
from math import ceil, isfinite, isqrt, sqrt
from pathlib import Path
from typing import NamedTuple

try:
    import numpy as np
    import onnxruntime
    from PIL import ExifTags, Image
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"error: it needs the package {error.name}: pip install numpy pillow onnxruntime", file=sys.stderr)
    sys.exit(2)

_FORMAT = 1  # of the folder
_SOS, _EOS = 1, 2  # tokens
LARGE = 25_000_000  # pixels; a larger image is first reduced by a whole factor
_BATCH = 16  # images that are captioned together
_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
warnings.filterwarnings("ignore", module=r"PIL\.")

# Arrays by the names of the model's inputs and outputs.
Arrays = dict[str, np.ndarray]
Graph = Callable[[Arrays], Arrays]


class CannotRead(Exception):
    """A model or an image cannot be read. The message says which and why, on one line."""


class Caption(NamedTuple):
    """The caption of an image."""

    text: str
    words: list[str]
    probabilities: np.ndarray  # (words,) the model's own, given the image and the words before
    attention: np.ndarray | None  # (words, rows, columns) weights over the whole image, or None


class Captions(NamedTuple):
    """What a beam search finds: K captions for each of N images, best first."""

    tokens: np.ndarray  # (N, K, T) int64, the words and <eos>, then anything
    log_probs: np.ndarray  # (N, K, T) float32, of each token
    alphas: np.ndarray | None  # (N, K, T, L) float32


class Model:
    """A folder that export.py wrote."""

    def __init__(self, folder: str | Path):
        """Raises CannotRead."""
        folder = Path(folder)
        try:
            self.settings = json.loads((folder / "model.json").read_text("utf-8"))
            written = self.settings["format"]
            self.encoder, self.step = (load_graph(folder / f"{name}.onnx") for name in ("encoder", "step"))
        except Exception as error:  # onnxruntime may raise anything
            reason = " ".join(str(error).split())
            raise CannotRead(
                f"{folder} is not a model that export.py --format onnx wrote ({reason})"
            ) from None
        if written != _FORMAT:
            raise CannotRead(f"{folder} has format {written}, and this file reads {_FORMAT}; export it again")

    def __call__(self, images: Sequence[Image.Image], beam: int | None = None) -> list[Caption]:
        """The captions of RGB images. `beam`: the number of beams; None: that of the settings."""
        settings = {**self.settings, **({} if beam is None else {"beam": beam})}
        pixels = np.stack([self.pixels(image) for image in images])
        captions = beam_search(self.encoder, self.step, pixels, settings)
        return [self._best(captions, i) for i in range(len(images))]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An RGB image -> (S, S, 3) uint8: the whole image is stretched to a square, as in training."""
        size, filter_name = self.settings["size"], self.settings["interpolation"].upper()
        return np.asarray(image.resize((size, size), Image.Resampling[filter_name]))

    def _best(self, captions: Captions, i: int) -> Caption:
        tokens = captions.tokens[i, 0].tolist()
        words = [self.settings["words"][token] for token in tokens[: tokens.index(_EOS)]]
        attention = None
        if captions.alphas is not None:
            alphas = captions.alphas[i, 0, : len(words)]
            side = isqrt(alphas.shape[1])
            attention = alphas.reshape(-1, side, side)
        return Caption(" ".join(words), words, np.exp(captions.log_probs[i, 0, : len(words)]), attention)


def beam_search(encoder: Graph, step: Graph, pixels: np.ndarray, settings: dict) -> Captions:
    """The most likely captions of images (N, S, S, 3) uint8.

    A finished caption stays in the beam and competes by its log-probability / length^penalty, until all are
    finished. Beams are ranked by probabilities without the tokens that are `never` chosen; words that are
    `excluded` keep their share of the probability.
    """
    state = encoder({"pixels": pixels})
    tokens, total = np.full((len(pixels), 1), _SOS), np.zeros((len(pixels), 1), np.float32)
    length, finished = np.zeros_like(total), np.zeros_like(total, bool)
    history: list[list[np.ndarray]] = []  # of each step: parents, tokens, log-probabilities, alphas
    for t in range(settings["max_length"] + 1):  # the words and <eos>
        found = step({"tokens": tokens, **state})
        own, ranked = found["log_probs"], found["log_probs"].copy()  # (N, K, V)
        ranked[:, :, settings["never"]] = -np.inf
        ranked -= np.log(np.exp(ranked).sum(axis=2, keepdims=True))
        ranked[:, :, settings["excluded"]] = -np.inf
        if t == settings["max_length"]:
            ranked[:, :, np.arange(ranked.shape[2]) != _EOS] = -np.inf
        words = _top(ranked, min(settings["beam"], ranked.shape[2] - len(settings["never"])))
        own, ranked = np.take_along_axis(own, words, 2), np.take_along_axis(ranked, words, 2)
        # A finished beam has one continuation: padding, with probability 1.
        ranked[finished] = -np.inf
        ranked[:, :, 0][finished] = 0

        longer = length + ~finished
        candidates = total[:, :, None] + ranked
        scores = candidates / longer[:, :, None] ** settings["length_penalty"]
        scores, candidates, words, own = (x.reshape(len(x), -1) for x in (scores, candidates, words, own))
        best = _top(scores, min(settings["beam"], scores.shape[1]))
        parent = best // (scores.shape[1] // len(total[0]))
        total, tokens, own = (np.take_along_axis(x, best, 1) for x in (candidates, words, own))
        length, finished = np.take_along_axis(longer, parent, 1), np.take_along_axis(finished, parent, 1)
        finished |= tokens == _EOS
        for name in state:
            if name.startswith("sequence_"):
                state[name] = _rows(found[name.replace("sequence_", "next_", 1)], parent)
        alphas = [_rows(found["alphas"], parent)] if "alphas" in found else []
        history.append([parent, tokens, own, *alphas])
        if (finished | np.isneginf(total)).all():
            break
    return Captions(*_put_together(history), *[None] * (not alphas))


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest numbers along the last axis, the largest first."""
    largest = np.argpartition(-scores, k - 1)[..., :k]
    order = np.argsort(-np.take_along_axis(scores, largest, -1), kind="stable")
    return np.take_along_axis(largest, order, -1)


def _rows(x: np.ndarray, beams: np.ndarray) -> np.ndarray:
    """These beams (N, K') of the images in x (N, K, ...)."""
    return x[np.arange(len(x))[:, None], beams]


def _put_together(history: list[list[np.ndarray]]) -> list[np.ndarray]:
    """From each step's parents and arrays (N, K, ...), the arrays of whole captions (N, K, T, ...)."""
    last = history[-1][0]
    beams, found = np.broadcast_to(np.arange(last.shape[1]), last.shape), []
    for parent, *arrays in reversed(history):
        found.append([_rows(x, beams) for x in arrays])
        beams = np.take_along_axis(parent, beams, 1)
    return [np.stack(steps[::-1], axis=2) for steps in zip(*found, strict=True)]


def load_graph(path: Path) -> Graph:
    """The function from a graph's inputs to its outputs."""
    options = onnxruntime.SessionOptions()
    if hasattr(os, "sched_getaffinity"):  # where a process has some of the cores, more threads only wait
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def read_image(path: str | Path) -> Image.Image:
    """An image file as viewers show it: RGB, upright, transparency on white. Raises CannotRead."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a regular file")  # a pipe would be waited for
        with Image.open(path) as image:
            if image.format == "EPS":
                raise OSError("it is an EPS file, a program, for which Pillow would run Ghostscript")
            factor = _reduction(image)
            if factor > 1:
                image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            image.load()
            rgb = _to_rgb(image).reduce(_reduction(image))
            turn = _TURNS.get(_orientation(image))
            return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:  # Pillow may raise anything for a broken file
        reason = " ".join(str(error).split())
        raise CannotRead(f"{path} cannot be read as an image ({reason})") from None


def _reduction(image: Image.Image) -> int:
    """The smallest whole factor that leaves at most LARGE pixels of the image."""
    return ceil(sqrt(max(1, image.width * image.height / LARGE)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """16-bit grey is scaled to 8 bits; so are other numbers, from the smallest to the largest."""
    if image.mode.startswith("I") or image.mode == "F":
        is_16_bit = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
        numbers = np.asarray(image, np.float64)
        low, high = (0.0, 65535.0) if is_16_bit else (float(numbers.min()), float(numbers.max()))
        if not (isfinite(low) and isfinite(high)):
            raise OSError("it has pixels that are not finite numbers")
        grey = (numbers - low) * (255 / ((high - low) or 1)) + 0.5
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int | None:
    """The number in its EXIF data; None if there are none, or damaged ones."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="FOLDER", help="folder that export.py wrote")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--beam", type=int, metavar="K", help="beam width (default: that of the model)")
    args = parser.parse_args()
    if args.beam is not None and args.beam < 1:
        parser.error("--beam must be at least 1")
    model, skipped = Model(args.model), 0
    for first in range(0, len(args.images), _BATCH):
        images = {}
        for path in args.images[first : first + _BATCH]:
            try:
                images[path] = read_image(path)
            except CannotRead as error:
                print("skipped:", error, file=sys.stderr)
                skipped += 1
        if images:
            for path, caption in zip(images, model(list(images.values()), args.beam), strict=True):
                print(f"{path}: {caption.text}", flush=True)
    return 1 if skipped else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotRead as problem:
        print("error:", problem, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("stopped")
