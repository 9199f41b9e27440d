"""Images at addresses: fetched within limits, named safely, gone afterwards. The server is in a thread."""

import io
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from data.addresses import Addresses
from data.fetching import is_private
from data.image_files import find_images
from tests.script_helpers import run
from utils import UserError


def png(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


pytestmark = pytest.mark.usefixtures("no_java")


class Handler(BaseHTTPRequestHandler):
    """Answers by the beginning of the path: what servers do, in good and bad faith."""

    asked: list[str]
    port: int

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind = self.path.split("/")[1].partition("?")[0]
        with suppress(ConnectionError):  # whoever asks has enough
            getattr(self, kind, self.missing)()

    def answer(self, content: bytes, kind: str = "image/png", length: int = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def image(self) -> None:
        self.answer(png())

    def mislabelled(self) -> None:
        self.answer(png(), "text/plain")

    def page(self) -> None:
        self.answer(b"<!doctype html><p>Please log in", "text/html; charset=utf-8")

    def garbage(self) -> None:
        self.answer(b"\0" * 999, "image/jpeg")

    def cut(self) -> None:
        self.answer(png()[:40], length=len(png()))

    def large(self) -> None:
        self.answer(b"", length=10**12)

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"\0" * 10_000)

    def slow(self) -> None:
        """A byte of the header every now and then, as servers do that want to keep a client busy."""
        while True:
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: "[:1])
            time.sleep(0.05)

    def silent(self) -> None:
        time.sleep(3)

    def moved(self) -> None:
        self.redirect("/image/dog.png")

    def loop(self) -> None:
        self.redirect("/loop")

    def ftp(self) -> None:
        self.redirect("ftp://127.0.0.1/dog.png")

    def disk(self) -> None:
        self.redirect("file:///etc/passwd")

    def inside(self) -> None:
        self.redirect(f"http://127.0.0.2:{self.port}/image/secret.png")

    def redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.end_headers()

    def missing(self) -> None:
        self.send_error(404)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    """The paths of all requests to the server."""
    return []


@pytest.fixture
def server(asked, monkeypatch, tmp_path) -> Iterator[str]:
    """The address of the server; downloads go to `tmp_path`/temporary and are limited to 1 MB."""
    monkeypatch.setattr("data.fetching.LARGEST", 1_000_000)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    handler = type("Local", (Handler,), {"asked": asked})
    with ThreadingHTTPServer(("0.0.0.0", 0), handler) as http:
        http.daemon_threads = True
        handler.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{handler.port}"
        http.shutdown()
        thread.join()


def fetched(*given: str) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """The images at the addresses, and the errors for the others."""
    addresses = Addresses()
    images, errors = {}, {}
    with addresses:
        for path in addresses.fetched([addresses.path_of(address) for address in given]):
            address = addresses.shown[path]
            try:
                images[address] = Image.open(path).convert("RGB")
            except OSError as error:
                errors[address] = str(addresses.explained(path, UserError(f"{path}: {error}")))
            addresses.remove(path)
    assert not addresses.folder.exists()
    return images, errors


@pytest.mark.parametrize("path", ["image/dog.png", "moved", "mislabelled?width=20#top", "image/ein Hünd.png"])
def test_an_image_is_fetched_whatever_it_is_called(server, path):
    images, errors = fetched(f"{server}/{path}")
    assert not errors
    assert images[f"{server}/{path}"].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.jpg", "the server says 404 Not Found"),
        ("page/dog.jpg", "it is no image that can be read, but text/html"),
        ("garbage/dog.jpg", "it is no image that can be read, but image/jpeg"),
        ("cut/dog.png", "the connection ended after 40 of"),
        ("large/dog.png", "it has 1.0 TB, more than 1.0 MB"),
        ("endless/dog.png", "it has more than 1.0 MB"),
        ("slow/dog.png", "it takes longer than 1 s"),
        ("silent/dog.png", "it takes longer than 1 s"),
        ("loop", "redirect"),
        ("ftp", "it is redirected to ftp://127.0.0.1/dog.png, which is not http or https"),
        ("disk", "not allowed"),
    ],
)
def test_what_cannot_be_fetched_is_named_with_the_reason(server, path, reason, monkeypatch):
    if "takes longer" in reason:
        monkeypatch.setattr("data.fetching.SECONDS", 1.0)
    images, errors = fetched(f"{server}/{path}")
    assert not images
    assert errors[f"{server}/{path}"].startswith(f"{server}/{path} cannot be fetched (")
    assert reason in errors[f"{server}/{path}"]


@pytest.mark.parametrize(
    "address",
    [
        "ftp://127.0.0.1/a.jpg",
        "file:///etc/passwd",
        "http://",
        "http://a b/c.jpg",
        "http://127.0.0.1:x/",
        "https://[/",
    ],
)
def test_what_is_no_address_of_the_web_is_refused_without_a_connection(address):
    images, errors = fetched(address)
    assert not images
    assert errors[address].startswith(f"{address} cannot be fetched (")


def test_nobody_is_there(server):
    address = f"http://127.0.0.1:{1}/dog.png"
    assert "Connection refused" in fetched(address)[1][address]


def test_a_server_outside_does_not_send_us_inside(server, monkeypatch):
    address = f"{server}/inside"
    assert fetched(address)[0]  # from inside to inside
    monkeypatch.setattr("data.fetching.is_private", lambda peer: peer != "127.0.0.1")
    _, errors = fetched(address)
    assert "it is redirected into a private network, to 127.0.0.2" in errors[address]


@pytest.mark.parametrize(
    ("peer", "private"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.1", True), ("172.16.0.1", True), ("::1", True),
        ("169.254.169.254", True), ("fe80::1%eth0", True), ("fd00::1", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True), ("8.8.8.8", False), ("2606:4700::1111", False), ("::ffff:8.8.8.8", False),
    ],
)  # fmt: skip
def test_which_networks_are_private(peer, private):
    assert is_private(peer) == private


def test_many_are_fetched_in_order_and_few_are_on_the_disk_at_once(server, tmp_path):
    given = [f"{server}/image/{i}.png" for i in range(40)]
    addresses, most = Addresses(), 0
    with addresses:
        paths = [addresses.path_of(address) for address in given]
        for path, expected in zip(addresses.fetched(paths), paths, strict=True):
            assert path == expected
            most = max(most, sum(file.is_file() for file in addresses.folder.rglob("*")))
            addresses.remove(path)
    assert 1 <= most <= 20
    assert not any((tmp_path / "temporary").iterdir())


def test_whoever_stops_does_not_wait_for_the_rest(server, asked, tmp_path):
    addresses = Addresses()
    names = ["image/0.png", *(f"slow/{i}.png" for i in range(99))]
    paths = [addresses.path_of(f"{server}/{name}") for name in names]
    with addresses:
        next(addresses.fetched(paths))
    assert len(asked) < 20
    assert not any((tmp_path / "temporary").iterdir())


def test_names_of_files_are_safe():
    addresses = Addresses()
    given = {
        "https://example.org/a/dog.jpg?size=3#top": "dog.jpg",
        "https://example.org/": "example.org",
        "https://example.org/..": "example.org",
        "https://example.org/%2e%2e%2f%2e%2e%2fetc%2fpasswd": "passwd",
        "https://example.org/a%00b%1b[2J.jpg": "a_b_2J.jpg",
        "https://example.org/..%5c..%5cevil.exe": "evil.exe",
        "https://example.org/.bashrc": "bashrc",
        "https://example.org/" + "x" * 5000 + ".jpg": "x" * 96 + ".jpg",
        "https://example.org/$(rm -rf);|&.jpg": "_(rm -rf)_.jpg",
    }
    paths = {address: addresses.path_of(address) for address in given}
    assert {address: path.name for address, path in paths.items()} == given
    assert len(set(paths.values())) == len(given)
    assert all(path.parent.parent == addresses.folder for path in paths.values())
    assert addresses.path_of("https://example.org/") == paths["https://example.org/"]


def test_a_list_names_paths_and_addresses(tmp_path):
    for name in ("photos/b.png", "photos/more/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    file = tmp_path / "photos" / "list.TXT"
    file.write_text("\ufeff# mine\nb.png\n\n  more  \nhttps://example.org/a.png\ngone.png\n", "utf-8")
    addresses = Addresses()
    found = find_images([str(file), "https://example.org/a.png"], addresses)
    folder = tmp_path / "photos"
    fetched_path = addresses.path_of("https://example.org/a.png")
    assert found == [folder / "b.png", folder / "more/c.png", fetched_path, folder / "gone.png"]
    assert not addresses.folder.exists()
    for content, message in (
        (b"# nothing\n", "names no images"),
        (b"\0\0", "not text"),
        (b"\xff\xfe", "utf-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"list\.TXT .*{message}"):
            find_images([str(file)])


def test_addresses_are_captioned_beside_files_and_shown_as_addresses(trained, server):
    lines = [f"{server}/image/dog.png", f"{server}/nowhere.png", f"{server}/moved", "data/images/01.png"]
    (trained / "list.txt").write_text("\n".join(lines))
    image = "data/images/00.png"
    text = run(trained, "inference_visualize", image, "list.txt", "--output", "out", "--attention", status=1)
    rows = json.loads((trained / "out" / "captions.json").read_text())
    assert [row["image"] for row in rows] == [image, lines[0], lines[2], "data/images/01.png"]
    assert f"skipped: {lines[1]} cannot be fetched (the server says 404 Not Found)" in text
    names = {"00_captioned.jpg", "dog_captioned.jpg", "moved_captioned.jpg", "01_attention.jpg"}
    assert names <= {file.name for file in (trained / "out").iterdir()}
    page = (trained / "out" / "captions_result.html").read_text("utf-8")
    assert f'data-name="{lines[0]}"' in page
    assert 'data-name="01.png"' in page
    assert not any(Path(tempfile.gettempdir()).iterdir())


def test_nothing_but_an_argument_or_a_list_is_fetched(trained, server, asked):
    """Not an address in a captions file, which may come from anybody."""
    captions = f"image,caption,split\n{server}/image/20.png,A dog.,val\n20.png,A dog.,val\n"
    (trained / "captions.csv").write_text(captions)
    run(trained, "inference_visualize", "data/images/20.png", "--captions", "captions.csv", "--output", "out")
    assert not asked
    address = f"{server}/image/20.png"
    text = run(trained, "inference_visualize", address, "--captions", "captions.csv", "--output", "out")
    assert "scores of the 1 captions with references" in text
    assert asked == ["/image/20.png"]
