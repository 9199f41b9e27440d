"""A page that captions images in the browser, with onnxruntime-web: `export.py --format web`.

The page is the template web.html.j2 with its scripts, of which attention.js, and most of the style, are those
of captions_result.html. Its policy lets the browser contact no address but the one that the page came from.
"""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from outputs import OutputFolder
from reports.html import inserted, write_html
from reports.page import overlay_settings
from utils import UserError

_PACKAGE = "onnxruntime-web@1.30.0"
# The runtime for CPUs alone: the script of the page, the loader that it imports, and the program.
_RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEB_FILES = ("index.html", *_RUNTIME)
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src blob: data:"
)
_PATIENCE = 600  # seconds for npm


def require_npm() -> str:
    """The path of npm; raises UserError if it is not installed."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("--format web needs npm, with which it downloads onnxruntime-web; install Node.js")
    return npm


def write_runtime(outputs: OutputFolder, npm: str) -> None:
    """Write the files of onnxruntime-web, which npm downloads; raises UserError if it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [npm, "pack", _PACKAGE, "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise _no_package(f"no answer in {_PATIENCE} seconds") from None
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            raise _no_package(done.stderr.strip() or f"npm ended with status {done.returncode}")
        with tarfile.open(packed[0]) as package:
            for name in _RUNTIME:
                file = package.extractfile(f"package/dist/{name}")
                assert file is not None  # they are regular files of this version
                with file, outputs.writing(name) as temporary:
                    temporary.write_bytes(file.read())


def _no_package(reason: str) -> UserError:
    return UserError(f"npm pack {_PACKAGE}: {reason}; --format web needs it, so check the network")


def write_page(outputs: OutputFolder, attends: bool) -> None:
    """Write index.html. `attends`: whether the model's captions have attention."""
    write_html(
        outputs,
        "index.html",
        "web.html.j2",
        title="Captions",
        policy=_POLICY,
        settings=overlay_settings() if attends else None,
        css=inserted("page.css", "web.css"),
        script=inserted("attention.js", "resize.js", "search.js", "web.js"),
    )
