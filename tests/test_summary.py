"""The summary of a model is right, and its figure can be drawn."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from torchvision.models import get_model_weights

from data.vocab import Vocabulary
from models.__main__ import ASSUMED_WORDS, main
from models.model import build_model
from models.summary import summarise, total
from reports.architecture import draw_architecture, short
from tests.helpers import tiny
from utils import UserError

WORDS = 50
DECODERS = {
    "attention": {},
    "untied": {"tie_embeddings": False},
    "lstm": {"kind": "lstm", "layers": 2},
    "frozen": {"kind": "lstm", "embeddings": "vectors.txt", "freeze_embeddings": True},
    "one_hot": {"embeddings": "one_hot", "tie_embeddings": False},
    "one_hot lstm": {"kind": "lstm", "embeddings": "one_hot", "tie_embeddings": False},
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fine_tune", ["none", "layer1", "all"])
def test_the_rows_add_up_to_the_model(tmp_path, decoder, fine_tune):
    model = build_model(tiny(tmp_path, decoder=DECODERS[decoder], encoder={"fine_tune": fine_tune}), WORDS)
    parameters = list(model.parameters())
    summary = summarise(model, 64)
    assert summary.parameters == sum(p.numel() for p in parameters)
    assert summary.trained == sum(p.numel() for p in parameters if p.requires_grad)


def test_multiply_adds_of_an_image_are_those_torchvision_states(tmp_path):
    config = tiny(tmp_path, encoder={"name": "resnet18", "layer": "last", "image_size": 224})
    summary = summarise(build_model(config, WORDS), 224)
    billions = get_model_weights("resnet18").DEFAULT.meta["_ops"]
    assert total(summary.encoder) / 1e9 == pytest.approx(billions, rel=1e-3)  # the classifier is the rest
    shapes = {row.name: row.shape for row in summary.encoder}
    assert shapes["encoder.backbone.conv1"] == (64, 112, 112)
    assert shapes["encoder.backbone.layer4"] == (512, 7, 7)
    assert summary.grid == (49, 512)


def test_multiply_adds_of_a_word_are_those_worked_out_by_hand(tmp_path):
    h, e, a, cells = 12, 10, 7, 16 * 16
    sizes = {"hidden_dim": h, "embed_dim": e, "attention_dim": a}
    summary = summarise(build_model(tiny(tmp_path, decoder=sizes), WORDS), 64)
    attention = h * a + cells * a + cells * h  # query, scores, weighted sum
    lstm = 4 * h * (e + h + h)
    assert summary.per_word == attention + h * h + lstm + (2 * h + e) * h + h * e + e * WORDS
    start = cells * (64 * h + h * a) + h * 2 * h
    assert summary.per_image == total(summary.encoder) + start

    sizes = {"kind": "lstm", "layers": 2, "hidden_dim": h, "embed_dim": e}
    summary = summarise(build_model(tiny(tmp_path, decoder=sizes), WORDS), 64)
    lstm = 4 * h * (e + h) + 4 * h * (h + h)
    assert summary.per_word == lstm + h * e + e * WORDS
    assert summary.per_image == total(summary.encoder) + 64 * e + lstm


@pytest.mark.parametrize("decoder", ["attention", "lstm"])
def test_the_figure_is_drawn_whole_and_the_same_each_time(tmp_path, decoder):
    config = tiny(tmp_path, decoder=DECODERS[decoder])
    summary = summarise(build_model(config, WORDS), 32)
    draw_architecture(summary, config, WORDS, 32, tmp_path / "model.png")
    sheet = np.asarray(Image.open(tmp_path / "model.png").convert("L"))
    assert sheet.min() < 60
    assert all((edge > 250).all() for edge in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]))
    for name in ("a.svg", "b.svg"):
        draw_architecture(summary, config, WORDS, 32, tmp_path / name)
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    config = tiny(tmp_path)
    summary = summarise(build_model(config, WORDS), 32)
    with pytest.raises(UserError, match=r"model\.gif: the name must end in"):
        draw_architecture(summary, config, WORDS, 32, tmp_path / "model.gif")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        draw_architecture(summary, config, WORDS, 32, tmp_path / "file" / "model.png")


def test_numbers_are_short():
    assert [short(n) for n in (0, 999, 1024, 23_508_032, 4_087_136_256)] == [
        "0", "999", "1.02 k", "23.5 M", "4.09 G",
    ]  # fmt: skip


def run(monkeypatch, capsys, folder, *arguments) -> str:
    monkeypatch.chdir(folder)
    small = ["encoder.name=resnet18", "encoder.layer=layer1", "encoder.image_size=32", "run.name=new"]
    monkeypatch.setattr(sys, "argv", ["models", *arguments, *small])
    main()
    return capsys.readouterr().out


def test_python_m_models_needs_neither_data_nor_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", None)
    text = run(monkeypatch, capsys, tmp_path, "encoder.weights=IMAGENET1K_V1")
    assert f"{ASSUMED_WORDS:,} words assumed" in text
    assert "  layer1 " in text
    assert "multiply-adds per image" in text
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"model.png", "model.svg"}


def test_the_vocabulary_of_the_run_or_of_the_captions_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("models.__main__.draw_architecture", lambda *_: None)
    words = ["<pad>", "<sos>", "<eos>", "<unk>", "dog", "cat"]
    for folder, n in (("archive", 5), ("runs/new", 6)):
        Vocabulary(words[:n]).save(tmp_path / folder / "vocab.json")
        assert f"{n} words: {folder}/vocab.json" in run(monkeypatch, capsys, tmp_path)
    assert "words:" not in run(monkeypatch, capsys, tmp_path, "--words", "7")
    with pytest.raises(UserError, match="--words 3: a vocabulary has"):
        run(monkeypatch, capsys, tmp_path, "--words", "3")
