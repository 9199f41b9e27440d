"""Image file -> tensor: the only place where pixels are prepared, for training and inference alike."""

import contextlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite, sqrt
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import torch
import torchvision
from PIL import ExifTags, Image, ImageOps
from torchvision.models import get_model_weights, list_models
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from config import EncoderConfig
from data.timm_names import find_timm_model, is_timm
from utils import UserError, did_you_mean

# Pixels. A larger image is reduced by a whole factor to no more than this, so that an RGB copy of it takes a
# hundred megabytes at most. That is still several times what an encoder sees.
LARGE = 25_000_000
_BAND = 1 << 20  # pixels that are converted at once when an image is reduced
_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow warns of large images and of odd details in files. Users can do nothing about either.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageTransform:
    """The whole image is stretched to a square, scaled to [0, 1] and normalised.

    It is not cropped, because captions also describe what is at the edges, and attention over the square
    maps back to the image by scaling alone.
    """

    size: int  # pixels per side
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> (3, size, size) float32."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> (3, size, size) uint8, a quarter of the bytes to send between processes.

        They are those of Pillow's `resize`, but for rounding; torch is five times as fast.
        """
        size, mode = [self.size, self.size], InterpolationMode(self.interpolation)
        return F.resize(pil_to_tensor(image), size, mode, antialias=True).contiguous()

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, size, size) uint8 -> float32, on the device of the pixels."""
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)

    def as_dict(self) -> dict:
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        if self.interpolation == "bicubic":  # of which older checkpoints and feature caches say nothing
            del values["interpolation"]
        return values

    @classmethod
    def from_dict(cls, values: dict) -> "ImageTransform":
        interpolation = values.get("interpolation", "bicubic")
        return cls(values["size"], tuple(values["mean"]), tuple(values["std"]), interpolation)


def augment(image: Image.Image, kinds: Sequence[str], seed: int) -> Image.Image:
    """The image with random changes of these `kinds` (crop, flip, colour); the seed determines them."""
    random = torch.Generator().manual_seed(seed)
    draw = torch.rand(6, generator=random).tolist()
    if "crop" in kinds:
        # Each side keeps 75 to 100 %, so most captions still describe the image.
        width, height = (round(side * (0.75 + 0.25 * d)) for side, d in zip(image.size, draw, strict=False))
        left, top = round((image.width - width) * draw[2]), round((image.height - height) * draw[3])
        image = image.crop((left, top, left + width, top + height))
    if "flip" in kinds and draw[4] < 0.5:
        image = ImageOps.mirror(image)
    if "colour" in kinds:
        strength = 0.8 + 0.4 * draw[5]
        image = F.adjust_saturation(F.adjust_brightness(image, strength), 2 - strength)
    return image


def transform_for(encoder: EncoderConfig) -> ImageTransform:
    """The transform that the encoder's weights were trained with; encoder.image_size overrides the size.

    For weights from a file, or none, it is that of the model's default weights. Of timm's settings, the crop
    is not used, and of torchvision's, neither the crop nor the interpolation.
    Raises UserError if there is no model of that name.
    """
    if is_timm(encoder.name):
        config = find_timm_model(encoder).config
        size = encoder.image_size or config.input_size[-1]
        return ImageTransform(size, tuple(config.mean), tuple(config.std), config.interpolation)
    models = list_models(module=torchvision.models)
    if encoder.name not in models:
        hint = did_you_mean(encoder.name, models) or "; try resnet50, or timm/NAME for a model of timm"
        raise UserError(f"encoder.name={encoder.name}: torchvision has no such classification model{hint}")
    weights = get_model_weights(encoder.name)
    known = encoder.weights in weights.__members__
    preset = (weights[encoder.weights] if known else weights.DEFAULT).transforms()
    return ImageTransform(encoder.image_size or preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def read_image(source: str | Path | IO[bytes], limit: int | None = None) -> Image.Image:
    """A file as `upright_rgb` shows it. Everything that looks at an image file reads it with this function.

    A JPEG file of more than `limit` pixels (LARGE if None) is decoded at a reduced scale.

    Raises:
        OSError: the file is missing, or is not a regular file (a FIFO would be waited for), or is not an
            image that Pillow can read.
    """
    limit = limit or LARGE
    with _broken_is_os_error(source):
        if isinstance(source, str | bytes | os.PathLike) and not stat.S_ISREG(os.stat(source).st_mode):
            raise OSError(f"{source} is not a regular file")
        with Image.open(source) as image:
            if image.format == "EPS":  # whatever the name of the file
                raise OSError("it is an EPS file, a program, for which Pillow would run Ghostscript")
            factor = _reduction(image, limit)
            if factor > 1:
                image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            return _upright_rgb(image, limit)


def upright_rgb(image: Image.Image) -> Image.Image:
    """`image` as viewers show it: RGB, rotated according to its EXIF orientation, transparency on white.

    16-bit grey is scaled to 8 bits, and so are other numbers, from the smallest to the largest of the image.
    An image of more than LARGE pixels is reduced by a whole factor. Raises OSError if it cannot be decoded.
    """
    with _broken_is_os_error("the image"):
        return _upright_rgb(image, LARGE)


@contextlib.contextmanager
def _broken_is_os_error(source: object) -> Iterator[None]:
    """Pillow may raise anything for a broken file. The error becomes an OSError that says what it was."""
    try:
        yield
    except OSError:
        raise  # a message for people
    except Exception as error:
        name = source if isinstance(source, str | Path) else getattr(source, "name", "the image")
        raise OSError(f"{name}: {type(error).__name__}: {error}") from error


def _upright_rgb(image: Image.Image, limit: int) -> Image.Image:
    image.load()  # first, because some formats have their EXIF data after the pixels
    if not (image.width and image.height):
        raise OSError("it has no pixels")
    factor = _reduction(image, limit)
    to_rgb = _to_rgb(image)
    if factor == 1:
        upright = to_rgb(image)
    else:
        # By bands, because the conversions need several times the memory of what they convert.
        upright = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
        rows = factor * max(1, _BAND // (image.width * factor))
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            upright.paste(to_rgb(band).reduce(factor), (0, top // factor))
    turn = _turn(image)
    if turn is not None:
        upright = upright.transpose(turn)
    upright.info = {}  # the orientation would turn the image again
    return upright


def _reduction(image: Image.Image, limit: int) -> int:
    """The smallest whole factor that leaves at most `limit` pixels of the image."""
    return ceil(sqrt(max(1, image.width * image.height / limit)))


def _to_rgb(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The conversion of (any part of) the image to RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return lambda part: _scaled(part, 0, 65535)
    if image.mode in ("I", "F"):
        low, high = cast(tuple[float, float], image.getextrema())
        return lambda part: _scaled(part, low, high)
    if image.has_transparency_data:
        return _on_white
    return lambda part: part.convert("RGB")


def _scaled(image: Image.Image, low: float, high: float) -> Image.Image:
    """Numbers as grey values, of which `low` is black and `high` is white."""
    numbers = np.asarray(image, np.float64)
    if not (isfinite(low) and isfinite(high) and np.isfinite(numbers).all()):
        raise OSError("it has pixels that are not finite numbers")
    grey = (numbers - low) * (255 / ((high - low) or 1)) + 0.5
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright, by its EXIF orientation alone; damaged EXIF data are ignored."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow may raise anything, and the pixels are still as good as before
        return None
