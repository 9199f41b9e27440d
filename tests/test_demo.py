"""demo.py: a page that captions what is dropped on it, keeps nothing, and loads nothing from elsewhere."""

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from caption_types import Caption, Hypothesis, Word
from captioning import Captioner
from data.sample import draw_sample
from models.model import build_model
from reports.hover import hover_html
from tests.helpers import CPU
from tests.page_helpers import EVIL, attend_to, draw_image, until
from tests.script_helpers import ended, run


def test_without_gradio_a_line_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    text = run(trained, "demo", status=2)
    assert text.strip() == "error: demo.py needs the package gradio: pip install -r requirements-extra.txt"


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_there_is_not_is_refused(tmp_path, port):
    status, _, text = ended(tmp_path, "demo", "--port", port)
    assert status == 2
    assert "error: " in text.splitlines()[-1]


def test_text_is_escaped_and_each_word_has_its_overlay():
    attention = np.stack([attend_to(0, 0, 0.3), attend_to(4, 6, 0.6)])
    words = [Word(EVIL, 0.5), Word("ball", 0.25)]
    image = draw_image(900, 600)
    html = hover_html(image, Caption("x", EVIL, -1.5, words, [Hypothesis(EVIL, -2.0)], attention))
    assert "<script" not in html
    assert html.count("data:image/jpeg;base64,") == 3
    assert "bright is 60% in a cell" in html
    assert "--p:25" in html
    plain = hover_html(image, Caption("x", "ball", -1.5, words[1:], [], None))
    assert plain.count("data:image/jpeg;base64,") == 1
    assert "attention" not in plain
    assert "<details>" not in plain


@pytest.fixture(scope="module")
def served(finished_run: Path, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The page with two models, the second without attention: its `url`, `uploads` and `captioner`."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    from jobs.demo import launch, make_page

    uploads = tmp_path_factory.mktemp("uploads")
    captioner = Captioner.load(finished_run / "runs" / "tiny", compute=CPU)
    config = captioner.config.model_copy(deep=True)
    config.decoder.kind = "lstm"
    plain = build_model(config, len(captioner.vocabulary)).eval()
    with mock.patch.dict(os.environ, {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False"}):
        page = make_page([captioner, replace(captioner, model=plain, config=config)], ["tiny", EVIL])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch(page, "127.0.0.1", port)
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", uploads=uploads, captioner=captioner)
        page.close(verbose=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "sample"
    draw_sample(folder, 3)
    return min((folder / "images").iterdir())


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def send(served, payload: dict) -> str:
    """Send the page's first event as a program would; returns how it ends."""
    import httpx

    data = {"data": [{"meta": {"_type": "gradio.FileData"}, **payload}], "fn_index": 0, "session_hash": "me"}
    httpx.post(f"{served.url}/gradio_api/queue/join", json=data).raise_for_status()
    with httpx.stream("GET", f"{served.url}/gradio_api/queue/data?session_hash=me", timeout=60) as events:
        return next(line for line in events.iter_lines() if "process_completed" in line)


def test_an_upload_is_gone_once_it_is_read_and_a_large_one_never_comes(served, scene):
    import httpx

    upload = f"{served.url}/gradio_api/upload"
    [path] = httpx.post(upload, files={"files": ("scene.png", scene.read_bytes())}).json()
    assert files_in(served.uploads) == [Path(path)]
    assert '"success":true' in send(served, {"path": path})
    assert not any(served.uploads.iterdir())
    refused = httpx.post(upload, files={"files": ("large.png", bytes(21_000_000))})
    assert refused.status_code == 413
    assert not files_in(served.uploads)


def test_the_server_gives_out_no_files_and_fetches_no_addresses(served, scene, monkeypatch):
    import httpx

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", None)  # would be called
    for path in ("https://example.org/dog.jpg", str(scene)):
        assert '"success":false' in send(served, {"path": path, "url": path})
    assert httpx.get(f"{served.url}/gradio_api/file={scene}").status_code == 403
    assert httpx.get(served.url, headers={"Host": "elsewhere.example"}).status_code == 400
    answer = httpx.get(served.url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert httpx.get(f"{served.url}/gradio_api/info").json()["named_endpoints"] == {}


@pytest.mark.browser
def test_a_dropped_image_is_captioned_by_both_models_and_words_show_their_attention(served, scene, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def caption(column: int) -> str:
        images = browser.find_elements("css selector", f"#caption-{column} .hover > img")
        return images[0].get_attribute("alt") if images else ""

    def visible() -> list[str]:
        script = """return [...document.querySelectorAll(".words img")].filter(
            (image) => getComputedStyle(image).visibility === "visible").map((image) => image.alt)"""
        return browser.execute_script(script)

    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(served.url)
    [field] = until(lambda: browser.find_elements("css selector", "#image input[type=file]"))
    field.send_keys(str(scene))
    [expected] = served.captioner([scene])
    assert until(lambda: caption(0)) == expected.caption
    assert caption(1)
    assert not files_in(served.uploads)
    words = browser.find_elements("css selector", "#caption-0 .words span")
    assert [word.text for word in words] == expected.caption.split()
    assert visible() == []
    ActionChains(browser).move_to_element(words[1]).perform()
    assert until(visible) == [f"attention for {words[1].text}"]
    found = (
        browser.find_element("css selector", f"#caption-0 {css}") for css in (".hover > img", ".words img")
    )
    base, over = (image.rect for image in found)
    assert base == over
    assert browser.find_elements("css selector", "#caption-1 .words img") == []

    # A slider captions the same image again, although its file is gone.
    _, length, _ = browser.find_elements("css selector", "#search input[type=number]")
    length.send_keys(Keys.CONTROL, "a")
    length.send_keys("2", Keys.TAB)
    until(lambda: len(caption(0).split()) == 2)
    hosts = browser.execute_script(
        """const entries = performance.getEntriesByType("resource");
        return [...new Set(entries.map((entry) => new URL(entry.name).origin))]"""
    )
    assert hosts == [served.url]


@pytest.mark.browser
def test_what_is_no_image_is_said_in_one_line(served, browser, tmp_path):
    (tmp_path / "no image.jpg").write_text("no image")
    browser.get(served.url)
    [field] = until(lambda: browser.find_elements("css selector", "#image input[type=file]"))
    field.send_keys(str(tmp_path / "no image.jpg"))

    script = "return document.querySelector('[data-testid=toast-body]')?.textContent"
    text = until(lambda: browser.execute_script(script))
    assert "cannot identify image file 'no image.jpg'" in text
    until(lambda: not files_in(served.uploads))


def test_the_port_or_address_of_another_is_refused(served, trained):
    port = served.url.rpartition(":")[2]
    assert f"nothing can listen on 127.0.0.1, port {port}" in run(trained, "demo", "--port", port, status=2)
    # An address for documentation (RFC 5737), which no computer has.
    assert "nothing can listen on 192.0.2.1" in run(trained, "demo", "--host", "192.0.2.1", status=2)
