"""The page that captions in the browser (export.py --format web), in Chromium."""

import functools
import random
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioning import Captioner
from data.sample import draw_scene, invent_scenes
from data.transforms import transform_for
from data.vocab import SPECIAL
from models.checkpoint import save_checkpoint
from models.model import build_model, pack_model
from tests.helpers import CPU, invent_statistics, tiny
from tests.page_helpers import press, set_window, until
from tests.script_helpers import ended, run

pytestmark = pytest.mark.browser
WORDS = [*SPECIAL, *"a b c d e f g h".split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with four drawn scenes, a model in model.pth, and its page in web/."""
    pytest.importorskip("onnxscript", reason="the packages of requirements-extra.txt are not installed")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("web")
    rng = random.Random(5)
    for i, scene in enumerate(invent_scenes(4, rng)):
        draw_scene(scene, rng).save(folder / f"{i}.png")
    # A Transformer's state has no words at first, and grows: the most difficult one for a runtime.
    decoder = {"kind": "transformer", "layers": 2, "heads": 2, "feedforward_dim": 16}
    config = tiny(folder, encoder={"layer": "maxpool"}, decoder=decoder, search={"beam": 3, "max_length": 8})
    torch.manual_seed(0)
    model = build_model(config, len(WORDS))
    invent_statistics(model)
    with torch.no_grad():  # large weights, with which images differ
        for name, parameter in model.decoder.named_parameters():
            parameter.mul_(2 if "embedding" in name else 4)
    transform = transform_for(config.encoder).as_dict()
    save_checkpoint(folder / "model.pth", pack_model(model, config, WORDS, transform))
    status, out, err = ended(
        folder, "export", "--format", "web", "--checkpoint", "model.pth", "--output", "web"
    )
    if "npm pack" in err:
        pytest.skip(err.strip())
    assert status == 0, out + err
    return folder


@pytest.fixture(scope="module")
def address(folder):
    """The address of the page, on a server such as `python -m http.server`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder / "web")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser, address):
    """The browser with the page, once the model is loaded."""
    set_window(browser)
    browser.get(address)
    until(lambda: browser.execute_script("return model !== null"), 60)
    return browser


def drop(page, *paths: Path) -> None:
    """What dropping files, or choosing them, does; waits until all of them have been taken care of."""
    page.find_element("css selector", "input[type=file]").send_keys("\n".join(map(str, paths)))
    script = "return document.querySelectorAll('article:not(.busy), #problems p').length"
    until(lambda: page.execute_script(script) >= len(paths), 60)


def test_a_drawn_scene_gets_the_caption_that_python_gives(page, folder, address):
    scenes = sorted(folder.glob("*.png"))
    drop(page, *scenes)
    captioner = Captioner.load(folder / "model.pth", compute=CPU)
    own = list(captioner(scenes))
    assert len({result.caption for result in own}) > 1
    cards = dict(zip(scenes, reversed(page.find_elements("css selector", "article")), strict=True))
    for result in own:
        card = cards[result.source]
        assert card.find_element("css selector", "img").get_attribute("alt") == result.caption
        assert card.find_element("css selector", ".name").text == result.source.name
        log_p = card.find_element("css selector", ".scores b").text.replace("−", "-")
        assert float(log_p) == pytest.approx(result.log_prob, abs=0.006)  # two digits are shown
        others = [item.get_attribute("textContent") for item in card.find_elements("css selector", "li")]
        assert [text.rsplit(" ", 1)[0] for text in others] == [other.caption for other in result.others]
        attention = page.execute_script("const { light, full } = attentions.get(arguments[0]);"
            "return Array.from(light, (x) => x * full)", card)  # fmt: skip
        assert np.array(attention) == pytest.approx(result.attention.ravel(), abs=1e-4)
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(loaded) > 4
    assert [name for name in loaded if not name.startswith((address, "blob:"))] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("interpolation", ["BICUBIC", "BILINEAR"])
def test_an_image_is_resized_to_the_bytes_that_pillow_makes_of_it(page, interpolation):
    script = (
        "const [width, height, data, ...to] = arguments; return [...resize({ width, height, data }, ...to)]"
    )
    for width, height, size in ((97, 61, 32), (20, 9, 32), (32, 32, 32), (150, 1, 224)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
        found = page.execute_script(
            script, width, height, pixels.ravel().tolist(), size, interpolation.lower()
        )
        image = Image.fromarray(pixels[..., :3]).resize((size, size), Image.Resampling[interpolation])
        assert (np.reshape(found, (size, size, 3)) == np.asarray(image)).all()


def test_a_file_that_is_no_image_is_a_sentence_and_the_others_are_captioned(page, folder):
    (folder / "notes.txt").write_text("text")
    drop(page, folder / "notes.txt", folder / "0.png")
    [problem] = page.find_elements("css selector", "#problems p")
    assert problem.text == "notes.txt is not an image that this browser can read."
    assert len(page.find_elements("css selector", "article")) == 1
    drop(page, folder / "1.png")
    assert page.find_elements("css selector", "#problems p") == []


def test_pixels_are_read_upright_and_on_white(page, folder):
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[:20] = 200, 30, 30, 255  # and transparent below
    Image.fromarray(rgba).save(folder / "half.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise
    Image.fromarray(rgba[..., :3]).save(folder / "turned.jpg", exif=exif)
    script = """const [name, done] = arguments, pixels = fetch(name).then((it) => it.blob()).then(read);
        pixels.then(({ width, height, data }) => done([width, height, [...data]]))"""
    for name, corner, opposite in (
        ("half.webp", (200, 30, 30), (255,) * 3),
        ("turned.jpg", (0,) * 3, (200, 30, 30)),
    ):
        shutil.copy(folder / name, folder / "web" / name)
        width, height, data = page.execute_async_script(script, name)
        shown = np.reshape(data, (height, width, 4))[..., :3]
        assert (width, height) == ((60, 40) if name == "half.webp" else (40, 60))
        assert shown[0, 0] == pytest.approx(corner, abs=4)
        assert shown[-1, -1] == pytest.approx(opposite, abs=4)


def test_the_keyboard_goes_from_word_to_word_and_shows_their_attention(page, folder):
    from selenium.webdriver.common.keys import Keys

    drop(page, folder / "0.png")  # "h c …", two different words
    lit = functools.partial(page.execute_script, "return document.querySelector('.legend b')?.textContent")
    words = [word.text for word in page.find_elements("css selector", ".words span")]
    page.execute_script("document.querySelector('.words span').focus()")
    assert until(lit) == words[0]
    press(page, Keys.ARROW_RIGHT)
    until(lambda: lit() == words[1])
    assert page.find_element("id", "announcement").get_attribute("textContent").startswith(f"{words[1]}: ")
    press(page, Keys.ESCAPE)
    until(lambda: lit() is None)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_the_page_without_sideways_scrolling(page, folder, dark):
    set_window(page, width=360, dark=dark, phone=True)
    drop(page, folder / "0.png")
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360


def test_a_page_that_is_not_served_says_how(browser, folder):
    browser.get((folder / "web/index.html").as_uri())
    problem = until(lambda: browser.find_elements("css selector", "#problems p"))
    assert "run python -m http.server in its folder" in problem[0].text


def test_without_npm_one_line_says_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="the packages of requirements-extra.txt are not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs npm" in run(tmp_path, "export", "--format", "web", status=2)
