"""Image file -> tensor: the only place where pixels are prepared, for training and inference alike."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch
from PIL import Image, ImageOps
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from config import EncoderConfig


@dataclass(frozen=True)
class ImageTransform:
    """The whole image is stretched to a square, scaled to [0, 1] and normalised.

    It is not cropped, because captions also describe what is at the edges, and attention over the square
    maps back to the image by scaling alone.
    """

    size: int  # pixels per side
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> (3, size, size) float32."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> (3, size, size) uint8, a quarter of the bytes to send between processes."""
        return pil_to_tensor(image.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, size, size) uint8 -> float32, on the device of the pixels."""
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)

    def as_dict(self) -> dict:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> "ImageTransform":
        return cls(values["size"], tuple(values["mean"]), tuple(values["std"]))


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
    """The mean, standard deviation and size of torchvision's weights; encoder.image_size overrides the size.

    For weights from a file, or none, they are those of the model's default weights.
    """
    weights = get_model_weights(encoder.name)
    known = encoder.weights in weights.__members__
    preset = (weights[encoder.weights] if known else weights.DEFAULT).transforms()
    return ImageTransform(encoder.image_size or preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def read_image(path: str | Path | IO[bytes]) -> Image.Image:
    """A file as an upright RGB image (EXIF orientation applied, transparency on white).

    Raises:
        OSError: the file is missing or is not an image that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises these for a broken file.
        raise OSError(f"{path}: {error}") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """`image` as viewers show it: RGB, rotated according to its EXIF orientation, transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
