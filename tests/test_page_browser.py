"""captions_result.html in Chromium."""

import re

import numpy as np
import pytest
from PIL import Image

from reports.attention import UNLIT, overlay
from reports.page import PageEntry
from tests.page_helpers import (
    EVIL,
    attend_to,
    draw_image,
    make_page,
    press,
    result,
    set_window,
    until,
    write_page,
)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    """A function that loads the page anew and returns the browser."""
    path = make_page(tmp_path_factory.mktemp("page"))

    def load(width: int = 1280, dark: bool = False, phone: bool = False):
        set_window(browser, width, dark, phone)
        browser.get(path.as_uri())
        return browser

    return load


def lit(browser) -> list[str]:
    """The words whose attention is shown."""
    script = "return [...document.querySelectorAll('.attention .legend b')].map((word) => word.textContent)"
    return browser.execute_script(script)


def test_hostile_text_runs_nothing_and_all_images_load(shown):
    browser = shown()
    until(lambda: browser.execute_script("return [...document.images].every((i) => i.naturalWidth > 0)"))
    assert browser.execute_script("return document.images.length") == 3
    browser.find_element("css selector", "article:nth-child(2) .words span").click()
    assert until(lambda: lit(browser)) == [EVIL]  # an alert would have raised an exception
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_search_filters_and_sort_orders(shown):
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


def test_pointing_at_a_word_shows_its_attention(shown):
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


def test_the_keyboard_goes_from_word_to_word(shown):
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


def test_an_image_far_down_is_loaded_before_its_overlay_is_drawn(browser, tmp_path):
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


def test_a_screen_reader_gets_the_caption_as_the_images_text(shown):
    nodes = shown().execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "image"]
    assert names == ["red ball", EVIL, "девочка & собака"]


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_sideways_scrolling_in_light_and_dark(shown, dark):
    browser = shown(width=360, dark=dark, phone=True)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    colours = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    ink, paper = (np.mean(list(map(int, re.findall(r"\d+", colour)[:3]))) for colour in colours)
    assert (ink > 200 > 60 > paper) if dark else (paper > 200 > 60 > ink)
