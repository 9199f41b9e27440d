"""PNG files of few colours that have the same bytes on every machine."""

import struct
import zlib

import numpy as np
from PIL import Image


def encode_png(image: Image.Image) -> bytes:
    """An RGB image of at most 256 colours and 65,000 pixels as a PNG file.

    The output of a compressor depends on its version and on the processor, so the pixels are stored without
    compression, one byte each. A scene has about a hundred colours, including those of smoothed edges.
    """
    pixels = np.asarray(image) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    palette, indices = np.unique(pixels.ravel(), return_inverse=True)
    # Each row begins with the number of its filter; 0 is none.
    rows = np.pad(indices.reshape(pixels.shape).astype(np.uint8), ((0, 0), (1, 0))).tobytes()
    # A zlib stream (RFC 1950) of a single stored block (RFC 1951).
    stored = struct.pack("<3sHH", b"\x78\x01\x01", len(rows), len(rows) ^ 0xFFFF) + rows
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *image.size, 8, 3, 0, 0, 0),  # 8 bits per pixel, from a palette
        b"PLTE": b"".join(int(colour).to_bytes(3, "big") for colour in palette),
        b"IDAT": stored + struct.pack(">I", zlib.adler32(rows)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )
