"""Fetches an image from an http(s) address into a file, within limits of size and time."""

import contextlib
import io
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import (
    BaseHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from PIL import Image

from files import readable_size
from utils import UserError

LARGEST = 40_000_000  # bytes of an image
SECONDS = 60.0  # for an image, redirects included
_TO_CONNECT = 10.0  # seconds
_PATIENCE = 0.5  # seconds after which a waiting thread looks whether it should stop
_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "image-captioning (Python)", "Accept": "image/*,*/*;q=0.5"}


class _RefusedError(Exception):
    """Why an image is not fetched, as the part of a message."""


def fetch(address: str, file: Path, stop: threading.Event) -> None:
    """Write the image at `address` to `file`, whose folder is made.

    It is written in pieces, so that it is never in memory as a whole.

    After an error there is no file. An error comes soon when `stop` is set.

    Raises:
        UserError: it cannot be fetched, is larger than LARGEST bytes, takes longer than SECONDS, or is no
            image that Pillow recognises.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = _download(_escaped(address), file, _Limits(stop))
        _require_image(file, kind)
    except (OSError, HTTPException, ValueError, _RefusedError) as error:
        file.unlink(missing_ok=True)
        raise UserError(f"{address} cannot be fetched ({_reason(error)})") from None


class _Limits:
    """What all connections for one image share: time, bytes, and whether they may enter a private network.

    An address that the user gives may be in a private network. But a server outside must not send us to the
    servers inside, by a redirect or by what its name resolves to then.
    """

    def __init__(self, stop: threading.Event):
        self.stop, self.end = stop, time.monotonic() + SECONDS
        self.received = 0  # bytes
        self.may_be_private: bool | None = None  # not known before the first connection

    def remaining(self) -> float:
        """Seconds that are left. Raises _RefusedError if there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0 or self.stop.is_set():
            raise _RefusedError(f"it takes longer than {SECONDS:g} s")
        return seconds

    def count(self, received: int) -> int:
        """The number of bytes that were received. Raises _RefusedError if they are too many in all."""
        self.received += received
        if self.received > LARGEST:
            raise _RefusedError(f"it has more than {readable_size(LARGEST)}")
        return received

    def connected(self, peer: str) -> None:
        """Raise _RefusedError if the next request must not be sent to the server with this IP address."""
        private = is_private(peer)
        if self.may_be_private is None:
            self.may_be_private = private
        if private and not self.may_be_private:
            raise _RefusedError(f"it is redirected into a private network, to {peer}")


def is_private(peer: str) -> bool:
    """Whether an IP address is not of the public internet: of this machine, or of a local network."""
    ip = ipaddress.ip_address(peer)
    mapped = getattr(ip, "ipv4_mapped", None)
    return not (mapped or ip).is_global


class _Timed(io.RawIOBase):
    """What a socket receives within limits, however slowly it comes."""

    def __init__(self, sock: socket.socket, limits: _Limits):
        self.sock, self.limits = sock, limits

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            self.sock.settimeout(min(_PATIENCE, self.limits.remaining()))
            with contextlib.suppress(TimeoutError):
                return self.limits.count(self.sock.recv_into(buffer))


class _Response(HTTPResponse):
    def __init__(self, limits: _Limits, sock: socket.socket, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.connection_file = self.fp  # closes the socket
        self.fp = io.BufferedReader(_Timed(sock, limits))

    def close(self) -> None:
        super().close()
        self.connection_file.close()


class _Connection(HTTPConnection):
    """`HTTPConnection` within limits."""

    def __init__(self, limits: _Limits, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.limits = limits
        self.response_class = partial(_Response, limits)  # type: ignore[assignment]

    def connect(self) -> None:
        self.timeout = min(_TO_CONNECT, self.limits.remaining())
        super().connect()
        self.limits.connected(self.sock.getpeername()[0])


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Handler(HTTPHandler):
    def __init__(self, limits: _Limits):
        super().__init__()
        self.limits = limits

    def http_open(self, req):
        return self.do_open(partial(_Connection, self.limits), req)


class _SecureHandler(HTTPSHandler):
    def __init__(self, limits: _Limits):
        super().__init__()
        self.limits = limits

    def https_open(self, req):
        return self.do_open(partial(_SecureConnection, self.limits), req)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib's own also go to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise _RefusedError(f"it is redirected to {newurl[:200]}, which is not http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(address: str, file: Path, limits: _Limits) -> str:
    """Write what is at `address` to `file`; returns the type of content that the server announces."""
    opener = OpenerDirector()  # not build_opener, which also opens ftp:, file: and data:
    handlers: list[BaseHandler] = [_Handler(limits), _SecureHandler(limits), _Redirects(), ProxyHandler()]
    for handler in (*handlers, HTTPDefaultErrorHandler(), HTTPErrorProcessor()):
        opener.add_handler(handler)
    opener.addheaders = []
    with opener.open(Request(address, headers=_HEADERS)) as response, open(file, "wb") as output:
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > LARGEST:
            raise _RefusedError(f"it has {readable_size(int(announced))}, more than {readable_size(LARGEST)}")
        while piece := response.read1(_CHUNK):
            output.write(piece)
        if announced.isdecimal() and output.tell() < int(announced):
            raise _RefusedError(f"the connection ended after {output.tell():,} of {int(announced):,} bytes")
        return response.headers.get_content_type()


def _require_image(file: Path, kind: str) -> None:
    """Raise _RefusedError if Pillow does not recognise the file; `kind` is what the server says it is."""
    try:
        Image.open(file).close()
    except Exception:  # Pillow may raise anything for a broken file
        raise _RefusedError(f"it is no image that can be read, but {kind}") from None


def _escaped(address: str) -> str:
    """The address with %xx for what HTTP does not allow in one, such as spaces and letters with accents."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise _RefusedError("it is neither http:// nor https://; pass a local file by its path")
    escape: Callable[[str], str] = partial(quote, safe="/%:=&?~+!$,;'@()*[]")
    host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
    return urlunsplit((parts.scheme, host, escape(parts.path), escape(parts.query), ""))


def _reason(error: Any) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, URLError):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
