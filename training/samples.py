"""samples.png: captions of the same few validation images after each epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from data.images import ImageFolder
from data.shard_set import ShardSet
from files import replacing
from reports.samples import samples_sheet
from utils import UserError

_NUM_IMAGES = 6  # as many as fit side by side on a slide


class Samples:
    """`history` has a row per epoch and is saved in the checkpoint, so that a resumed run continues it."""

    def __init__(self, images: ImageFolder | ShardSet, references: Mapping[str, Sequence[str]]):
        """`references`: the captions of the validation images; the samples are spread evenly over them."""
        names = list(references)
        count = min(_NUM_IMAGES, len(names))
        self.images = images
        self.names = [names[i * len(names) // count] for i in range(count)]
        self.references = [references[name][0] for name in self.names]
        self.history: list[dict] = []

    def add(self, epoch: int, cider: float, captions: Mapping[str, str]) -> None:
        """Add a row: `captions` of all validation images after `epoch`, and their CIDEr."""
        sampled = {name: captions[name] for name in self.names}
        self.history.append({"epoch": epoch, "CIDEr": cider, "captions": sampled})

    def draw(self, path: Path) -> Image.Image:
        """Write the sheet as PNG and return it.

        Raises UserError if an image cannot be read or the sheet cannot be written.
        """
        rows = [
            (f"epoch {row['epoch']}", f"CIDEr {row['CIDEr']:.2f}", [*map(row["captions"].get, self.names)])
            for row in self.history
        ]
        try:
            images = [self.images.read(name) for name in self.names]
        except UserError as error:
            raise UserError(f"cannot draw {path}: {error}") from None
        sheet = samples_sheet(images, rows, self.references)
        with replacing(path) as temporary:
            sheet.save(temporary, format="png")
        return sheet
