"""Draws the built-in sample: small scenes of coloured shapes, each with five captions.

A scene has one group of equal shapes at a place ("two small blue stars in the centre"), or two groups, one
above or to the left of the other. A caption describes everything in the scene, so a correct one equals a
reference, and no two scenes share a caption. The scenes of `val` and `test` are new combinations of parts
that occur in `train`. Left and right matter here: do not mirror the images in training. The same seed gives
the same files.
"""

from startup import run_script

import argparse
import contextlib
import csv
import random
import shutil
import tempfile
from cmath import rect
from collections.abc import Iterator
from math import cos, pi, radians, sin, sqrt
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from data.png import encode_png
from files import locked, require_space
from progress import Progress
from utils import UserError

_SAMPLE_FOLDER = Path("archive/sample")
_DRAFT = ".draft"  # ending of the name of the folder in which scenes are drawn until they are complete

SIDE = 128  # pixels: large enough to view, and not much larger than the 96 of configs/sample.yaml
_SUPERSAMPLING = 4  # drawn this many times larger and averaged down, which smooths the edges

# Different enough in hue or brightness that no two of them look alike after the jitter below.
COLOURS = {
    "red": (222, 49, 54),
    "yellow": (246, 190, 32),
    "green": (44, 160, 88),
    "blue": (38, 112, 222),
    "purple": (150, 68, 184),
    "black": (48, 50, 58),
}
_NUMBERS = {1: "a", 2: "two", 3: "three"}
# Radii. The unit of all lengths is the side of the image. Three large shapes just fit into a quarter.
_SIZES = {"large": 0.1, "small": 0.055}
_CASUAL = {"large": "big", "small": "little"}
# Points are complex numbers x + yi, with y pointing down: addition moves a point, multiplication rotates it.
PLACES = {
    "top left": 0.25 + 0.25j,
    "top right": 0.75 + 0.25j,
    "centre": 0.5 + 0.5j,
    "bottom left": 0.25 + 0.75j,
    "bottom right": 0.75 + 0.75j,
}
# Centres of the first and the second group. Captions describe a relation from both sides: above, or below.
_RELATIONS = {"above": (0.5 + 0.25j, 0.5 + 0.75j), "left": (0.25 + 0.5j, 0.75 + 0.5j)}


def _arc(start: float, stop: float, radius: float = 1, centre: complex = 0) -> list[complex]:
    """Points on a circle from angle `start` to angle `stop`, in degrees, both included."""
    return [centre + rect(radius, radians(start + (stop - start) * i / 48)) for i in range(49)]


def _heart(turn: float) -> complex:
    """The point of the heart curve at an angle in radians."""
    height = 13 * cos(turn) - 5 * cos(2 * turn) - 2 * cos(3 * turn) - cos(4 * turn)
    return complex(16 * sin(turn) ** 3, -height - 2.5) / 16


# Outlines around 0, at most 1.15 from it. Two shapes of a kind whose centres are 2.26 apart do not touch.
_SHAPES = {
    "circle": _arc(0, 360),
    "square": [-0.8 - 0.8j, 0.8 - 0.8j, 0.8 + 0.8j, -0.8 + 0.8j],
    "triangle": [rect(1.15, radians(angle)) for angle in (-90, 30, 150)],
    "star": [rect((1.12, 0.5)[i % 2], radians(36 * i - 90)) for i in range(10)],
    "heart": [_heart(2 * pi * i / 48) for i in range(48)],
    "moon": _arc(53, 307, 1, 0.2) + _arc(274, 86, 0.8, 0.75),  # a disc minus a smaller disc
}


class Group(NamedTuple):
    """One to three equal shapes close together."""

    number: int
    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """What an image shows: one group at one of `PLACES`, or two groups in one of `_RELATIONS`."""

    groups: tuple[Group, ...]
    where: str


def draw_if_missing(captions: list[Path]) -> None:
    """Draw the sample if `captions` is its captions file and does not exist yet; raises as `draw_sample`."""
    if captions[0] != _SAMPLE_FOLDER / "captions.csv" or captions[0].exists():
        return
    with _alone(_SAMPLE_FOLDER):
        if not captions[0].exists():  # another process may have drawn it in the meantime
            draw_sample(_SAMPLE_FOLDER)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that draw into `folder`, and remove what killed ones have left beside it."""
    busy = f"waiting for another process, which is drawing into {folder}"
    with locked(folder.parent / f".{folder.name}.lock", busy, wait=True):
        for leftover in folder.parent.glob(f".{folder.name}-*{_DRAFT}"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def draw_sample(folder: Path, scenes: int = 1200, seed: int = 0) -> None:
    """Write `folder/images/scene_0001.png` ... and `folder/captions.csv` (columns image, caption, split).

    A twelfth of the scenes are `val`, another twelfth `test`. The folder appears only when all scenes are
    drawn, so it is never incomplete.

    Raises:
        UserError: the folder is not empty, or it cannot be written.
        ValueError: fewer than 3 scenes or more than 50,000.
    """
    folder = Path(folder)
    require_space(folder.parent, scenes * SIDE * (SIDE + 8), "the sample dataset")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} is not empty; remove it to draw the sample again, or pass another folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(_DRAFT, f".{folder.name}-", folder.parent) as temporary:
            draft = Path(temporary) / "sample"  # other users cannot read the temporary folder itself
            _write(draft, scenes, seed)
            if folder.exists():
                folder.rmdir()  # it is empty, but Windows does not rename onto an existing folder
            draft.rename(folder)
    except OSError as error:
        raise UserError(f"cannot draw the sample dataset into {folder}: {error.strerror}") from None


def _write(folder: Path, scenes: int, seed: int) -> None:
    rng = random.Random(seed)
    invented = invent_scenes(scenes, rng)
    held_out = max(1, scenes // 12)
    splits = ["train"] * (scenes - 2 * held_out) + ["val"] * held_out + ["test"] * held_out
    (folder / "images").mkdir(parents=True)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "caption", "split"])
        with Progress(scenes, "drawing the sample", "scenes") as progress:
            for number, (scene, split) in enumerate(zip(invented, splits, strict=True), start=1):
                image_name = f"scene_{number:04d}.png"
                (folder / "images" / image_name).write_bytes(encode_png(draw_scene(scene, rng)))
                table.writerows([image_name, caption, split] for caption in describe(scene))
                progress.update()


def invent_scenes(count: int, rng: random.Random) -> list[Scene]:
    """`count` different scenes, half of them with two groups; raises ValueError as `draw_sample` does."""
    if not 3 <= count <= 50_000:  # one per split; near all 91,800, new ones take long to find
        raise ValueError(f"{count} scenes: the number must be between 3 and 50000")
    scenes: dict[Scene, None] = {}  # a dictionary keeps the order, a set does not
    while len(scenes) < count:
        first, second = _invent_group(rng), _invent_group(rng)
        if rng.random() < 0.5:
            scenes[Scene((first,), rng.choice(list(PLACES)))] = None
        elif first[2:] != second[2:]:  # red hearts above red hearts look like one group
            scenes[Scene((first, second), rng.choice(list(_RELATIONS)))] = None
    return list(scenes)


def _invent_group(rng: random.Random) -> Group:
    number, size = rng.choice(list(_NUMBERS)), rng.choice(list(_SIZES))
    return Group(number, size, rng.choice(list(COLOURS)), rng.choice(list(_SHAPES)))


def describe(scene: Scene) -> list[str]:
    """The five captions of a scene, all different."""
    if len(scene.groups) == 1:
        return _describe_one(scene.groups[0], scene.where)
    first, second = scene.groups
    return _describe_two(first, second, scene.where)


def _describe_one(group: Group, place: str) -> list[str]:
    plain, casual = _name(group, group.size), _name(group, _CASUAL[group.size])
    bare = plain.replace(f"{group.size} {group.colour} ", "")
    is_, sits = ("is", "sits") if group.number == 1 else ("are", "sit")
    corner, at = ("centre", "in the middle") if place == "centre" else (f"{place} corner", f"at the {place}")
    return [
        f"{plain} in the {corner}",
        f"there {is_} {casual} {at}",
        f"the {corner} holds {plain}",
        f"{at} you can see {casual}",
        f"{bare} that {is_} {group.size} and {group.colour} {sits} {at}",
    ]


def _describe_two(first: Group, second: Group, relation: str) -> list[str]:
    plain1, plain2 = (_name(group, group.size) for group in (first, second))
    casual1, casual2 = (_name(group, _CASUAL[group.size]) for group in (first, second))
    is1, is2 = ("is" if group.number == 1 else "are" for group in (first, second))
    it, its = ("it", "its") if first.number == 1 else ("them", "their")
    above, below, over, under, there = {
        "above": ("above", "below", "over", "under", f"below {it}"),
        "left": ("to the left of", "to the right of", "on the left of", "on the right of", f"to {its} right"),
    }[relation]
    return [
        f"{plain1} {above} {plain2}",
        f"{plain2} {below} {plain1}",
        f"there {is1} {casual1} {over} {casual2}",
        f"{under} {casual1} there {is2} {casual2}",
        f"{plain1} with {plain2} {there}",
    ]


def _name(group: Group, size: str) -> str:
    return f"{_NUMBERS[group.number]} {size} {group.colour} {group.shape}{'s' if group.number > 1 else ''}"


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """An RGB image of the scene, `SIDE` x `SIDE`. `rng` determines what the captions do not mention."""
    background = tuple(rng.randint(232, 252) for _ in range(3))
    image = Image.new("RGB", (SIDE * _SUPERSAMPLING, SIDE * _SUPERSAMPLING), background)
    centres = [PLACES[scene.where]] if len(scene.groups) == 1 else _RELATIONS[scene.where]
    for group, centre in zip(scene.groups, centres, strict=True):
        _draw_group(ImageDraw.Draw(image), group, centre, rng)
    return image.reduce(_SUPERSAMPLING)


def _draw_group(canvas: ImageDraw.ImageDraw, group: Group, centre: complex, rng: random.Random) -> None:
    radius = _SIZES[group.size] * rng.uniform(0.94, 1)
    # Two shapes are at the ends of a line, three at the corners of a triangle, with a small gap between them.
    spread = {1: 0, 2: 1 / 2, 3: 1 / sqrt(3)}[group.number] * (2.26 * _SIZES[group.size] + 0.008)
    # How far a group can move and still be in its quarter of the image, or clearly in the centre.
    room = max(0, min(0.05, 0.25 - spread - 1.15 * radius))
    centre += complex(rng.uniform(-room, room), rng.uniform(-room, room))
    turn = rng.uniform(0, 360)
    for i in range(group.number):
        middle = centre + rect(spread, radians(turn + 360 * i / group.number))
        tilted = rect(radius, radians(rng.uniform(-7, 7)))
        outline = [(middle + tilted * point) * SIDE * _SUPERSAMPLING for point in _SHAPES[group.shape]]
        fill = tuple(min(255, value + rng.randint(-8, 8)) for value in COLOURS[group.colour])
        # Rounded, because the last digit of a cosine differs between machines.
        canvas.polygon([(round(point.real), round(point.imag)) for point in outline], fill)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.sample", description="Draw the sample dataset.")
    parser.add_argument("folder", nargs="?", type=Path, default=_SAMPLE_FOLDER, help="default: %(default)s")
    arguments = parser.parse_args()
    with _alone(arguments.folder):
        draw_sample(arguments.folder)
    print(f"Drew the sample dataset into {arguments.folder}: captions.csv and images/.")


if __name__ == "__main__":
    run_script(main)
