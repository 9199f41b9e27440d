"""What the pictures, the page and the curves promise."""

import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image, ImageDraw

import visualize_loss
from reports.attention import attention_sheet, overlay
from reports.captioned import captioned_picture
from reports.curves import draw_curves
from reports.lettering import font, wrap
from reports.loss_log import COLUMNS, best, read_log, run_names
from reports.page import PageEntry, write_page
from utils import UserError

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
NASTY = "<img src=x onerror=alert(1)>.jpg"


def picture(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "#5a8f3c")
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill="#d0402a")
    return image


# --- the captioned picture ---


@pytest.mark.parametrize("size", [(384, 300), (500, 375), (640, 1900), (4000, 2600), (1600, 200)])
def test_a_captioned_picture_keeps_the_pixels_of_the_picture(size):
    original = picture(*size)
    captioned = captioned_picture(original, "a red ball on the grass", ["a ball", "something red on green"])
    assert captioned.width == size[0]
    assert captioned.crop((0, 0, *size)) == original
    strip = np.asarray(captioned.crop((0, size[1], *captioned.size)).convert("L"))
    assert strip.min() < 60  # there is ink
    assert (strip[:, [0, -1]] == 255).all()  # and none of it runs out at the sides
    assert (strip[[0, -1]] == 255).all()  # nor above or below


def test_a_small_picture_is_enlarged_by_a_whole_factor_to_a_readable_width():
    assert captioned_picture(picture(96, 60), "a red ball").width == 384
    assert captioned_picture(picture(100, 60), "a red ball").width == 400


def test_type_grows_with_the_picture():
    def ink_height(width: int) -> int:
        captioned = captioned_picture(Image.new("RGB", (width, width // 2)), "dog")
        strip = np.asarray(captioned.convert("L"))[width // 2 :]
        return int((strip.min(axis=1) < 128).sum())

    assert ink_height(4000) > 7 * ink_height(400)


def test_a_rotated_photograph_is_shown_upright_and_transparency_on_white():
    sideways = Image.new("RGB", (600, 400))
    sideways.getexif()[0x0112] = 6  # the camera was held upright
    assert captioned_picture(sideways, "a wall").width == 400
    clear = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    assert captioned_picture(clear, "nothing").getpixel((200, 200)) == (255, 255, 255)


@pytest.mark.parametrize(
    "caption",
    ["a dog runs across the wide green field " * 5, "x" * 300, "Übergröße — девочка у моря", "", "  "],
)
def test_lines_fit_the_width_and_lose_no_letter(caption):
    type_ = font(20, caption)
    lines = wrap(caption, type_, 300)
    assert all(type_.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == caption.replace(" ", "")


def test_letters_of_many_scripts_are_drawn_rather_than_boxes():
    type_ = font(40)
    box = type_.getmask("\U000fffff").getbbox(), bytes(type_.getmask("\U000fffff"))
    for letter in "éßñøłžЖяΩ":
        mask = type_.getmask(letter)
        assert (mask.getbbox(), bytes(mask)) != box, letter
    assert "LastResort" not in font(40, "一只狗 🐕").path


# --- the attention sheet ---


@pytest.mark.parametrize(
    ("size", "grid"), [((300, 200), (7, 7)), ((120, 400), (5, 9)), ((500, 100), (14, 3))]
)
def test_an_overlay_is_brightest_where_the_attention_is_highest(size, grid):
    light = np.full(grid, 0.05)
    light[1, -1] = 1
    shown = np.asarray(overlay(Image.new("RGB", size, "#808080"), light).convert("L"), dtype=int)
    assert shown.shape == size[::-1]
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert (y * grid[0] // size[1], x * grid[1] // size[0]) == (1, grid[1] - 1)
    assert shown[-1, 0] < shown.max() / 2


def test_all_words_share_one_scale():
    alphas = np.zeros((2, 4, 4))
    alphas[0, 1, 1], alphas[1, 1, 1] = 0.8, 0.1
    sheet = np.asarray(
        attention_sheet(Image.new("RGB", (256, 256)), ["dog", "runs"], alphas).convert("L"), int
    )
    dog, runs = sheet[100:300, 305:550].max(), sheet[100:300, 575:820].max()  # within the two panels
    assert 255 > dog > 1.5 * runs > 0


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_a_sheet_wraps_long_captions_into_rows_no_wider_than_a_slide(count):
    alphas = np.full((count, 7, 7), 1 / 49)
    sheet = attention_sheet(
        picture(300, 200), ["pneumonoultramicroscopicsilicovolcanoconiosis"] * count, alphas
    )
    assert sheet.width <= 1500
    assert sheet.height >= 170 * math.ceil((count + 1) / 5)


def test_words_and_maps_must_pair_up():
    with pytest.raises(ValueError, match="2 words"):
        attention_sheet(picture(10, 10), ["a", "dog"], np.ones((3, 7, 7)))


# --- the page ---


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
    file = tmp_path / 'a b%20#"ü.jpg'
    picture(900, 600).save(file)
    sheet = tmp_path / "looked at" / "100% #1 'ü'.png"
    sheet.parent.mkdir()
    picture(50, 50).save(sheet)
    evil = '"><script>alert(2)</script>'
    entries = [
        PageEntry(
            file.name, file, "a red ball on grass", -3.25, [("a", 0.9), ("red", 0.5)], [("a ball", -4.5)]
        ),
        PageEntry(NASTY, picture(30, 90), evil, -1.5, [(evil, 1.0)], [(evil, -2)], [evil], sheet),
        PageEntry("10.jpg", picture(40, 40), "девочка & собака", -2.0, references=["a girl & a dog"]),
    ]
    path = tmp_path / "captions_result.html"
    write_page(path, iter(entries), title="Captions <of> a run")
    return path


def test_whatever_text_a_page_is_given_is_shown_as_text(page):
    tags = Tags(page.read_text("utf-8"))
    assert len(tags.named("script")) == 1
    assert not any(attribute.startswith("on") for _, attributes in tags.elements for attribute in attributes)
    assert len([image for image in tags.named("img") if image["src"] == "x"]) == 0
    for text in (NASTY, '"><script>alert(2)</script>', "девочка & собака", "Captions <of> a run"):
        assert text in tags.text


def test_a_page_loads_nothing_from_elsewhere_and_all_it_loads_exists(page):
    html = page.read_text("utf-8")
    assert not re.search(r"https?:|//\w+\.|@import|url\(", html)
    tags = Tags(html)
    images = tags.named("img")
    assert len(images) == 4
    for url in [image["src"] for image in images] + [link["href"] for link in tags.named("a")]:
        assert re.fullmatch(r"[\w/.~%-]+", url)
        assert (page.parent / unquote(url)).is_file()
    assert all(image["loading"] == "lazy" for image in images)


def test_a_page_says_all_it_knows(page):
    tags = Tags(page.read_text("utf-8"))
    for text in ("a red ball on grass", "log p −3.25", "red 50", "a ball −4.50", "a girl & a dog"):
        assert text in " ".join(tags.text.split())
    assert "a red ball on grass" in [image["alt"] for image in tags.named("img")]


def test_thumbnails_are_small_upright_and_no_more_than_the_entries(page):
    folder = page.parent / "captions_result_files"
    with Image.open(folder / "00001.jpg") as thumbnail:
        assert thumbnail.size == (480, 320)
    write_page(page, [PageEntry("one.jpg", picture(40, 40), "one", -1.0)])
    assert [file.name for file in folder.iterdir()] == ["00001.jpg"]


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no picture")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        write_page(tmp_path / "page.html", [PageEntry("broken.jpg", broken, "a", -1.0)])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_in_a_browser_search_filters_sort_orders_and_no_alert_fires(page, tmp_path):
    probe = """<script>{
    const cards = (selector) => [...document.querySelectorAll(selector)];
    const numbers = (selector) => cards(selector).map((card) => card.dataset.number).join();
    const search = document.querySelector("input"), order = document.querySelector("select");
    order.value = "likely"; order.dispatchEvent(new Event("change"));
    const sorted = numbers("article");
    search.value = "GRASS red"; search.dispatchEvent(new Event("input"));
    const shown = numbers("article:not([hidden])");
    document.body.dataset.probe = `sorted ${sorted} shown ${shown} alerts ${window.alerts}`;
    }</script>"""
    html = page.read_text("utf-8").replace(
        "<head>", "<head><script>alerts = 0; alert = () => alerts++</script>", 1
    )
    probed = tmp_path / "probed.html"
    probed.write_text(html.replace("</body>", probe + "</body>"), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert 'data-probe="sorted 2,3,1 shown 1 alerts 0"' in dom


# --- the curves ---


def write_log(run: Path, epochs: int = 3, tail: str = "") -> Path:
    """A run folder with a log of ten steps an epoch; validation is best in epoch 2."""
    lines = [",".join(COLUMNS)]
    for epoch in range(1, epochs + 1):
        for step in range(10 * epoch - 8, 10 * epoch + 1, 2):
            lines.append(
                f"step,{epoch},{step},{step},0.001,{5 / step + 2},{math.exp(5 / step + 2)},0.4" + "," * 8
            )
        val = 3 + abs(epoch - 2)
        scores = f"{val},{math.exp(val)},0.6,.5,.4,.3,{0.1 * epoch},0.5"
        lines.append(f"epoch,{epoch},{10 * epoch},9,0.001,2.5,12.2,0.5,{scores}")
    run.mkdir(parents=True)
    (run / "loss_log.txt").write_text("\n".join(lines) + "\n" + tail)
    return run


@pytest.mark.parametrize("tail", ["", "step,4,3", "epoch,4,40,9,0.001,2.5,12.2,0.5,0.1", "st", "\0\0\0"])
def test_a_half_written_last_row_is_left_out(tmp_path, tail):
    run = write_log(tmp_path / "run", tail=tail)
    table = read_log(run / "loss_log.txt")
    assert len(table) == 18
    assert best(table, "val_loss") == (3.0, 2)
    assert best(table, "BLEU-4") == (pytest.approx(0.3), 3)
    draw_curves([run], tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet.convert("L")).std() > 10


def test_missing_and_unknown_columns_are_no_obstacle(tmp_path):
    log = tmp_path / "loss_log.txt"
    log.write_text("event,epoch,step,train_loss,colour\nstep,1,10,3.5,red\nepoch,1,20,3.25,blue\n")
    table = read_log(log)
    assert table["train_loss"].tolist() == [3.5, 3.25]
    assert best(table, "CIDEr") is None
    draw_curves([log], tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_a_run_is_drawn_before_its_first_epoch_ends(tmp_path):
    log = tmp_path / "loss_log.txt"
    log.write_text("event,epoch,step,train_loss,lr\nstep,1,10,3.5,0.1\nstep,1,20,3.25,0.1\n")
    draw_curves([log], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_steps_that_a_resumed_run_did_over_again_count_once(tmp_path):
    log = tmp_path / "loss_log.txt"
    rows = ["event,epoch,step,train_loss", "step,1,10,3", "step,1,20,9", "resume,1,10,", "step,1,20,2"]
    log.write_text("\n".join(rows) + "\n")
    assert read_log(log)["step"].tolist() == [10, 10, 20]


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path):
    logs = [tmp_path / name / "loss_log.txt" for name in ("a/base", "b/base")]
    assert run_names(logs) == ["a/base", "b/base"]
    assert run_names(logs[:1]) == ["base"]


def test_two_runs_share_one_sheet_and_the_best_values_are_printed(tmp_path, monkeypatch, capsys):
    one, two = write_log(tmp_path / "old" / "base"), write_log(tmp_path / "new" / "$_base", epochs=5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py", str(one), str(two), "--output", "both.svg"])
    visualize_loss.main()
    table = capsys.readouterr().out.splitlines()
    both = ["3.000 in epoch 2", "20.09 in epoch 2", "60.0% in epoch 1"]
    assert re.split(r"  +", table[1]) == ["base", "3", *both, "0.300 in epoch 3", "0.500 in epoch 1"]
    assert re.split(r"  +", table[2]) == ["$_base", "5", *both, "0.500 in epoch 5", "0.500 in epoch 1"]
    assert "<svg" in (tmp_path / "both.svg").read_text()


def test_without_arguments_the_most_recent_run_is_drawn_and_named(tmp_path, monkeypatch, capsys):
    for age, name in enumerate(("newer", "older")):
        run = write_log(tmp_path / "runs" / name)
        os.utime(run / "loss_log.txt", (1e9 - age, 1e9 - age))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visualize_loss.py"])
    visualize_loss.main()
    assert "runs/newer" in capsys.readouterr().out
    assert (tmp_path / "runs" / "newer" / "loss_curve.png").is_file()


@pytest.mark.parametrize(
    "problem", ["no such run", "no log", "empty log", "header only", "no numbers", "not a log"]
)
def test_what_cannot_be_drawn_is_an_error_for_people(tmp_path, problem):
    run = tmp_path / "run"
    log = run / "loss_log.txt"
    if problem != "no such run":
        run.mkdir()
    header = ",".join(COLUMNS) + "\n"
    contents = {
        "empty log": "",
        "header only": header,
        "no numbers": header + "step,1,2\n",
        "not a log": "a poem\n",
    }
    if problem in contents:
        log.write_text(contents[problem])
    with pytest.raises(UserError, match=re.escape(str(run))) as error:
        draw_curves([run], tmp_path / "curve.png")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "curve.png").exists()


def test_a_script_error_is_one_line_with_status_2(tmp_path):
    command = [sys.executable, str(Path(visualize_loss.__file__)), "runs/nope"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*runs/nope.*\n", done.stderr)
