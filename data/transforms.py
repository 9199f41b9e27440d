"""Picture file -> tensor: the one place where pixels are prepared, for training as for inference."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor


@dataclass(frozen=True)
class ImageTransform:
    """The whole picture stretched to a square, scaled to [0, 1] and normalised.

    Stretched rather than cropped at the centre: a caption describes what is at the edges, too, and an
    attention map over the square maps back to the picture by scaling alone.
    """

    size: int  # pixels a side
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """RGB picture -> (3, size, size) float32."""
        return self.normalise(self.pixels(picture))

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """RGB picture -> (3, size, size) uint8, a quarter of the bytes to hand from process to process."""
        return pil_to_tensor(picture.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, size, size) uint8 -> float32, on whatever device the pixels are."""
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)

    def as_dict(self) -> dict:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> "ImageTransform":
        return cls(values["size"], tuple(values["mean"]), tuple(values["std"]))


def augment(picture: Image.Image, kinds: Sequence[str], seed: int) -> Image.Image:
    """The picture with the random changes of `kinds` (crop, flip, colour); the seed decides which."""
    random = torch.Generator().manual_seed(seed)
    draw = torch.rand(6, generator=random).tolist()
    if "crop" in kinds:
        # Each side keeps 75 to 100 %: most captions still hold for what is left.
        width, height = (round(side * (0.75 + 0.25 * d)) for side, d in zip(picture.size, draw, strict=False))
        left, top = round((picture.width - width) * draw[2]), round((picture.height - height) * draw[3])
        picture = picture.crop((left, top, left + width, top + height))
    if "flip" in kinds and draw[4] < 0.5:
        picture = ImageOps.mirror(picture)
    if "colour" in kinds:
        strength = 0.8 + 0.4 * draw[5]
        picture = F.adjust_saturation(F.adjust_brightness(picture, strength), 2 - strength)
    return picture


def transform_for(encoder: str, weights: str = "DEFAULT", image_size: int | None = None) -> ImageTransform:
    """The transform that torchvision's weights were trained with: input size, mean, standard deviation.

    Weights from a file (or none) use those of the model's default weights.
    """
    known = get_model_weights(encoder)
    preset = (known[weights] if weights in known.__members__ else known.DEFAULT).transforms()
    return ImageTransform(image_size or preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def read_picture(path: Path) -> Image.Image:
    """A file as an upright RGB picture (EXIF orientation applied, transparency on white).

    Raises:
        OSError: the file is missing or is no picture that Pillow reads.
    """
    try:
        with Image.open(path) as picture:
            return upright_rgb(picture)
    except (
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's words for a broken file
        raise OSError(f"{path}: {error}") from None


def upright_rgb(picture: Image.Image) -> Image.Image:
    """`picture` as a person sees it: turned as its EXIF says, transparency on white, RGB."""
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
