"""The summary of a model, and the script that prints it."""

import sys

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from data.vocab import Vocabulary
from jobs.show_model import ASSUMED_VOCAB_SIZE
from models.model import build_model
from models.summary import summarise, total
from show_model import main
from tests.helpers import tiny
from utils import UserError

VOCAB_SIZE = 50
DECODERS = {
    "attention": {},
    "dot_attention": {"attention": "dot", "layers": 2},
    "untied": {"tie_embeddings": False},
    "lstm": {"kind": "lstm", "layers": 2},
    "frozen": {"kind": "lstm", "embeddings": "vectors.txt", "freeze_embeddings": True},
    "one_hot": {"embeddings": "one_hot", "tie_embeddings": False},
    "one_hot lstm": {"kind": "lstm", "embeddings": "one_hot", "tie_embeddings": False},
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fine_tune", ["none", "layer1", "all"])
def test_the_rows_add_up_to_the_model(tmp_path, decoder, fine_tune):
    model = build_model(
        tiny(tmp_path, decoder=DECODERS[decoder], encoder={"fine_tune": fine_tune}), VOCAB_SIZE
    )
    parameters = list(model.parameters())
    summary = summarise(model, 64)
    assert summary.parameters == sum(p.numel() for p in parameters)
    assert summary.trained == sum(p.numel() for p in parameters if p.requires_grad)


def test_multiply_adds_of_an_image_are_those_torchvision_states(tmp_path):
    config = tiny(tmp_path, encoder={"name": "resnet18", "layer": "last", "image_size": 224})
    summary = summarise(build_model(config, VOCAB_SIZE), 224)
    billions = get_model_weights("resnet18").DEFAULT.meta["_ops"]
    assert total(summary.encoder) / 1e9 == pytest.approx(billions, rel=1e-3)  # the classifier is the rest
    shapes = {row.name: row.shape for row in summary.encoder}
    assert shapes["encoder.backbone.conv1"] == (64, 112, 112)
    assert shapes["encoder.backbone.layer4"] == (512, 7, 7)
    assert summary.grid == (49, 512)


def test_multiply_adds_of_a_word_are_those_worked_out_by_hand(tmp_path):
    h, e, a, cells = 12, 10, 7, 16 * 16
    sizes = {"hidden_dim": h, "embed_dim": e, "attention_dim": a}
    summary = summarise(build_model(tiny(tmp_path, decoder=sizes), VOCAB_SIZE), 64)
    attention = h * a + cells * a + cells * h  # query, scores, weighted sum
    lstm = 4 * h * (e + h + h)
    assert summary.per_word == attention + h * h + lstm + (2 * h + e) * h + h * e + e * VOCAB_SIZE
    start = cells * (64 * h + h * a) + h * 2 * h
    assert summary.per_image == total(summary.encoder) + start

    sizes = {"kind": "lstm", "layers": 2, "hidden_dim": h, "embed_dim": e}
    summary = summarise(build_model(tiny(tmp_path, decoder=sizes), VOCAB_SIZE), 64)
    lstm = 4 * h * (e + h) + 4 * h * (h + h)
    assert summary.per_word == lstm + h * e + e * VOCAB_SIZE
    assert summary.per_image == total(summary.encoder) + 64 * e + lstm


def stage_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The shape that each module of torchvision's own model returns for one image of 224 pixels a side."""
    weights = {"init_weights": False} if name == "googlenet" else {}
    model, shapes = get_model(name, **weights).eval().to("meta"), {}
    for module_name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, x, name=module_name: shapes.update({name: x.shape[1:]}))
    with torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    return shapes


@pytest.mark.parametrize(
    ("name", "layer", "maps"),
    [
        pytest.param(
            "maxvit_t", "blocks.1", [(64, 112), (64, 56), (128, 28)], marks=pytest.mark.slow
        ),  # windows
        ("swin_t", "features.3", [(96, 56), (192, 28)]),  # channels last
        ("swin_v2_t", "features.3", [(96, 56), (192, 28)]),  # a stage begins with a table of positions
        ("googlenet", "inception4a", [(64, 112), (192, 56), (480, 28), (512, 14)]),  # branches are joined
    ],
)
def test_stages_have_the_shapes_of_torchvisions_own_modules(tmp_path, name, layer, maps):
    config = tiny(tmp_path, encoder={"name": name, "layer": layer, "image_size": 224})
    summary, expected = summarise(build_model(config, VOCAB_SIZE), 224), stage_shapes(name)
    assert len(summary.encoder) >= 4
    for row in summary.encoder:
        assert row.shape == expected[row.name.removeprefix("encoder.backbone.")], row.name
    assert [(one.channels, one.side) for one in summary.maps] == maps
    assert sum(len(one.rows) for one in summary.maps) == len(summary.encoder)


def test_tokens_of_a_transformer_are_a_map_without_the_class_token(tmp_path):
    config = tiny(tmp_path, encoder={"name": "vit_b_16", "layer": "last", "image_size": 64})
    summary = summarise(build_model(config, VOCAB_SIZE), 64)
    assert [(one.channels, one.side) for one in summary.maps] == [(768, 4)]
    assert summary.grid == (16, 768)


# --- the script ---


def run(monkeypatch, capsys, folder, *arguments) -> str:
    monkeypatch.chdir(folder)
    small = ["encoder.name=resnet18", "encoder.layer=layer1", "encoder.image_size=32", "run.name=new"]
    monkeypatch.setattr(sys, "argv", ["show_model.py", *arguments, *small])
    main()
    return capsys.readouterr().out


def test_show_model_needs_neither_data_nor_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", None)
    text = run(monkeypatch, capsys, tmp_path, "encoder.weights=IMAGENET1K_V1")
    assert f"{ASSUMED_VOCAB_SIZE:,} words assumed" in text
    assert "  layer1 " in text
    assert "multiply-adds per image" in text
    assert {path.name for path in (tmp_path / "outputs").glob("[!.]*")} == {"model.png", "model.svg"}


def test_the_vocabulary_of_the_run_or_of_the_captions_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jobs.show_model.draw_architecture", lambda *_: None)
    words = ["<pad>", "<sos>", "<eos>", "<unk>", "dog", "cat"]
    for folder, n in (("archive", 5), ("runs/new", 6)):
        Vocabulary(words[:n]).save(tmp_path / folder / "vocab.json")
        assert f"{n} words: {folder}/vocab.json" in run(monkeypatch, capsys, tmp_path)
    assert "words:" not in run(monkeypatch, capsys, tmp_path, "--vocab-size", "7")
    with pytest.raises(UserError, match="--vocab-size 3: a vocabulary has"):
        run(monkeypatch, capsys, tmp_path, "--vocab-size", "3")
