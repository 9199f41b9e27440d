"""Where the images of a data set are: by name, in a folder or in a shard."""

from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from data.loading import read_listed_image
from utils import UserError


class Fingerprint(NamedTuple):
    """Size and times of a file, which change with its content (ctime even if a copy keeps the date)."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Images(Protocol):
    """Images by name. Processes that read images get a copy."""

    @property
    def place(self) -> str:
        """The absolute path of the folder or of the shard."""

    def fingerprint(self, name: str) -> Fingerprint:
        """The fingerprint of an image; raises UserError if there is none of this name."""

    def read(self, name: str) -> Image.Image:
        """The image, upright and RGB; raises UserError if it cannot be read."""


class ImageFolder:
    """The images of a folder; names are paths relative to it."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def place(self) -> str:
        return str(self.path.resolve())

    def fingerprint(self, name: str) -> Fingerprint:
        path = self.path / name
        try:
            stat = path.stat()
        except (OSError, ValueError):  # ValueError: a name that no file can have
            raise UserError(f"no image at {path.absolute()}; set data.images to the image folder") from None
        return Fingerprint(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def read(self, name: str) -> Image.Image:
        return read_listed_image(self.path / name)
