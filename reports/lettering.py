"""Type for the images: a font that has the letters of the text, and lines that fit a width."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

INK, GREY, PAPER = "#1b1d22", "#6b7078", "#ffffff"


def font(size: float, text: str = "", bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` pixels; where it lacks letters of `text`, an installed font that has more."""
    letters = frozenset(map(ord, text)) - frozenset(map(ord, " \t\n"))
    return ImageFont.truetype(_font_file(letters, bold), max(1, round(size)))


@cache
def _font_file(letters: frozenset[int], bold: bool) -> str:
    # matplotlib brings DejaVu with it (Latin, Greek, Cyrillic, Arabic and more), so none need be installed.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    own = str(Path(matplotlib.get_data_path(), "fonts", "ttf", name))
    if letters <= _letters(own):
        return own
    from matplotlib.font_manager import (
        fontManager,
    )  # lists every font of the machine: only where it is needed

    installed = sorted({entry.fname for entry in fontManager.ttflist})
    return max([own, *installed], key=lambda file: len(letters & _letters(file)))


@cache
def _letters(file: str) -> frozenset[int]:
    face = FT2Font(file)
    # A bitmap font has no size to choose; matplotlib's Last Resort has every letter, as a box.
    useful = face.scalable and not face.family_name.startswith("Last Resort")
    return frozenset(face.get_charmap()) if useful else frozenset()


def wrap(text: str, type_: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The lines of `text`, none wider than `width` pixels; a word that is wider is broken between letters."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if type_.getlength(longer) <= width:
            lines[-1] = longer
        else:
            pieces = list(_pieces(word, type_, width))
            lines = [line for line in lines if line] + pieces
    return lines


def _pieces(word: str, type_: ImageFont.FreeTypeFont, width: float) -> Iterable[str]:
    piece = ""
    for letter in word:
        if piece and type_.getlength(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece
