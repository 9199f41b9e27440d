"""One file is the model."""

import pytest
import torch
from torchvision.models import resnet18

from captioning import Captioner
from config import EncoderConfig
from models.checkpoint import save_checkpoint
from models.encoder import EncoderCNN
from models.model import CaptionModel, build_model, caption, pack_model
from models.search import SearchOptions
from tests.helpers import CPU, IMAGES, tiny
from utils import UserError

WORDS = ["<pad>", "<sos>", "<eos>", "<unk>", "a", "dog"]
TRANSFORM = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}


def save(tmp_path, config, model=None):
    model = model or build_model(config, len(WORDS))
    save_checkpoint(tmp_path / "best.pth", pack_model(model, config, WORDS, TRANSFORM))
    return model


def load(tmp_path, overrides=()) -> Captioner:
    return Captioner.load(tmp_path / "best.pth", overrides, CPU)


@pytest.mark.parametrize(
    "decoder", [{"kind": "attention"}, {"kind": "lstm", "layers": 2}, {"tie_embeddings": False}]
)
def test_a_checkpoint_is_the_whole_model(tmp_path, decoder):
    config = tiny(tmp_path, decoder=decoder)
    model = save(tmp_path, config).eval()
    loaded = load(tmp_path)
    assert loaded.vocabulary.words == WORDS
    assert loaded.transform.as_dict() == TRANSFORM
    assert loaded.config == config
    options = SearchOptions(beam=3, max_length=5)
    own, theirs = (caption([m], [m.grid(IMAGES)], options) for m in (model, loaded.model))
    assert torch.equal(own.tokens, theirs.tokens)


def downloads(monkeypatch, seed):
    """torchvision's download replaced by random weights of a seed."""

    def fake(entry, **kwargs):
        torch.manual_seed(seed)
        return resnet18().state_dict()

    monkeypatch.setattr("torchvision.models.ResNet18_Weights.get_state_dict", fake)


def test_a_frozen_encoder_with_torchvisions_weights_is_recorded_by_name(tmp_path, monkeypatch):
    downloads(monkeypatch, 1)
    config = tiny(tmp_path, encoder={"weights": "IMAGENET1K_V1"})
    model = save(tmp_path, config).eval()
    kept = torch.load(tmp_path / "best.pth", weights_only=True)["model"]
    assert {key.split(".")[0] for key in kept} == {"decoder"}
    loaded = load(tmp_path)
    assert torch.equal(loaded.model.encoder(IMAGES), model.encoder(IMAGES))


def stores_the_encoder(path) -> bool:
    return any(key.startswith("encoder.") for key in torch.load(path, weights_only=True)["model"])


def test_the_encoder_is_stored_exactly_if_its_weights_are_not_those_of_the_name(tmp_path, monkeypatch):
    """Whether it is trained is not asked: a frozen one may come from a run that trained it."""
    downloads(monkeypatch, 1)
    for fine_tune in ("none", "layer1"):
        config = tiny(tmp_path, encoder={"weights": "IMAGENET1K_V1", "fine_tune": fine_tune})
        model = save(tmp_path, config)
        assert not stores_the_encoder(tmp_path / "best.pth")
        # The moving average of the decoder, with the same encoder, is a model of its own.
        save(tmp_path, config, CaptionModel(model.encoder, model.decoder))
        assert not stores_the_encoder(tmp_path / "best.pth")
        assert load(tmp_path).model.encoder.digest() == model.encoder.digest()

        next(model.encoder.parameters()).data += 1
        save(tmp_path, config, model)
        assert stores_the_encoder(tmp_path / "best.pth")
        assert load(tmp_path).model.encoder.digest() == model.encoder.digest()


def test_other_weights_under_the_same_name_are_noticed(tmp_path, monkeypatch):
    downloads(monkeypatch, 1)
    save(tmp_path, tiny(tmp_path, encoder={"weights": "IMAGENET1K_V1"}))
    downloads(monkeypatch, 2)
    with pytest.raises(UserError, match="not those it was trained with"):
        load(tmp_path)


@pytest.mark.parametrize("fine_tune", ["none", "layer1"])
def test_weights_from_a_file_and_fine_tuned_ones_are_stored(tmp_path, monkeypatch, fine_tune):
    downloads(monkeypatch, 1)
    weights = tmp_path / "w.pth"
    torch.save(EncoderCNN(EncoderConfig(name="resnet18", weights="none")).backbone.state_dict(), weights)
    name = str(weights) if fine_tune == "none" else "IMAGENET1K_V1"
    config = tiny(tmp_path, encoder={"weights": name, "fine_tune": fine_tune})
    model = build_model(config, len(WORDS)).eval()
    if fine_tune != "none":
        next(model.encoder.parameters()).data += 1
    save(tmp_path, config, model)
    weights.unlink()
    downloads(monkeypatch, 2)
    loaded = load(tmp_path)
    assert torch.equal(loaded.model.encoder(IMAGES), model.encoder(IMAGES))
    # Saved again, by a resumed run say, it is still the whole model though the file is gone.
    save(tmp_path, loaded.config, loaded.model)
    again = load(tmp_path)
    assert torch.equal(again.model.encoder(IMAGES), model.encoder(IMAGES))


def test_search_may_be_changed_after_training_but_not_the_model(tmp_path):
    save(tmp_path, tiny(tmp_path))
    assert load(tmp_path, ["search.beam=7"]).config.search.beam == 7
    with pytest.raises(UserError, match="part of the model"):
        load(tmp_path, ["decoder.hidden_dim=32"])


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, tiny(tmp_path))
    before = (tmp_path / "best.pth").read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(tmp_path / "best.pth", {"format": 1})
    assert (tmp_path / "best.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def test_cached_features_and_images_give_the_same_captions(tmp_path):
    model = build_model(tiny(tmp_path), len(WORDS)).eval()
    with torch.no_grad():
        grid = model.encoder(IMAGES)
    options = SearchOptions(beam=2, max_length=5)
    own, cached = (caption([model], [model.grid(x)], options) for x in (IMAGES, grid))
    assert torch.equal(own.tokens, cached.tokens)
    assert model.grid(grid.half()).dtype is torch.float32  # the cache holds float16


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("decoder", "hidden_dim", 65_536, r"decoder\.hidden_dim"),
        ("decoder", "embed_dim", 65_536, r"decoder\.embed_dim"),
        ("encoder", "image_size", 4_096, r"encoder\.image_size=\d+ needs .* of memory or more.*lower it"),
        ("encoder", "grid", 1_024, r"encoder\.grid=\d+ needs"),
    ],
)
def test_a_model_beyond_the_memory_is_refused_with_the_key_to_lower(
    tmp_path, monkeypatch, section, key, value, message
):
    monkeypatch.setattr("compute.total_memory", lambda device: 2**23)
    with pytest.raises(UserError, match=message):
        build_model(tiny(tmp_path, **{section: {key: value}}), len(WORDS))
