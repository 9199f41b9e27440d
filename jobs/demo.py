"""The job of demo.py: a page of gradio on which models caption the images of whoever opens it."""

from startup import one_line

import argparse
import html
import ipaddress
import os
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from caption_types import Caption
from captioning import Captioner
from data.addresses import is_address
from data.transforms import read_image
from models.checkpoint import find_checkpoint
from reports.hover import HOVER_CSS, hover_html
from reports.html import thumbnail
from utils import UserError

_LARGEST = 20_000_000  # bytes of an image
_FORGET_AFTER = 1800  # seconds without use, after which the server forgets an image
_MOST_SESSIONS = 50  # of which the server remembers the images, a megabyte each
_INTRODUCTION = """<h1>Image captions</h1>
<p>Drop an image, paste it, or take it with the camera. The computer that serves this page captions it, and
does not keep it.</p>"""
_EMPTY = '<p class="empty">Its caption appears here.</p>'
_CSS = f"""{HOVER_CSS}
.empty {{ opacity: .6; padding: 3rem 1rem; text-align: center; border: 1px dashed #8888; }}
/* On a phone the caption comes before the sliders. */
#parts {{ display: grid; grid-template: "take captions" auto "search captions" 1fr / minmax(17rem, 1fr) 3fr }}
#take {{ grid-area: take; }} #captions {{ grid-area: captions; }} #search {{ grid-area: search; }}
@media (max-width: 44rem) {{ #parts {{ grid-template: "take" auto "captions" auto "search" auto / 1fr; }} }}
.model {{ font-weight: 600; overflow-wrap: anywhere; }}
"""
# The page takes nothing from other hosts, whatever gradio would like to load.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; frame-ancestors 'self'"
)


class _Shown(NamedTuple):
    """The image on a page, as far as captioning it again needs it; the file is gone."""

    image: Image.Image  # small
    prepared: list[list[torch.Tensor]]  # for each captioner, see `Captioner.prepare`


def show_demo(args: argparse.Namespace) -> None:
    """Serve the page until the program is stopped.

    Raises:
        UserError: gradio is missing, a model cannot be loaded, or nothing can listen at this host and port.
    """
    _require_free(args.host, args.port)
    # Before gradio is imported: it reports its use to its makers, unless it is told not to.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio  # noqa: F401 (takes seconds, and is needed only here)
    except ImportError:
        raise UserError("demo.py needs the package gradio: pip install -r requirements-extra.txt") from None
    paths = [find_checkpoint(path) for path in args.checkpoint or [None]]
    captioners = [Captioner.load(path, args.overrides) for path in paths]
    with tempfile.TemporaryDirectory(prefix="captioning-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = make_page(captioners, [str(path) for path in paths])
        launch(page, args.host, args.port)
        print(f"the page is at http://{_in_url(args.host)}:{args.port} (Ctrl-C ends it)", flush=True)
        if not _is_local(args.host):
            print("everybody who can reach this computer over the network can use it")
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def make_page(captioners: Sequence[Captioner], names: Sequence[str]) -> Any:
    """The page, gradio's `Blocks`, with a column for each captioner."""
    import gradio as gr

    def take(path: str | None) -> tuple[None, _Shown | None]:
        """Read an upload and remove it: the field for images is empty again, also if it cannot be read."""
        if path is None:
            return None, None
        try:
            image = read_image(path)
        except OSError as error:
            reason = str(error).replace(path, Path(path).name)
            gr.Warning(_as_html(reason), title="This image cannot be read")
            return None, None
        finally:
            _remove(Path(path))
        return None, _Shown(thumbnail(image), [captioner.prepare(image) for captioner in captioners])

    def caption(shown: _Shown | None, beam: int, length: int, temperature: float, sample: int) -> list[str]:
        """The HTML of each column."""
        if shown is None:
            return [_EMPTY] * len(captioners)
        search = {"beam": beam, "max_length": length, "temperature": temperature}
        try:
            return [
                _captioned(
                    captioner, shown.image, prepared, **search, seed=captioner.config.run.seed + sample
                )
                for captioner, prepared in zip(captioners, shown.prepared, strict=True)
            ]
        except (UserError, ValueError) as error:
            raise gr.Error(_as_html(error), print_exception=False) from None

    search = captioners[0].config.search
    with gr.Blocks(title="Image captions", analytics_enabled=False, delete_cache=(60, 60)) as page:
        shown = gr.State(None, time_to_live=_FORGET_AFTER)
        sample = gr.State(0)
        gr.HTML(_INTRODUCTION)
        with gr.Row(elem_id="parts"):
            with gr.Column(elem_id="take"):
                upload = gr.Image(
                    label="Image", sources=["upload", "webcam", "clipboard"], type="filepath", height=260,
                    elem_id="image", webcam_options=gr.WebcamOptions(mirror=False),
                )  # fmt: skip
                # Not gradio's: it would fetch an address that it is sent, and opens files on its own.
                upload.async_move_resource_to_block_cache = _uploaded  # type: ignore[method-assign]
                upload.preprocess = _path_of  # type: ignore[method-assign]
            with gr.Row(elem_id="captions"):
                columns = []
                for number, name in enumerate(names):
                    with gr.Column(min_width=300):
                        gr.HTML(f'<p class="model">{html.escape(name)}</p>')
                        columns.append(gr.HTML(_EMPTY, elem_id=f"caption-{number}"))
            with gr.Column(elem_id="search"):
                most = max(10, search.beam)
                beam = gr.Slider(1, most, search.beam, step=1, label="Beam", info="1 is greedy")
                length = gr.Slider(1, 40, search.max_length, step=1, label="Longest caption", info="in words")
                temperature = gr.Slider(
                    0, 2, search.temperature, step=0.05, label="Temperature",
                    info="0: beam search; above: sampling",
                )  # fmt: skip
                again = gr.Button("Sample again", visible=search.temperature > 0)
        settings = [shown, beam, length, temperature, sample]
        common: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model"}
        taken = upload.input(take, upload, [upload, shown], show_progress="hidden", **common)
        taken.success(caption, settings, columns, **common)
        for slider in (beam, length, temperature):
            slider.change(caption, settings, columns, trigger_mode="always_last", **common)
        temperature.change(lambda t: gr.Button(visible=t > 0), temperature, again, **common)
        again.click(lambda n: n + 1, sample, sample, **common).then(caption, settings, columns, **common)
    return page.queue(max_size=20, api_open=False)


def launch(page: Any, host: str, port: int) -> None:
    """Serve the page in a thread."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(_OwnHostAlone)]
    if _is_local(host):  # no page of another site gets here by a name that it lets resolve to this computer
        middleware.append(
            Middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1", "[::1]"])
        )
    page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=_LARGEST,
        state_session_capacity=_MOST_SESSIONS,
        theme=gr.themes.Default(primary_hue="blue", font="system-ui", font_mono="ui-monospace"),
        css=_CSS,
        app_kwargs={"middleware": middleware},
    )


class _OwnHostAlone:
    """Middleware that tells browsers to load nothing from other hosts."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_policy(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _captioned(captioner: Captioner, image: Image.Image, prepared: list[torch.Tensor], **search) -> str:
    [result] = captioner.caption_batch([(0, image, prepared)], captioner.options(**search))
    assert isinstance(result, Caption)  # it is an error only for an image that could not be prepared
    return hover_html(image, result)


def _as_html(message: object) -> str:
    """A message for gradio, which reads it as HTML."""
    return html.escape(one_line(message))


async def _uploaded(url_or_file_path: str | Path | None) -> str | None:
    """Gradio has checked that a path is that of an upload; but it has not checked an address."""
    if url_or_file_path is not None and is_address(str(url_or_file_path)):
        raise ValueError("addresses are not fetched")
    return None if url_or_file_path is None else str(url_or_file_path)


def _path_of(payload: Any) -> str | None:
    return payload.path if payload else None


def _remove(upload: Path) -> None:
    """Remove an upload and its folder, which has nothing else."""
    upload.unlink(missing_ok=True)
    if not any(upload.parent.iterdir()):
        upload.parent.rmdir()


def _require_free(host: str, port: int) -> None:
    """Raise a UserError if nothing can listen there. Gradio says so only later, and in more lines."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            if os.name == "posix":  # as servers do, so that a page that has just ended can be started again
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"nothing can listen on {host}, port {port} ({reason}); pass another --port or --host"
        ) from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # every network, this computer included
        return "localhost"
    return f"[{host}]" if ":" in host else host
