"""How one step of a decoder is drawn: boxes, arrows and notes as plain data.

A decoder describes its step with these classes; `default_diagram` is for decoders that do not.
reports/architecture.py draws them as the lower half of the figure. Coordinates are units of the figure, which
is 200 wide; y points upwards. `split` is the border between what runs once per image (x from 2 to split - 2)
and what runs once per word (x from split + 2 to 198). Boxes lie between y = 4 and y = 54.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

EXAMPLE = ("a", "large", "red", "heart")  # the first words of the caption of the image in the figure
NEXT_WORD = f"next word: “{EXAMPLE[3]}”"


Point = tuple[float, float]
FROM_GRID = ((176.5, 67.0), (176.5, 64.0))  # the first points of an arrow from the grid


def state_text(layers: int, hidden_dim: int) -> str:
    """The text in the box of an LSTM."""
    return f"{layers} layers of {hidden_dim}" if layers > 1 else f"a state of {hidden_dim}"


@dataclass(frozen=True)
class Box:
    """A part of the decoder; (x, y) is its lower left corner."""

    x: float
    y: float
    width: float
    height: float
    title: str
    text: str = ""
    modules: Sequence[str] = ()  # submodules of the decoder, for the colour and the number of parameters
    remark: str = ""  # follows the number of parameters
    count: bool = True  # False for a part that is drawn several times: the number is not printed

    @property
    def left(self) -> Point:
        """The middle of the left side; the other sides likewise."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> Point:
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> Point:
        return self.x + self.width / 2, self.y + self.height

    @property
    def bottom(self) -> Point:
        return self.x + self.width / 2, self.y


@dataclass(frozen=True)
class Arrow:
    """A line along `points` with a tip at the last one; `label_at` is the centre of its label."""

    points: Sequence[Point]
    label: str = ""
    label_at: Point = (0, 0)
    dashed: bool = False


@dataclass(frozen=True)
class Note:
    """Small grey text with its centre at (x, y)."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Diagram:
    """One step of a decoder."""

    title: str  # what the decoder is, with an article: "an LSTM"
    split: float
    boxes: Sequence[Box]
    arrows: Sequence[Arrow]
    notes: Sequence[Note] = ()


# --- a decoder without a diagram ---

_TOP, _HEIGHT, _GAP = 51, 11, 5.5  # of the boxes, and between them
_ROWS = 3  # as many as fit
_LEFT_WIDTH = 37  # of a box that runs once per image
_FEWEST_COLUMNS = 4  # for what runs once per word, so that boxes of few modules are not too wide


def default_diagram(title: str, once_per_image: Sequence[str], once_per_word: Sequence[str]) -> Diagram:
    """A diagram of any decoder: a box for each direct child, in the order in which they first run.

    The arguments are the names of the modules that run, such as `layers.0.norm`.
    """
    left, right = _by_child(once_per_image), _by_child(once_per_word)
    columns = ceil(len(left) / _ROWS)
    split = 8 + columns * (_LEFT_WIDTH + _GAP)
    places = _places(len(left), 7, columns, _LEFT_WIDTH)
    start = [Box(*place, child, modules=left[child]) for place, child in zip(places, left, strict=True)]

    columns = max(_FEWEST_COLUMNS, ceil((len(right) + 1) / _ROWS))
    width = (194 - (split + 6) + _GAP) / columns - _GAP
    *places, end = _places(len(right) + 1, split + 6, columns, width)
    step = [Box(*place, child, modules=right[child]) for place, child in zip(places, right, strict=True)]
    step.append(Box(*end, NEXT_WORD))

    arrows = [*_one_after_another(start), *_one_after_another(step)]
    first, last, between = step[0], step[-1], (split, step[0].left[1])
    if start:
        arrows.append(Arrow((*FROM_GRID, (start[0].top[0], 64), start[0].top)))
        turn = (split, start[-1].right[1])
        arrows.append(Arrow((start[-1].right, *dict.fromkeys((turn, between)), first.left)))
    else:
        arrows.append(Arrow((*FROM_GRID, (split, 64), between, first.left)))
    above = _TOP + 3
    around = ((196.2, last.right[1]), (196.2, above), (first.top[0], above))
    arrows.append(Arrow((last.right, *around, first.top), dashed=True))
    return Diagram(title, split, [*start, *step], arrows)


def _by_child(names: Sequence[str]) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        children.setdefault(name.split(".")[0], []).append(name)
    return children


def _places(count: int, left: float, columns: int, width: float) -> list[tuple[float, float, float, float]]:
    """x, y, width and height of `count` boxes, row by row from the upper left."""
    places: list[tuple[float, float, float, float]] = []
    for i in range(count):
        row, column = divmod(i, columns)
        places.append(
            (left + column * (width + _GAP), _TOP - _HEIGHT - row * (_HEIGHT + _GAP), width, _HEIGHT)
        )
    return places


def _one_after_another(boxes: Sequence[Box]) -> list[Arrow]:
    """Arrows from each box to the next one, which is to its right or at the start of the next row."""
    arrows = []
    for box, following in pairwise(boxes):
        if following.y == box.y:
            arrows.append(Arrow((box.right, following.left)))
        elif following.x == box.x:
            arrows.append(Arrow((box.bottom, following.top)))
        else:
            between = box.y - _GAP / 2
            turns = ((box.bottom[0], between), (following.top[0], between))
            arrows.append(Arrow((box.bottom, *turns, following.top)))
    return arrows
