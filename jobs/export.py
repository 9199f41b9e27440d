"""The job of export.py: a checkpoint in, a folder with the model's two graphs and its settings out."""

from startup import one_line

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from captioning import Captioner
from compute import Compute
from config_search import SearchConfig
from files import readable_size
from models.choices import NEVER
from models.exported import Graph, export_model, write_program
from models.onnx_files import require_onnx, write_onnx
from outputs import OutputFolder
from reports.web import WEB_FILES, require_npm, write_page, write_runtime
from utils import UserError

_FORMAT = 1  # of the folder
_SEARCH = ("beam", "max_length", "length_penalty")  # keys of `search` that are written as they are
_NEXT = {
    "onnx": "python caption_onnx.py {} IMAGES",
    "torch": "docs/export.md says how to load it",
    "web": "python -m http.server --bind localhost --directory {}, and open http://localhost:8000",
}


def export_files(args: argparse.Namespace) -> None:
    """Write the model; prints what was written."""
    suffix, write, npm = "pt2", write_program, ""
    if args.format != "torch":
        require_onnx(f"--format {args.format}")
        suffix, write = "onnx", partial(write_onnx, int8=args.int8)
    if args.format == "web":
        npm = require_npm()
    outputs = OutputFolder(args.output)
    names = [f"encoder.{suffix}", f"step.{suffix}"]
    outputs.check([*names, "model.json", *(WEB_FILES if npm else ())])
    captioner = Captioner.load(args.checkpoint, args.overrides, Compute.choose("cpu", "float32"))
    settings = _settings(captioner)
    if npm:
        print("downloading onnxruntime-web with npm …", flush=True)
        write_runtime(outputs, npm)
    print("exporting the model …", flush=True)
    graphs = export_model(captioner.model, captioner.transform)
    for name, graph in zip(names, graphs, strict=True):
        _write(outputs, name, graph, write)
    outputs.write_text("model.json", json.dumps(settings, ensure_ascii=False) + "\n")
    if npm:
        write_page(outputs, captioner.attends)
    print(one_line(f"wrote {args.output}; next: {_NEXT[args.format].format(args.output)}"))


def _settings(captioner: Captioner) -> dict:
    """What is to be known besides the graphs: how to resize an image, and how to search for its captions.

    Raises UserError for what only the search of this project can do.
    """
    search = captioner.config.search
    if search.rerank == "neighbours":  # which needs wide beams
        beam = SearchConfig.model_fields["beam"].default
        print(
            f"search.rerank=neighbours is left out, and the default is search.beam={beam}; for another one, "
            "add search.rerank=none search.beam=K"
        )
        search = search.model_copy(update={"rerank": "none", "beam": beam})
    for key, field in SearchConfig.model_fields.items():
        value = getattr(search, key)
        # Some keys change nothing unless another one, which is refused, is set.
        if key in (*_SEARCH, "exclude", "top_k", "top_p", "diversity"):
            continue
        if value != field.default:
            raise UserError(
                f"search.{key}={value}: exported models search without it; add search.{key}={field.default}"
            )
    return {
        "format": _FORMAT,
        "size": captioner.transform.size,
        "interpolation": captioner.transform.interpolation,
        "words": captioner.vocabulary.words,
        "never": list(NEVER),
        "excluded": captioner.options().exclude,
        **{key: getattr(search, key) for key in _SEARCH},
    }


def _write(outputs: OutputFolder, name: str, graph: Graph, write: Callable[[Graph, Path], None]) -> None:
    with outputs.writing(name) as temporary:
        write(graph, temporary)
        size = temporary.stat().st_size
    print(one_line(f"{outputs.folder / name}: {readable_size(size)}"), flush=True)
