"""samples.png: the same handful of validation images after each epoch, with their captions so far."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from data.transforms import read_image
from files import replacing
from reports.samples import samples_sheet
from utils import UserError

IMAGES = 6  # as many as fit beside each other on a slide


class Samples:
    """`history` has a row per epoch; it goes into the checkpoint, so that a resumed run goes on with it."""

    def __init__(self, images: Path, references: Mapping[str, Sequence[str]]):
        """`references`: the captions of the validation images; the samples are spread evenly over them."""
        names = list(references)
        count = min(IMAGES, len(names))
        self.images, self.names = images, [names[i * len(names) // count] for i in range(count)]
        self.people = [references[name][0] for name in self.names]
        self.history: list[dict] = []

    def add(self, epoch: int, cider: float, captions: Mapping[str, str]) -> None:
        """What the model says of the validation images after `epoch`, and the CIDEr of all of them."""
        said = {name: captions[name] for name in self.names}
        self.history.append({"epoch": epoch, "CIDEr": cider, "captions": said})

    def draw(self, path: Path) -> Image.Image:
        """Write the sheet, as PNG; returns it. Raises UserError where that cannot be done."""
        rows = [
            (f"epoch {row['epoch']}", f"CIDEr {row['CIDEr']:.2f}", [*map(row["captions"].get, self.names)])
            for row in self.history
        ]
        try:
            sheet = samples_sheet([read_image(self.images / name) for name in self.names], rows, self.people)
            with replacing(path) as temporary:
                sheet.save(temporary, format="png")
        except OSError as error:
            raise UserError(f"cannot draw {path}: {error}") from None
        return sheet
