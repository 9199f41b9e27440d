"""Image files -> tensors, one way for everything."""

import contextlib
import io
import multiprocessing
import os
import runpy
import struct
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from config import EncoderConfig
from data.transforms import ImageTransform, augment, read_image, transform_for, upright_rgb
from tests.script_helpers import ROOT

PLAIN = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_pixels_are_scaled_and_normalised_by_the_weights_own_figures():
    transform = transform_for(EncoderConfig(name="resnet18"))
    grey = Image.new("RGB", (300, 200), (128, 128, 128))
    assert transform(grey).shape == (3, 224, 224)
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(transform(grey)[:, 5, 5], expected, rtol=1e-5)


def test_the_size_is_the_weights_own_unless_it_is_given():
    assert transform_for(EncoderConfig(name="inception_v3", weights="none")).size == 299
    assert transform_for(EncoderConfig(name="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")).size == 384
    assert transform_for(EncoderConfig(name="resnet50", image_size=96)).size == 96


def test_the_whole_image_is_seen():
    """The left and the right end of a wide image are at the ends of the square, not cropped away."""
    wide = Image.new("RGB", (80, 8))
    wide.paste((255, 0, 0), (0, 0, 8, 8))
    wide.paste((0, 0, 255), (72, 0, 80, 8))
    pixels = PLAIN(wide)
    assert pixels[0, 4, 0] > 0.5
    assert pixels[2, 4, 7] > 0.5


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    lying = Image.new("RGB", (20, 10))
    lying.paste((255, 255, 255), (0, 0, 4, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying.save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 1)) == (255, 255, 255)
    assert upright.getpixel((5, 18)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (9, 7)).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}").mode == "RGB"


def test_transparency_is_shown_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_image_is_an_os_error(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_a_half_written_image_is_an_os_error(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError):  # noqa: PT011 (Pillow's own words)
        read_image(tmp_path / "a.jpg")


def test_augmentation_repeats_with_its_seed():
    image = Image.effect_noise((30, 20), 80).convert("RGB")
    kinds = ["crop", "flip", "colour"]
    assert augment(image, kinds, 1) == augment(image, kinds, 1)
    assert augment(image, kinds, 1) != augment(image, kinds, 2)
    assert augment(image, [], 1) == image


def test_a_flip_mirrors_half_of_the_images():
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 4, 8))
    flipped = sum(augment(image, ["flip"], seed).getpixel((7, 4)) == (255, 255, 255) for seed in range(2000))
    assert 925 < flipped < 1075


def test_a_crop_keeps_three_quarters_of_a_side_or_more():
    sizes = [augment(Image.new("RGB", (100, 200)), ["crop"], seed).size for seed in range(300)]
    widths, heights = zip(*sizes, strict=True)
    assert (min(widths), max(widths)) == (75, 100)
    assert 150 <= min(heights) < 153 < 197 < max(heights) <= 200


def test_brighter_colours_are_less_saturated():
    image = Image.new("RGB", (2, 2), (160, 100, 100))
    found = []
    for seed in range(50):
        pixel = augment(image, ["colour"], seed).getpixel((0, 0))
        found.append((sum(pixel) / 360, (max(pixel) - min(pixel)) / sum(pixel) / (60 / 360)))
    brightness, saturation = np.array(found).T
    assert 0.78 < brightness.min() < 0.83
    assert 1.12 < brightness.max() < 1.22
    np.testing.assert_allclose(saturation, 2 - brightness, atol=0.08)


def test_fine_patterns_are_averaged_when_an_image_is_scaled_down():
    board = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    pixels = PLAIN(board)
    assert 0.4 < pixels.min() < pixels.max() < 0.6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_transform_survives_the_checkpoint(interpolation):
    mean_and_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    transform = ImageTransform(224, *mean_and_std, interpolation)
    assert ImageTransform.from_dict(transform.as_dict()) == transform


def test_feature_caches_from_before_there_was_a_choice_of_interpolation_stay_valid():
    assert PLAIN.as_dict() == {"size": 8, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def test_interpolation_is_the_transform_s_own():
    edge = Image.new("RGB", (2, 1))
    edge.putpixel((1, 0), (255, 255, 255))
    bilinear = replace(PLAIN, interpolation="bilinear").pixels(edge)[0, 0].tolist()
    assert bilinear == sorted(bilinear)  # no overshoot
    assert bilinear[2:6] == [32, 96, 159, 223]  # a straight line between the centres of the pixels
    assert PLAIN.pixels(edge)[0, 0].tolist() != bilinear


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 100), (24, 40), (1, 1)])
def test_pixels_are_those_of_pillow_but_for_rounding(interpolation, size):
    """The exported programs, which have no torch, see the same images."""
    with Image.open(ROOT / "docs" / "captioned.jpg") as photo:
        image = photo.convert("RGB").resize(size)
    expected = np.asarray(image.resize((64, 64), Image.Resampling[interpolation.upper()]), int)
    pixels = replace(PLAIN, size=64, interpolation=interpolation).pixels(image)
    assert pixels.is_contiguous()
    difference = np.abs(pixels.permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.05


# --- files from anywhere ---


def exif_with_orientation(value: bytes, kind: int = 3) -> bytes:
    """An EXIF block whose only entry is the orientation, written as it is, of this type of TIFF."""
    entry = struct.pack("<HHI", 0x0112, kind, 1) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(
    "exif",
    [
        exif_with_orientation(b"\6\0")[:-9],  # cut off
        exif_with_orientation(b"\xff\xff\xff\xff", kind=5),  # a fraction far outside of the file
        exif_with_orientation(b"\6\0", kind=2),  # text
        b"Exif\0\0garbage",
        exif_with_orientation(b"\x63\0"),  # there are only 8 orientations
    ],
)
def test_damaged_exif_is_ignored(tmp_path, exif):
    (tmp_path / "a.jpg").write_bytes(saved(Image.new("RGB", (20, 10), "red"), "JPEG", exif=exif))
    assert read_image(tmp_path / "a.jpg").size == (20, 10)


@pytest.mark.parametrize("error", [struct.error, TypeError, ZeroDivisionError, KeyError, EOFError])
def test_exif_that_pillow_cannot_read_is_ignored(monkeypatch, error):
    def fail(*_):
        raise error("odd EXIF")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert upright_rgb(Image.new("L", (20, 10))).size == (20, 10)


def test_an_image_is_turned_once(tmp_path):
    lying = saved(Image.new("RGB", (20, 10)), "JPEG", exif=exif_with_orientation(b"\6\0"))
    upright = read_image(io.BytesIO(lying))
    assert upright.size == (10, 20)
    assert upright_rgb(upright).size == (10, 20)


@pytest.mark.parametrize("error", [struct.error, TypeError, ZeroDivisionError, MemoryError, OverflowError])
def test_whatever_pillow_raises_for_a_file_is_an_os_error_that_names_it(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("odd tiles")

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(OSError, match=rf"a\.png: {error.__name__}: odd tiles"):
        read_image(tmp_path / "a.png")


IMAGES = {
    "JPEG": saved(Image.linear_gradient("L").convert("RGB"), "JPEG", exif=exif_with_orientation(b"\6\0")),
    "PNG": saved(Image.linear_gradient("L").convert("RGBA"), "PNG", exif=exif_with_orientation(b"\3\0")),
    "GIF": saved(Image.linear_gradient("L").convert("P"), "GIF"),
    "TIFF": saved(Image.linear_gradient("L").convert("F"), "TIFF"),
    "BMP": saved(Image.linear_gradient("L"), "BMP"),
    "WEBP": saved(Image.linear_gradient("L").convert("RGB"), "WEBP"),
}


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=300, deadline=None)
@given(
    format=st.sampled_from(sorted(IMAGES)),
    changes=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=4)), max_size=6),
    end=st.sampled_from([0.2, 0.9, 1, 1, 1]),  # mostly whole: a half image is only one kind of broken
)
def test_a_broken_image_is_an_image_or_an_os_error(format, changes, end):
    content = bytearray(IMAGES[format])
    for at, new in changes:
        content[at : at + len(new)] = new
    with contextlib.suppress(OSError):
        assert read_image(io.BytesIO(content[: round(end * len(content))])).mode == "RGB"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_only_regular_files_are_opened(tmp_path):
    """A FIFO without a writer would wait for ever, /dev/zero would never end."""
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            read_image(path)


def test_no_program_is_run_for_an_image(tmp_path, monkeypatch):
    """A PostScript file is a program, and Pillow recognises it by its content."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: Image.new("RGB", (4, 4)).im)
    (tmp_path / "a.jpg").write_bytes(saved(Image.new("RGB", (4, 4)), "EPS"))
    with pytest.raises(OSError, match="EPS file"):
        read_image(tmp_path / "a.jpg")


# --- pixels mean what they show ---


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_has_its_own_brightness(tmp_path, format):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    image = read_image(io.BytesIO(saved(Image.fromarray(values), format)))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    "values", [[-100, 0, 100, 155], [-1.0, -0.5, 0.0, 0.275], [1e30, 2e30, 3e30, 3.55e30]]
)
def test_other_numbers_are_scaled_from_the_smallest_to_the_largest(values):
    array = np.array([values], np.int32 if isinstance(values[0], int) else np.float32)
    image = read_image(io.BytesIO(saved(Image.fromarray(array), "TIFF")))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 200, 255]


def test_a_constant_image_of_numbers_is_black():
    assert upright_rgb(Image.new("F", (2, 2), 7.5)).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3])
def test_numbers_that_are_not_finite_are_an_error(odd, at):
    values = np.zeros((1, 5), np.float32)
    values[0, at] = odd
    with pytest.raises(OSError, match="not finite"):
        upright_rgb(Image.fromarray(values))


# --- large images ---


def small_limit(monkeypatch, pixels: int) -> None:
    monkeypatch.setattr("data.transforms.LARGE", pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "CMYK", "1", "I;16", "F"])
def test_a_large_image_is_reduced_by_a_whole_factor_and_looks_the_same(mode, monkeypatch):
    gradient = Image.linear_gradient("L").resize((600, 400))
    grey = gradient.convert("F") if mode == "F" else gradient
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(gradient).astype(np.uint16) * 257)
    image = grey if mode == "I;16" else grey.convert(mode)
    whole = upright_rgb(image)
    small_limit(monkeypatch, 600 * 400 // 6)  # a factor of 2 is not enough
    reduced = upright_rgb(image)
    assert reduced.size == (200, 134)
    expected = whole.reduce(3)
    assert np.abs(np.asarray(reduced, int) - np.asarray(expected, int)).max() <= 1


def test_an_image_at_the_limit_is_not_changed(monkeypatch):
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    small_limit(monkeypatch, 60 * 40)
    assert upright_rgb(image) == image


def test_a_large_jpeg_is_decoded_at_a_smaller_size(monkeypatch):
    """Its pixels are never in memory all together."""
    content = saved(Image.linear_gradient("L").resize((800, 640)), "JPEG")
    small_limit(monkeypatch, 200 * 160)
    assert read_image(io.BytesIO(content)).size == (200, 160)
    decoded, convert = [], Image.Image.convert

    def watched(image, *arguments, **options):
        decoded.append(image.size)
        return convert(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "convert", watched)
    read_image(io.BytesIO(content))
    assert decoded == [(200, 160)]


def test_a_large_image_is_turned_too(monkeypatch):
    small_limit(monkeypatch, 50)
    lying = saved(Image.new("RGB", (20, 10)), "PNG", exif=exif_with_orientation(b"\6\0"))
    assert read_image(io.BytesIO(lying)).size == (5, 10)


@pytest.mark.parametrize("size", [(65536, 2), (2, 65536), (1, 1), (300_000, 1)])
def test_images_of_any_shape_are_prepared(size):
    assert PLAIN(upright_rgb(Image.new("RGB", size, "white"))).shape == (3, 8, 8)


def _extra_memory(path, answer) -> None:
    import resource  # Unix alone has it

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = read_image(path).size
    answer.put((size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux does")
def test_the_pixels_of_a_huge_image_are_not_copied(tmp_path):
    """Pillow holds the 64 million 1-bit pixels in 64 MB. As RGB they would have 256 MB."""
    Image.new("1", (8000, 8000)).save(tmp_path / "a.png")
    processes = multiprocessing.get_context("fork")
    answer = processes.SimpleQueue()
    process = processes.Process(target=_extra_memory, args=(tmp_path / "a.png", answer))
    process.start()
    size, megabytes = answer.get()
    process.join()
    assert size == (4000, 4000)
    assert megabytes < 64 + 4 * 16 + 60


def test_pillow_s_warnings_are_not_shown(monkeypatch):
    content = saved(Image.new("1", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        read_image(io.BytesIO(content))
        assert len(seen) == 1  # pytest has removed the filter
        module = runpy.run_path(str(ROOT / "data" / "transforms.py"))
        module["read_image"](io.BytesIO(content))
    assert len(seen) == 1


def test_an_image_bomb_is_an_error(monkeypatch):
    content = saved(Image.new("1", (200, 200)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(OSError, match="DecompressionBombError"):
        read_image(io.BytesIO(content))
