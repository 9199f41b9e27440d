"""Exported models: the search around their graphs finds the captions that the model's own search finds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxscript", reason="the packages of requirements-extra.txt are not installed")

import caption_onnx
from captioning import Captioner
from config import EncoderConfig
from data import transforms
from data.transforms import ImageTransform
from models.choices import NEVER
from models.decoders import DECODERS
from models.encoder import EncoderCNN
from models.exported import Graph, export_model, write_program
from models.model import CaptionModel, caption
from models.onnx_files import write_onnx
from models.search import SearchOptions
from tests.helpers import CPU, invent_statistics, small_decoder
from tests.script_helpers import ROOT, run

TRANSFORM = ImageTransform(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
NUM_WORDS = 11
# Each decoder with what is most difficult to export.
OPTIONS = {
    "attention": {"refine": 1},
    "dot_attention": {"layers": 2},
    "lstm": {"layers": 2},
    "transformer": {"layers": 2},
}
SEARCHES = [
    (5, SearchOptions(beam=3, max_length=6)),
    (1, SearchOptions(beam=1, max_length=4)),
    (2, SearchOptions(beam=9, max_length=3, length_penalty=0.0, exclude=[5])),  # more beams than words
]


def make_model(kind: str) -> CaptionModel:
    """A model whose weights are so large that its words are not all alike."""
    # Of a ResNet only what comes before its blocks, 8 x 8 cells: it is quick to export.
    encoder = EncoderCNN(EncoderConfig(name="resnet18", weights="none", layer="maxpool", image_size=32))
    invent_statistics(encoder)
    decoder = small_decoder(kind, encoder.dim, NUM_WORDS, **OPTIONS.get(kind, {}))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)
    return CaptionModel(encoder, decoder).eval()


def in_torch(graph: Graph, path: Path) -> caption_onnx.Graph:
    """The program, saved and loaded, as `caption_onnx` takes a graph: from named arrays to named arrays."""
    write_program(graph, path)
    assert str(ROOT).encode() not in path.read_bytes()
    # Tracing takes a single beam for another case, although the graph computes it.
    module = torch.export.load(path).module(check_guards=False)

    def compute(arrays):
        first, *state = (torch.from_numpy(arrays[name]) for name in graph.inputs)
        number = sum(name.startswith("image_") for name in graph.inputs)
        parts = (tuple(state[:number]), tuple(state[number:])) if graph.inputs[0] == "tokens" else ()
        return {name: x.numpy() for name, x in zip(graph.outputs, module(first, *parts), strict=True)}

    return compute


def in_onnxruntime(graph: Graph, path: Path) -> caption_onnx.Graph:
    write_onnx(graph, path)
    return caption_onnx.load_graph(path)


@torch.no_grad()
def assert_same_captions(model: CaptionModel, encoder: caption_onnx.Graph, step: caption_onnx.Graph) -> None:
    images = TRANSFORM.normalise(torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    for n, options in SEARCHES:
        settings = {**options.model_dump(), "never": list(NEVER), "excluded": options.exclude}
        found = caption_onnx.beam_search(encoder, step, PIXELS[:n], settings)
        own = caption([model], [model.grid(images[:n])], options)
        assert found.tokens.shape == own.tokens.shape
        is_token = own.tokens.numpy() > 0
        assert (found.tokens * is_token == own.tokens.numpy()).all()
        assert found.log_probs * is_token == pytest.approx(own.log_probs.numpy(), abs=1e-5)
        assert (found.alphas is None) == (own.attention is None) == (not model.decoder.attends)
        if own.attention is not None:
            assert found.alphas * is_token[..., None] == pytest.approx(own.attention.numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_is_exported_without_code_of_its_own(kind, tmp_path):
    model = make_model(kind)
    encoder, step = export_model(model, TRANSFORM)
    graphs = in_torch(encoder, tmp_path / "encoder.pt2"), in_torch(step, tmp_path / "step.pt2")
    assert_same_captions(model, *graphs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_runs_in_onnxruntime(kind, tmp_path):
    model = make_model(kind)
    encoder, step = export_model(model, TRANSFORM)
    graphs = in_onnxruntime(encoder, tmp_path / "encoder.onnx"), in_onnxruntime(step, tmp_path / "step.onnx")
    assert_same_captions(model, *graphs)


def alone(*arguments: object) -> subprocess.CompletedProcess:
    """Run Python without the folder of the project among the places of its modules."""
    return subprocess.run([sys.executable, "-I", *map(str, arguments)], capture_output=True, text=True)


def test_a_copied_file_captions_with_the_exported_folder_as_the_project_does(trained, tmp_path):
    assert "encoder.onnx: " in run(trained, "export", "run.device=cpu")
    for file in (trained / "outputs/onnx").iterdir():
        assert str(ROOT).encode() not in file.read_bytes()  # nor any other path of this machine
    copied, folder = tmp_path / "copied.py", shutil.copytree(trained / "outputs/onnx", tmp_path / "model")
    shutil.copy(ROOT / "caption_onnx.py", copied)
    (tmp_path / "no image.jpg").write_text("text")
    images = sorted((trained / "data/images").iterdir())[:20]
    done = alone(copied, folder, *images, tmp_path / "no image.jpg")
    captioner = Captioner.load(trained / "runs/tiny", compute=CPU)
    assert done.stdout.splitlines() == [
        f"{path}: {result.caption}" for path, result in zip(images, captioner(images), strict=True)
    ]
    [line] = done.stderr.splitlines()
    assert line.startswith(f"skipped: {tmp_path / 'no image.jpg'} cannot be read as an image")
    assert done.returncode == 1
    # What a program gets besides the text.
    [own] = captioner(images[:1])
    [caption] = caption_onnx.Model(folder)([caption_onnx.read_image(images[0])])
    assert caption.words == [word.text for word in own.words]
    assert caption.probabilities == pytest.approx([word.probability for word in own.words], abs=1e-5)
    assert caption.attention == pytest.approx(own.attention, abs=1e-5)


def test_programs_of_torch_are_written_with_the_settings_of_the_search(trained):
    text = run(trained, "export", "--format", "torch", "search.beam=4", "search.exclude=[white]")
    assert "step.pt2: " in text
    settings = json.loads((trained / "outputs/torch/model.json").read_text("utf-8"))
    assert settings["beam"] == 4
    assert [settings["words"][token] for token in settings["excluded"]] == ["white"]
    names = b"encoder.backbone.conv1.weight", b"decoder.embedding.weight"
    for file, found in (("encoder.pt2", [True, False]), ("step.pt2", [False, True])):
        content = (trained / "outputs/torch" / file).read_bytes()
        assert [name in content for name in names] == found  # the weights that it uses, and no others
    assert torch.export.load(trained / "outputs/torch/encoder.pt2").module()(torch.zeros(3, 32, 32, 3).byte())


def test_a_folder_without_a_model_is_one_line(tmp_path):
    done = alone(ROOT / "caption_onnx.py", tmp_path, "dog.jpg")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path} is not a model that export.py --format onnx wrote")
    assert done.returncode == 2


def test_what_is_missing_or_cannot_be_exported_is_one_line(trained, monkeypatch):
    text = run(trained, "export", "search.groups=2", status=2)
    assert "search.groups=2: exported models search without it; add search.groups=1" in text
    assert "search.rerank=cider: exported" in run(trained, "export", "search.rerank=cider", status=2)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    text = run(trained, "export", status=2)
    assert "--format onnx needs the package onnxscript: pip install -r requirements-extra.txt" in text


def write_images(folder: Path) -> list[Path]:
    """Images that have to be turned, put on white, scaled to 8 bits, or reduced."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 80, 4), dtype=np.uint8)
    rgb, exif = Image.fromarray(colours[..., :3]), Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(colours).save(folder / "transparent.png")
    rgb.quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(folder / "16 bits.png")
    Image.fromarray(colours[..., 0].astype(np.float32) / 7 - 3).save(folder / "numbers.tiff")
    Image.fromarray(colours[..., 0].astype(np.int32) * 90 - 5000).save(folder / "integers.tiff")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("large", [25_000_000, 1500])
def test_images_are_read_as_the_project_reads_them(tmp_path, monkeypatch, large):
    monkeypatch.setattr(transforms, "LARGE", large)
    monkeypatch.setattr(caption_onnx, "LARGE", large)
    paths = write_images(tmp_path)
    assert len(paths) == 7
    for path in paths:
        own, found = transforms.read_image(path), caption_onnx.read_image(path)
        assert found.mode == "RGB"
        assert (np.asarray(found) == np.asarray(own)).all(), path
