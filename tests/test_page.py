"""What captions_result.html promises, as a file and in a real browser."""

import base64
import gc
import re
import shutil
import time
import weakref
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from reports.attention import UNLIT, overlay
from reports.page import LEVELS, PageEntry, write_page
from tests.test_reports import image as draw_image
from utils import UserError

NASTY = "<img src=x onerror=alert(1)>.jpg"
EVIL = '"><script>alert(2)</script>'


class Tags(HTMLParser):
    """Every element of a page with its attributes, and all of its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == name]


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


def make_page(folder: Path) -> Path:
    """Three images, one of them with attention and scores, one with hostile text in every place."""
    file = folder / 'a b%20#"ü.jpg'
    draw_image(900, 600).save(file)
    sheet = folder / "attention sheets" / "100% #1 'ü'.png"
    sheet.parent.mkdir()
    draw_image(50, 50).save(sheet)
    attention = np.stack([attend_to(0, 0, 0.3), attend_to(4, 6, 0.6)])
    ball = result("red ball", -3.25, [("red", 0.5), ("ball", 0.9)], [("a ball", -4.5)], attention)
    evil = result(EVIL, -1.5, [(EVIL, 1.0)], [(EVIL, -2)], attention[:1])
    entries = [
        PageEntry(file.name, file, ball, ["a ball of red"], {"CIDEr": 0.5}),
        PageEntry(NASTY, draw_image(30, 90), evil, [EVIL], {"CIDEr": 0.25}, {EVIL: sheet}),
        PageEntry("10.jpg", draw_image(40, 40), result("девочка & собака", -2.0), ["a girl & a dog"]),
    ]
    path = folder / "captions_result.html"
    write_page(path, iter(entries), title="Captions <of> a run")
    return path


@pytest.fixture
def page(tmp_path) -> Path:
    return make_page(tmp_path)


def test_whatever_text_a_page_is_given_is_shown_as_text(page):
    tags = Tags(page.read_text("utf-8"))
    assert len(tags.named("script")) == 3  # two of data, one that runs
    assert not any(attribute.startswith("on") for _, attributes in tags.elements for attribute in attributes)
    assert len([image for image in tags.named("img") if image["src"] == "x"]) == 0
    for text in (NASTY, EVIL, "девочка & собака", "Captions <of> a run"):
        assert text in tags.text


def test_a_page_loads_nothing_from_elsewhere_and_all_it_loads_exists(page):
    html = page.read_text("utf-8")
    assert not re.search(r"https?:|//\w+\.|@import|url\(|fetch\(", html)
    tags = Tags(html)
    images = tags.named("img")
    assert len(images) == 3
    for url in [image["src"] for image in images] + [link["href"] for link in tags.named("a")]:
        assert re.fullmatch(r"[\w/.~%-]+", url)
        assert (page.parent / unquote(url)).is_file()


def test_a_page_has_captions_scores_other_beams_and_references(page):
    tags = Tags(page.read_text("utf-8"))
    for text in (
        "red ball",
        "log p −3.25",
        "CIDEr 0.50",
        "a ball −4.50",
        "References",
        "a ball of red",
        "a girl & a dog",
    ):
        assert text in " ".join(tags.text.split())
    assert [image["alt"] for image in tags.named("img")] == ["red ball", EVIL, "девочка & собака"]
    assert [span["style"] for span in tags.named("span") if "style" in span][:2] == ["--p:50", "--p:90"]


def test_only_the_images_at_the_top_are_loaded_at_once(tmp_path):
    write_page(
        tmp_path / "page.html",
        [PageEntry(str(i), draw_image(40, 40), result("one", -1.0)) for i in range(30)],
    )
    lazy = ["loading" in image for image in Tags((tmp_path / "page.html").read_text()).named("img")]
    assert lazy == sorted(lazy)
    assert 4 <= lazy.count(False) <= 12


def test_a_thousand_images_with_all_there_is_make_less_than_3_megabytes(tmp_path):
    random, images, words = np.random.default_rng(0), 40, ["dog", "jumping", "the", "grass"] * 3
    caption, small = " ".join(words), draw_image(20, 20)
    entries = [
        PageEntry(
            f"{i:010}_{i:010x}.jpg",
            small,
            result(
                caption, -9.5, [(word, 0.5) for word in words], [(caption, -10.5)] * 4,
                random.dirichlet(np.full(49, 3), len(words)).reshape(-1, 7, 7),
            ),
            [caption] * 5,
            {"CIDEr": 0.5, "BLEU-4": 0.25, "ROUGE-L": 0.125},
            {"full size": tmp_path},
        )
        for i in range(images)
    ]  # fmt: skip
    write_page(tmp_path / "page.html", entries)
    assert (tmp_path / "page.html").stat().st_size / images * 1000 < 3e6


def test_attention_is_kept_to_one_part_in_thirty_of_an_images_largest(page):
    html = page.read_text("utf-8")
    maps = zlib.decompress(base64.b64decode(re.search(r'id="maps">([^<]+)<', html)[1]))
    start, rows, columns, full = map(float, re.findall(r'data-map="([^"]+)"', html)[1].split())
    assert (start, rows, columns, full) == (2 * 35, 5, 7, 0.3)
    alphas = np.frombuffer(maps, np.uint8)[70:].reshape(5, 7) / LEVELS * full
    assert alphas == pytest.approx(attend_to(0, 0, 0.3), abs=0.3 / 30)


def test_thumbnails_are_small_upright_and_no_more_than_the_entries(page):
    folder = page.parent / "captions_result_files"
    with Image.open(folder / "00001.jpg") as thumbnail:
        assert thumbnail.size == (480, 320)
    write_page(page, [PageEntry("one.jpg", draw_image(40, 40), result("one", -1.0))])
    assert [file.name for file in folder.iterdir()] == ["00001.jpg"]


def test_of_a_stream_of_entries_only_one_image_is_in_memory(tmp_path):
    alive: list[weakref.ref] = []

    def entries():
        for i in range(4):
            gc.collect()
            assert sum(image() is not None for image in alive) <= 1
            image = draw_image(40, 40)
            alive.append(weakref.ref(image))
            yield PageEntry(str(i), image, result("one", -1.0))
            del image

    write_page(tmp_path / "page.html", entries())
    assert len(alive) == 4


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        write_page(tmp_path / "page.html", [PageEntry("broken.jpg", broken, result("a", -1.0))])


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless, driven by selenium; the tests are skipped where one of the three is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, programs)), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(f"no {'chromedriver' if chromium else 'chromium'} on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the path of the driver, selenium neither searches for one nor downloads one.
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    """A function that loads the page anew and returns the browser."""
    path = make_page(tmp_path_factory.mktemp("page"))

    def load(width: int = 1280, dark: bool = False, phone: bool = False):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(path.as_uri())
        return browser

    return load


def until(condition, seconds: float = 10):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still {value!r} after {seconds} seconds"
        time.sleep(0.02)
    return value


def press(browser, *keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def lit(browser) -> list[str]:
    """The words whose attention is shown."""
    script = "return [...document.querySelectorAll('.attention .legend b')].map((word) => word.textContent)"
    return browser.execute_script(script)


def test_in_a_browser_hostile_text_runs_nothing_and_all_images_load(shown):
    browser = shown()
    until(lambda: browser.execute_script("return [...document.images].every((i) => i.naturalWidth > 0)"))
    assert browser.execute_script("return document.images.length") == 3
    browser.find_element("css selector", "article:nth-child(2) .words span").click()
    assert until(lambda: lit(browser)) == [EVIL]  # an alert would have raised an exception
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_in_a_browser_search_filters_and_sort_orders(shown):
    browser = shown()

    def names() -> list[str]:
        cards = browser.find_elements("css selector", "article:not([hidden])")
        return [card.get_attribute("data-name")[:2] for card in cards]

    order = browser.find_element("css selector", "select")
    orders = {option.text: option for option in order.find_elements("css selector", "option")}
    orders["highest log p first"].click()
    assert names() == ["<i", "10", "a "]
    orders["lowest CIDEr first"].click()
    assert names() == ["<i", "a ", "10"]  # an image without a score is last in both orders
    orders["highest CIDEr first"].click()
    assert names() == ["a ", "<i", "10"]
    orders["by name"].click()
    assert sorted(names()) == ["10", "<i", "a "]
    browser.find_element("css selector", "input").send_keys("BALL red")
    assert names() == ["a "]
    assert browser.find_element("css selector", "form [role=status]").text == "1 of 3"


def test_in_a_browser_pointing_at_a_word_shows_its_attention(shown):
    from selenium.webdriver import ActionChains

    browser = shown()
    word = browser.find_elements("css selector", ".words span")[1]
    ActionChains(browser).move_to_element(word).perform()
    assert until(lambda: lit(browser)) == ["ball"]
    drawn = browser.execute_script(
        """const canvas = document.querySelector(".attention .overlay > canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, [...data]];"""
    )
    width, height, data = drawn
    assert (width, height) == (96, 64)  # the image's proportions
    glow = np.reshape(data, (height, width, 4))[..., :3] / 255
    # The page blends the canvas with the dimmed image, as the attention sheet does.
    blended = 1 - (1 - UNLIT * 128 / 255) * (1 - glow)
    sheet = overlay(Image.new("RGB", (width, height), (128,) * 3), attend_to(4, 6, 0.6) / 0.6)
    assert blended * 255 == pytest.approx(np.asarray(sheet, float), abs=12)
    y, x = np.unravel_index(glow.sum(axis=2).argmax(), (height, width))
    assert (y * 5 // height, x * 7 // width) == (4, 6)
    # The canvas covers the image.
    boxes = [browser.find_element("css selector", css).rect for css in ("img", ".overlay > canvas")]
    assert boxes[0] == boxes[1]
    ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    until(lambda: not lit(browser))


def test_in_a_browser_the_keyboard_goes_from_word_to_word(shown):
    from selenium.webdriver.common.keys import Keys

    browser = shown()
    press(browser, "/", Keys.TAB, Keys.TAB)  # the search box, the order, the first word
    assert until(lambda: lit(browser)) == ["red"]
    text = until(lambda: browser.find_element("id", "announcement").get_attribute("textContent"))
    assert text == "red: 50 percent, attention at the top left"
    press(browser, Keys.ARROW_RIGHT)
    until(lambda: lit(browser) == ["ball"])
    press(browser, Keys.ARROW_DOWN)
    until(lambda: lit(browser) == [EVIL])
    press(browser, Keys.ARROW_UP, Keys.TAB)
    until(lambda: lit(browser) == ["ball"])
    press(browser, Keys.ESCAPE)
    until(lambda: not lit(browser))
    press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("type") == "search"


def test_in_a_browser_an_image_far_down_is_loaded_before_its_overlay_is_drawn(browser, tmp_path):
    attention = attend_to(0, 0, 0.5)[None]
    entries = [
        PageEntry(f"{i}", draw_image(60, 40), result("ball", -1.0, [("ball", 0.5)], (), attention))
        for i in range(60)
    ]
    write_page(tmp_path / "page.html", entries)
    browser.get((tmp_path / "page.html").as_uri())
    browser.execute_script("[...document.querySelectorAll('.words span')].at(-1).focus()")
    until(lambda: lit(browser) == ["ball"])
    assert browser.execute_script("return document.querySelector('.overlay > canvas').height") == 64


def test_in_a_browser_a_screen_reader_gets_the_caption_as_the_images_text(shown):
    nodes = shown().execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "image"]
    assert names == ["red ball", EVIL, "девочка & собака"]


@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_a_phone_shows_it_without_sideways_scrolling_in_light_and_dark(shown, dark):
    browser = shown(width=360, dark=dark, phone=True)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    colours = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    ink, paper = (np.mean(list(map(int, re.findall(r"\d+", colour)[:3]))) for colour in colours)
    assert (ink > 200 > 60 > paper) if dark else (paper > 200 > 60 > ink)
