"""What the tests of reports share: an image, results of captioning, and a page of them."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from reports.page import Page, PageEntry

_T = TypeVar("_T")
NASTY = "<img src=x onerror=alert(1)>.jpg"
EVIL = '"><script>alert(2)</script>'


def draw_image(width: int, height: int) -> Image.Image:
    """A red ball on green."""
    image = Image.new("RGB", (width, height), "#5a8f3c")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill="#d0402a")
    return image


def attend_to(row: int, column: int, weight: float, grid: tuple[int, int] = (5, 7)) -> np.ndarray:
    """Attention with `weight` on one cell, the rest spread evenly over the others."""
    alpha = np.full(grid, (1 - weight) / (grid[0] * grid[1] - 1))
    alpha[row, column] = weight
    return alpha


def result(caption: str, log_prob: float, words=(), others=(), attention=None) -> SimpleNamespace:
    """What the page reads of a captioning result."""
    words = [SimpleNamespace(text=text, probability=probability) for text, probability in words]
    others = [SimpleNamespace(caption=text, log_prob=value) for text, value in others]
    return SimpleNamespace(
        caption=caption, log_prob=log_prob, words=words, others=others, attention=attention
    )


def write_page(path: Path, entries: Iterable[PageEntry], scores=None, title: str = "Captions") -> None:
    page = Page(path)
    for entry in entries:
        page.add(entry)
    page.write(scores, title)


def make_page(folder: Path) -> Path:
    """Three images, one of them with attention and scores, one with hostile text in every place."""
    sheet = folder / "attention sheets" / "100% #1 'ü'.png"
    sheet.parent.mkdir()
    draw_image(50, 50).save(sheet)
    attention = np.stack([attend_to(0, 0, 0.3), attend_to(4, 6, 0.6)])
    ball = result("red ball", -3.25, [("red", 0.5), ("ball", 0.9)], [("a ball", -4.5)], attention)
    evil = result(EVIL, -1.5, [(EVIL, 1.0)], [(EVIL, -2)], attention[:1])
    entries = [
        PageEntry('a b%20#"ü.jpg', draw_image(900, 600), ball, ["a ball of red"]),
        PageEntry(NASTY, draw_image(30, 90), evil, [EVIL], {EVIL: sheet}),
        PageEntry("10.jpg", draw_image(40, 40), result("девочка & собака", -2.0), ["a girl & a dog"]),
    ]
    path = folder / "captions_result.html"
    scores = {entries[0].name: {"CIDEr": 0.5}, NASTY: {"CIDEr": 0.25}}
    write_page(path, entries, scores, title="Captions <of> a run")
    return path


def set_window(browser, width: int = 1280, dark: bool = False, phone: bool = False) -> None:
    """The size of the window, and whether the user prefers dark pages."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def until(condition: Callable[[], _T], seconds: float = 30) -> _T:
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still {value!r} after {seconds} seconds"
        time.sleep(0.02)
    return value


def press(browser, *keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)
