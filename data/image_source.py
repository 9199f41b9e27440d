"""Whatever an image can be passed as: a path, an open file, a PIL image, an array."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from data.transforms import read_image, upright_rgb
from utils import UserError

# A path, an open binary file, a PIL image, or an RGB array (H, W, 3) of uint8.
ImageSource = str | Path | IO[bytes] | Image.Image | np.ndarray


class ImageError(UserError):
    """An image cannot be read; `source` is what was passed."""

    def __init__(self, source: ImageSource, reason: object):
        name = source if isinstance(source, str | Path) else getattr(source, "name", type(source).__name__)
        super().__init__(f"{name} cannot be read as an image ({reason})")
        self.source = source


def read_source(source: ImageSource) -> Image.Image:
    """The image, upright and RGB. Raises ImageError."""
    if isinstance(source, np.ndarray) and (
        source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0
    ):
        raise ImageError(source, f"it is {source.dtype} {source.shape}, not uint8 (H, W, 3)")
    try:
        if isinstance(source, np.ndarray):
            return upright_rgb(Image.fromarray(source))
        return upright_rgb(source) if isinstance(source, Image.Image) else read_image(source)
    except OSError as error:
        raise ImageError(source, error) from None
