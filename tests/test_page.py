"""captions_result.html as a file; test_page_browser.py opens it."""

import base64
import gc
import re
import weakref
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from reports.page import LEVELS, Page, PageEntry
from tests.page_helpers import EVIL, NASTY, attend_to, draw_image, make_page, result, write_page
from utils import UserError


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


def test_of_sixty_beams_the_page_lists_the_ten_best(tmp_path):
    others = [(f"beam {k}", -float(k)) for k in range(2, 61)]
    entry = PageEntry("one.jpg", draw_image(40, 40), result("beam 1", -1.0, others=others))
    write_page(tmp_path / "page.html", [entry])
    text = Tags((tmp_path / "page.html").read_text()).text
    assert "beam 10" in text
    assert "beam 11" not in text


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
            {"full size": tmp_path},
        )
        for i in range(images)
    ]  # fmt: skip
    scores = {entry.name: {"CIDEr": 0.5, "BLEU-4": 0.25, "ROUGE-L": 0.125} for entry in entries}
    write_page(tmp_path / "page.html", entries, scores)
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


def test_a_page_does_not_replace_files_of_the_user_s(page):
    folder = page.parent / "captions_result_files"
    (folder / "00004.jpg").write_text("the user's")
    (folder / "cat.jpg").write_text("the user's")
    with pytest.raises(UserError, match=r"00004\.jpg exists"):
        Page(page).check(4)
    Page(page).check(3)
    page.write_text("edited")
    with pytest.raises(UserError, match=r"captions_result\.html exists"):
        Page(page).check(1)
    write_page(page.with_name("other.html"), [PageEntry("one.jpg", draw_image(40, 40), result("one", -1.0))])
    assert sorted(file.name for file in folder.iterdir()) == [
        *(f"0000{i}.jpg" for i in (1, 2, 3, 4)),
        "cat.jpg",
    ]


def test_lone_surrogates_are_shown_as_question_marks(tmp_path):
    odd = result("a \udce4 dog", -1.0, [("a", 0.5), ("\ud800", 0.5)], [("\udfff", -2.0)])
    entry = PageEntry(
        "\udcff.jpg", draw_image(40, 40), odd, ["\ud83d dog"], {"full size": tmp_path / "\udcff.jpg"}
    )
    write_page(tmp_path / "page.html", [entry], {"\udcff.jpg": {"CIDEr": 0.5}})
    html = (tmp_path / "page.html").read_text("utf-8")
    for text in ("a ? dog", "? dog", "?.jpg", "%FF.jpg", "CIDEr <b>0.50</b>"):
        assert text in html
