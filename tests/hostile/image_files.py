"""Image files as bytes: whole, damaged, with odd EXIF, of unusual sizes."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP")


def image_bytes(format: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options) -> bytes:
    """A small image file of noise."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    noise = noise[..., 0] if channels == 1 else noise
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, format, **options)
    return file.getvalue()


def broken() -> dict[str, bytes]:
    """Damaged files of every format, by name."""
    found = {"empty.png": b"", "text.jpg": b"not an image\n" * 9, "zeros.gif": bytes(999)}
    for format in FORMATS:
        whole, suffix = image_bytes(format), f".{format.lower()}"
        middle = len(whole) // 2
        found |= {
            f"half{suffix}": whole[:middle],
            f"ten-bytes{suffix}": whole[:10],
            f"all-but-one-byte{suffix}": whole[:-1],
            f"zeros-in-the-middle{suffix}": whole[:middle] + bytes(20) + whole[middle + 20 :],
            f"ones-after-the-header{suffix}": whole[:20] + b"\xff" * 20 + whole[40:],
            f"something-behind{suffix}": whole + b"<script>" * 99,
            f"twice{suffix}": whole + whole,
        }
    return found


def _exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, the four bytes of its value or offset)."""
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)


def with_damaged_exif() -> dict[str, bytes]:
    """EXIF that no camera writes, in JPEG, PNG and WebP."""
    short, number = 3, 0x0112
    blocks = {
        "turned": _exif((number, short, 1, b"\x06\0\0\0")),
        "orientation-0": _exif((number, short, 1, bytes(4))),
        "orientation-65535": _exif((number, short, 1, b"\xff\xff\0\0")),
        "orientation-is-text": _exif((number, 2, 4, b"abc\0")),
        "orientation-is-a-list": _exif((number, short, 2, b"\x06\0\x06\0")),
        "orientation-is-a-fraction-over-zero": _exif((number, 5, 1, b"\x1a\0\0\0"))[:-4] + bytes(12),
        "count-beyond-the-file": _exif((number, short, 2**31, b"\xff\xff\xff\x7f")),
        "type-99": _exif((number, 99, 1, b"\x06\0\0\0")),
        "turned-and-a-gps-loop": _exif((number, short, 1, b"\x06\0\0\0"), (0x8825, 4, 1, b"\x08\0\0\0")),
        "turned-and-a-resolution-over-zero": _exif(
            (number, short, 1, b"\x06\0\0\0"), (0x011A, 5, 1, b"\x26\0\0\0")
        )
        + bytes(8),
        "turned-and-an-offset-outside": _exif(
            (number, short, 1, b"\x06\0\0\0"), (0x8769, 4, 1, b"\xff\xff\xff\xff")
        ),
        "turned-and-wrong-text": _exif((number, short, 1, b"\x06\0\0\0"), (0x010F, 2, 8, b"\xff\xff\xff\0")),
        "cut": _exif((number, short, 1, b"\x06\0\0\0"))[:-9],
        "no-byte-order": b"Exif\0\0XX*\0\x08\0\0\0\x01\0",
        "only-a-header": b"Exif\0\0",
    }
    return {
        f"exif-{name}.{format.lower()}": image_bytes(format, exif=block)
        for name, block in blocks.items()
        for format in ("JPEG", "PNG", "WEBP")
    }


def _one_colour_png(width: int, height: int) -> bytes:
    """A grey PNG of one bit per pixel: a small file, however large the image."""
    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row * 64) for _ in range(height // 64)) + packer.compress(
        row * (height % 64)
    )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", data + packer.flush()),
        (b"IEND", b""),
    )
    written = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def of_unusual_size() -> dict[str, Callable[[], bytes]]:
    """Images of unusual sizes; made when they are needed."""
    header_only = image_bytes()[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + image_bytes()[24:]
    return {
        "one-pixel.png": lambda: image_bytes(size=(1, 1), mode="L"),
        "65536x2.png": lambda: _one_colour_png(65536, 2),
        "2x65536.png": lambda: _one_colour_png(2, 65536),
        "1x100000.png": lambda: _one_colour_png(1, 100_000),
        "13300x13300.png": lambda: _one_colour_png(13_300, 13_300),
        "19000x19000.png": lambda: _one_colour_png(19_000, 19_000),
        "a-header-of-2-billion-squared.png": lambda: header_only,
        "a-gif-of-65535-squared.gif": lambda: image_bytes("GIF")[:6] + b"\xff" * 4 + image_bytes("GIF")[10:],
        "a-bmp-of-a-million-squared.bmp": lambda: (
            image_bytes("BMP")[:18] + struct.pack("<ii", 10**6, 10**6) + image_bytes("BMP")[26:]
        ),
    }


def of_every_mode() -> dict[str, bytes]:
    kinds = [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA")] + [("CMYK", "JPEG"), ("LAB", "TIFF")]
    return {f"mode-{mode}.{format.lower()}": image_bytes(format, mode=mode) for mode, format in kinds}
