"""Fonts that contain the letters of a text, and line breaks that fit a width."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

INK, GREY, PAPER = "#1b1d22", "#6b7078", "#ffffff"


def font(size: float, text: str = "", bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` pixels, or an installed font that contains more letters of `text`."""
    # matplotlib comes with DejaVu (Latin, Greek, Cyrillic, Arabic and more): nothing has to be installed.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = str(Path(matplotlib.get_data_path(), "fonts", "ttf", name))
    letters = set(map(ord, text)) - set(map(ord, " \t\n"))
    if not letters <= _letters(file):
        file = max([file, *installed_fonts()], key=lambda file: len(letters & _letters(file)))
    return ImageFont.truetype(file, max(1, round(size)))


@cache
def installed_fonts() -> list[str]:
    """The files of all fonts of the machine."""
    # Its import lists all fonts of the machine, so it is only imported when needed.
    from matplotlib.font_manager import fontManager

    return sorted({entry.fname for entry in fontManager.ttflist})


@cache
def _letters(file: str) -> frozenset[int]:
    try:
        face = FT2Font(file)
    except (OSError, RuntimeError):  # gone, or broken
        return frozenset()
    # A bitmap font cannot be scaled; matplotlib's Last Resort has a box for every letter.
    useful = face.scalable and not face.family_name.startswith("Last Resort")
    return frozenset(face.get_charmap()) if useful else frozenset()


def wrap(text: str, typeface: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The lines of `text`, at most `width` pixels wide; a longer word is broken between letters."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if typeface.getlength(longer) <= width:
            lines[-1] = longer
        else:
            pieces = list(_pieces(word, typeface, width))
            lines = [line for line in lines if line] + pieces
    return lines


def _pieces(word: str, typeface: ImageFont.FreeTypeFont, width: float) -> Iterable[str]:
    piece = ""
    for letter in word:
        if piece and typeface.getlength(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece
