"""Captioned images, attention sheets and the samples of a run."""

import io
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reports import lettering
from reports.attention import attention_sheet, full_scale, overlay
from reports.captioned import captioned_image
from reports.lettering import font, wrap
from reports.samples import samples_sheet
from tests.page_helpers import draw_image

# --- the captioned image ---


@pytest.mark.parametrize("size", [(384, 300), (500, 375), (640, 1900), (4000, 2600), (1600, 200)])
def test_a_captioned_image_keeps_the_pixels_of_the_image(size):
    original = draw_image(*size)
    captioned = captioned_image(original, "a red ball on the grass")
    assert captioned.width == size[0]
    assert captioned.crop((0, 0, *size)) == original
    strip = np.asarray(captioned.crop((0, size[1], *captioned.size)).convert("L"))
    assert_ink_with_a_margin(strip)


def assert_ink_with_a_margin(paper: np.ndarray) -> None:
    assert paper.min() < 60  # some ink
    assert (paper[:, [0, -1]] == 255).all()  # none at the sides
    assert (paper[[0, -1]] == 255).all()  # none at the top and the bottom


@pytest.mark.parametrize("size", [(384, 300), (500, 375), (640, 1900), (1600, 200)])
def test_references_are_beside_the_image_which_keeps_its_pixels(size):
    original, references = draw_image(*size), ["a ball", "something red and round lies on a lawn"] * 4
    captioned = captioned_image(original, "a red ball on the grass", references)
    assert captioned.width > size[0]
    assert captioned.crop((0, 0, *size)) == original
    assert_ink_with_a_margin(np.asarray(captioned.crop((size[0], 0, *captioned.size)).convert("L")))


def test_a_small_image_is_enlarged_by_a_whole_factor_to_a_readable_width():
    assert captioned_image(draw_image(96, 60), "a red ball").width == 384
    assert captioned_image(draw_image(100, 60), "a red ball").width == 400


def test_type_grows_with_the_image():
    def ink_height(width: int) -> int:
        captioned = captioned_image(Image.new("RGB", (width, width // 2)), "dog")
        strip = np.asarray(captioned.convert("L"))[width // 2 :]
        return int((strip.min(axis=1) < 128).sum())

    assert ink_height(4000) > 7 * ink_height(400)


def test_a_rotated_photograph_is_shown_upright_and_transparency_on_white():
    sideways = Image.new("RGB", (600, 400))
    sideways.getexif()[0x0112] = 6  # turned by 90 degrees
    assert captioned_image(sideways, "a wall").width == 400
    clear = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    assert captioned_image(clear, "nothing").getpixel((200, 200)) == (255, 255, 255)


@pytest.mark.parametrize(
    "caption",
    ["a dog runs across the wide green field " * 5, "x" * 300, "Übergröße — девочка у моря", "", "  "],
)
def test_lines_fit_the_width_and_have_all_letters(caption):
    typeface = font(20, caption)
    lines = wrap(caption, typeface, 300)
    assert all(typeface.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == caption.replace(" ", "")


def test_letters_of_many_scripts_are_drawn_rather_than_boxes():
    typeface = font(40)
    box = typeface.getmask("\U000fffff").getbbox(), bytes(typeface.getmask("\U000fffff"))
    for letter in "éßñøłžЖяΩ":
        mask = typeface.getmask(letter)
        assert (mask.getbbox(), bytes(mask)) != box, letter
    assert "LastResort" not in font(40, "一只狗 🐕").path


def test_the_memory_of_fonts_does_not_grow_with_the_captions():
    font(20, "\ud800 warms up the list of fonts")
    tracemalloc.start()
    for i in range(2000):
        font(20, chr(0x4E00 + i) + chr(0x61 + i % 26))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 200_000


def test_a_font_file_that_is_broken_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    entries = [SimpleNamespace(fname=str(tmp_path / "broken.ttf")), SimpleNamespace(fname="/gone.ttf")]
    monkeypatch.setattr("matplotlib.font_manager.fontManager.ttflist", entries)
    lettering.installed_fonts.cache_clear()
    assert "DejaVu" in font(20, "\U000fffff").path
    lettering.installed_fonts.cache_clear()


ODD_TEXTS = [
    "\ud800 dog",
    "a\0b",
    "a\x1b[31mb",
    "a\nb",
    "\n",
    "\U0010ffff\ufdd0",
    "\u202eabc",
    "e" + "\u0301" * 300,
    "",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_is_drawn(text):
    image = draw_image(400, 300)
    captioned_image(image, text, [text])
    attention_sheet(image, [text], np.ones((1, 7, 7)))
    samples_sheet([image], [(text, text, [text])], [text])


@pytest.mark.parametrize("size", [(65536, 2), (2, 65536), (1, 1), (17_000, 100)])
def test_a_captioned_image_of_any_shape_fits_a_jpeg_file(size):
    image = Image.new("RGB", size)
    captioned_image(image, "a dog", ["a dog"]).save(io.BytesIO(), "JPEG")
    attention_sheet(image, ["dog"], np.ones((1, 7, 7))).save(io.BytesIO(), "JPEG")
    samples_sheet([image], [("epoch 1", "", ["a dog"])], ["a dog"]).save(io.BytesIO(), "JPEG")


# --- the attention sheet ---


@pytest.mark.parametrize(
    ("size", "grid"), [((300, 200), (7, 7)), ((120, 400), (5, 9)), ((500, 100), (14, 3))]
)
def test_an_overlay_is_brightest_where_the_attention_is_highest(size, grid):
    light = np.full(grid, 0.05)
    light[1, -1] = 1
    drawn = np.asarray(overlay(Image.new("RGB", size, "#808080"), light).convert("L"), dtype=int)
    assert drawn.shape == size[::-1]
    y, x = np.unravel_index(drawn.argmax(), drawn.shape)
    assert (y * grid[0] // size[1], x * grid[1] // size[0]) == (1, grid[1] - 1)
    assert drawn[-1, 0] < drawn.max() / 2


def test_all_words_share_one_scale():
    alphas = np.zeros((2, 4, 4))
    alphas[0, 1, 1], alphas[1, 1, 1] = 0.8, 0.1
    sheet = np.asarray(
        attention_sheet(Image.new("RGB", (256, 256)), ["dog", "runs"], alphas).convert("L"), int
    )
    dog, runs = sheet[100:300, 305:550].max(), sheet[100:300, 575:820].max()  # within the two panels
    assert 255 > dog > 1.5 * runs > 0


def test_uniform_attention_is_drawn_dark():
    assert full_scale(np.full((2, 7, 7), 1 / 49)) == pytest.approx(4 / 49)
    assert full_scale(np.full((2, 1, 1), 1.0)) == 1


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_a_sheet_wraps_long_captions_into_rows_no_wider_than_a_slide(count):
    alphas = np.full((count, 7, 7), 1 / 49)
    sheet = attention_sheet(
        draw_image(300, 200), ["pneumonoultramicroscopicsilicovolcanoconiosis"] * count, alphas
    )
    assert sheet.width <= 1500
    assert sheet.height >= 170 * math.ceil((count + 1) / 5)


def test_a_sheet_needs_one_map_per_word():
    with pytest.raises(ValueError, match="2 words"):
        attention_sheet(draw_image(10, 10), ["a", "dog"], np.ones((3, 7, 7)))


# --- the samples of a run ---


def test_of_many_epochs_only_some_are_on_the_sheet():
    rows = [(f"epoch {i}", "", [f"{i}"]) for i in range(1, 101)]
    few = samples_sheet([draw_image(90, 60)], rows[:2], ["reference"])
    many = samples_sheet([draw_image(90, 60)], rows, ["reference"])
    assert few.height < many.height <= samples_sheet([draw_image(90, 60)], rows[:8], ["reference"]).height


def test_a_caption_that_has_not_changed_is_grey_but_a_reference_is_not():
    rows = [(f"epoch {i}", "", ["dog"]) for i in (1, 2)]
    sheet = np.asarray(samples_sheet([draw_image(208, 208)], rows, ["dog"]).convert("L"))
    captions = np.split(sheet[-3 * 58 - 10 : -10, 120:], 3)  # a row is 58 pixels high
    assert [caption.min() < 60 for caption in captions] == [True, False, True]
    assert captions[1].min() < 150


def test_samples_wrap_long_captions_and_take_images_of_any_shape():
    images = [draw_image(90, 60), draw_image(30, 400), draw_image(800, 20)]
    short = samples_sheet(images, [("epoch 1", "CIDEr 0.10", ["", "a", "a"])], ["a", "b", "c"])
    long = samples_sheet(images, [("epoch 1", "CIDEr 0.10", ["", "a", "a dog " * 30])], ["a", "b", "c"])
    assert long.size > short.size
    assert_ink_with_a_margin(np.asarray(long.convert("L")))
