"""Broken, odd and hostile images. One bad image never spoils the batch, and pixels mean what they show."""

import io
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from captioning import Caption, ImageError
from data.transforms import read_image
from tests.hostile.attempt import Hostile, Outcome, nothing, refused, script
from tests.hostile.image_files import (
    FORMATS,
    broken,
    image_bytes,
    of_every_mode,
    of_unusual_size,
    with_damaged_exif,
)
from tests.hostile.place import small_captioner

GOOD = ("data/images/00.png", "data/images/01.png")
_GRADIENT = np.tile(np.arange(256, dtype=np.uint8), (64, 1))  # black on the left, white on the right


_NAMES = (
    b"not-utf-8-\xff\xfe.png", b"n" * 246 + b".png", b"new\nline.png", b"\x1b[31mred\x07.png", b"-dash.png",
    b" space .png", b"[a].png", b"*.png", b"<script>alert(1)</script>.png".replace(b"/", b"\\"), b"a=b.png",
    b"train.epochs=3.png", b"100%.png", b'quote".png', "ï¿½\u202etxt.png".encode(), b"no suffix", b".png",
    b"\xed\xa0\x80.png", b"CON.png", "é".encode() * 120 + b".png",
)  # fmt: skip


def _file(name: str | bytes, content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Write an image file into the folder `bad`."""
    return _special(name, lambda path: path.write_bytes(content()))


def _special(name: str | bytes, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Create the folder `bad` and something in it."""

    def prepare(folder: Path) -> None:
        path = Path("bad") / os.fsdecode(name)
        path.parent.mkdir()
        make(path)
        for good in ("00.png", "01.png"):
            shutil.copy(folder / "data/images" / good, f"bad/good-{good}")

    return prepare


def _in_a_batch(name: str | bytes) -> Callable[[Path], object]:
    """Caption a bad image between two good ones, each of which has the caption that it has alone."""

    def action(_: Path) -> object:
        captioner = small_captioner()
        alone = [next(captioner([path])).caption for path in GOOD]
        images = [GOOD[0], Path("bad") / os.fsdecode(name), GOOD[1]]
        first, bad, last = captioner(images, errors="return")
        assert [first.caption, last.caption] == alone
        return bad

    return action


def _skipped_or_captioned(outcome: Outcome) -> None:
    assert isinstance(outcome.value, Caption | ImageError), outcome.text
    if isinstance(outcome.value, ImageError):
        assert "bad" in str(outcome.value), f"the image is not named: {outcome.value}"


def _skipped(outcome: Outcome) -> None:
    assert not isinstance(outcome.value, Caption), f"it was captioned: {outcome.value.caption}"
    _skipped_or_captioned(outcome)


def _captioned(outcome: Outcome) -> None:
    assert isinstance(outcome.value, Caption), f"it was not captioned: {outcome.value}"


_BY_SCRIPT = script("inference_visualize", "bad", "--checkpoint", "model.pth")


def _others_captioned(outcome: Outcome) -> None:
    """Both good images are captioned; a third file is captioned or skipped."""
    assert outcome.status in (0, 1), outcome.text[-800:]
    for name in ("00", "01"):
        assert (outcome.folder / f"outputs/good-{name}_captioned.jpg").exists(), outcome.text[-800:]
        assert f"good-{name}.png" in (outcome.folder / "outputs/captions.json").read_text("utf-8")
    assert (outcome.status == 1) == ("skipped" in outcome.text), outcome.text[-800:]


def _deep(name: str, array: np.ndarray, promise: Callable[[Outcome], None]) -> Hostile:
    """Reading a gradient of more than 8 bits."""
    file = f"deep.{'png' if name.endswith('PNG') else 'tiff'}"

    def action(_: Path) -> object:
        try:
            return read_image(file)
        except OSError as error:
            return error

    return Hostile(name, lambda _: Image.fromarray(array).save(file), action, promise)


def _is_the_gradient(outcome: Outcome) -> None:
    """Each pixel is the one of the 8-bit gradient, or the image is refused."""
    if isinstance(outcome.value, Image.Image):
        found = np.asarray(outcome.value)[..., 0].astype(int)
        assert abs(found - _GRADIENT).max() <= 2, f"it reads as {found[0, ::32].tolist()}"


def _not_an_image(outcome: Outcome) -> None:
    assert isinstance(outcome.value, OSError), "it reads as an image"


def _source(name: str, source) -> Hostile:
    """An image that is not a file with a name."""
    return Hostile(
        name, nothing, lambda _: next(small_captioner()([source], errors="return")), _refused_source
    )


def _refused_source(outcome: Outcome) -> None:
    assert isinstance(outcome.value, ImageError), "it was captioned"


def _files() -> list[Hostile]:
    contents = {
        name: lambda content=content: content for name, content in (broken() | with_damaged_exif()).items()
    }
    found = [
        Hostile(f"image {name}", _file(name, content), _in_a_batch(name), _skipped_or_captioned)
        for name, content in (contents | of_unusual_size()).items()
    ]
    found += [
        Hostile(f"image {name}", _file(name, lambda content=content: content), _in_a_batch(name), _captioned)
        for name, content in of_every_mode().items()
    ]
    found += [
        Hostile(
            f"folder with the name {_short(name)}", _file(name, image_bytes), _BY_SCRIPT, _others_captioned
        )
        for name in _NAMES
    ]
    return found


def _short(name: bytes) -> str:
    return repr(name if len(name) < 40 else name[:8] + b"...")[1:]


def _unusual() -> list[Hostile]:
    """What is no regular file."""
    kinds: dict[str, Callable[[Path], object]] = {
        "fifo.png": os.mkfifo,
        "folder.png": os.mkdir,
        "loop.png": lambda path: path.symlink_to("loop.png"),
        "nowhere.png": lambda path: path.symlink_to("absent"),
        "zero.png": lambda path: path.symlink_to("/dev/zero"),
        "terminal.png": lambda path: path.symlink_to("/dev/tty"),
        "socket.png": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        "absent.png": lambda path: None,
        "nul\0.png": lambda path: None,
    }
    found = []
    for name, make in kinds.items():
        found.append(Hostile(f"image {name!r}", _special(name, make), _in_a_batch(name), _skipped))
        found.append(Hostile(f"folder with {name!r}", _special(name, make), _BY_SCRIPT, _others_captioned))
    linked = _special("linked.png", lambda path: path.symlink_to("../data/images/05.png"))
    found.append(Hostile("image behind a symbolic link", linked, _in_a_batch("linked.png"), _captioned))
    found.append(
        Hostile(
            "only a broken image",
            lambda folder: (folder / "a.png").write_text("no image"),
            script("inference_visualize", "a.png", "--checkpoint", "model.pth"),
            refused("none of the 1 images"),
        )
    )
    return found


def _pixels() -> list[Hostile]:
    deep, floats = _GRADIENT.astype(np.uint16) * 257, _GRADIENT.astype(np.float32) / 255
    found = [
        _deep("16-bit grey PNG", deep, _is_the_gradient),
        _deep("16-bit grey TIFF", deep, _is_the_gradient),
        _deep("32-bit grey TIFF of 0 to 65535", deep.astype(np.int32), _is_the_gradient),
        _deep("32-bit grey TIFF of the whole range", deep.astype(np.int32) * 32767, _is_the_gradient),
        _deep("float TIFF of 0 to 1", floats, _is_the_gradient),
        _deep("float TIFF of 0 to 255", floats * 255, _is_the_gradient),
        _deep("float TIFF of NaN", np.full_like(floats, np.nan), _not_an_image),
    ]
    for array in (np.zeros((0, 0, 3), np.uint8), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3))):
        found.append(_source(f"array {array.dtype} {array.shape}", array))
    found += [_source(f"open file of half a {kind}", io.BytesIO(image_bytes(kind)[:99])) for kind in FORMATS]
    return found


INPUTS = [*_files(), *_unusual(), *_pixels()]
