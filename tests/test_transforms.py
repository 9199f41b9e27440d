"""Image files -> tensors, one way for everything."""

import numpy as np
import pytest
from PIL import Image

from config import EncoderConfig
from data.transforms import ImageTransform, augment, read_image, transform_for

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


def test_a_transform_survives_the_checkpoint():
    transform = transform_for(EncoderConfig(name="mobilenet_v2"))
    assert ImageTransform.from_dict(transform.as_dict()) == transform
