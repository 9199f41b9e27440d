"""What a training starts from: nothing, or another run's model."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torchvision.models import resnet18

from captioning import Captioner
from config_reading import make_config
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from models.checkpoint import load_checkpoint, save_checkpoint
from models.model import build_model
from tests.helpers import CPU, IMAGES, tiny
from training.start import check, make_captioner, with_model_of
from utils import UserError

WORDS = [*SPECIAL, "a", "dog"]
TABLE = pd.DataFrame({"image": ["a.png"], "caption": ["a dog"], "split": ["train"]})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The best.pth of a run, whose model differs from every default."""
    config = tiny(tmp_path, decoder={"kind": "lstm", "layers": 2, "hidden_dim": 6})
    transform = ImageTransform(32, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    captioner = Captioner(build_model(config, len(WORDS)), Vocabulary(WORDS), transform, config, CPU)
    save_checkpoint(tmp_path / "best.pth", captioner.checkpoint())
    return tmp_path / "best.pth"


def start(source: Path, **sections) -> Captioner:
    """The captioner of a configuration that says nothing of the model but what is in `sections`."""
    bare = {"run": {"device": "cpu", "precision": "float32"}, "train": {"init_from": str(source)}}
    config, checkpoint = with_model_of(make_config(bare | sections), source)
    return make_captioner(config, checkpoint, TABLE, CPU)


def test_the_model_the_words_and_the_transform_come_from_the_checkpoint(source):
    first, second = Captioner.load(source, compute=CPU), start(source)
    assert second.config.decoder == first.config.decoder
    assert second.config.encoder == first.config.encoder
    assert second.vocabulary.words == WORDS
    assert second.transform == first.transform
    options = second.options(beam=2, max_length=5)
    assert torch.equal(first.search(IMAGES, options).tokens, second.search(IMAGES, options).tokens)


def test_the_progress_of_the_first_run_is_left_behind(source):
    content = torch.load(source, weights_only=True)
    save_checkpoint(source, {**content, "training": {"epoch": 7}})
    assert load_checkpoint(source).training == {"epoch": 7}
    _, checkpoint = with_model_of(make_config({}), source)
    assert checkpoint.training is None


@pytest.mark.parametrize(
    ("section", "keys"),
    [("decoder", {"hidden_dim": 8}), ("decoder", {"kind": "attention"}), ("encoder", {"name": "resnet34"})],
)
def test_a_key_that_contradicts_the_checkpoint_is_refused_by_name(source, section, keys):
    [(name, value)] = keys.items()
    with pytest.raises(UserError, match=rf"{section}\.{name}={value} contradicts train\.init_from=") as error:
        start(source, **{section: keys})
    assert f"remove {section}.{name}" in str(error.value)


def test_a_key_that_repeats_the_checkpoint_is_allowed(source):
    assert start(source, decoder={"hidden_dim": 6, "layers": 2}).config.decoder.hidden_dim == 6
    assert start(source, encoder={"image_size": 32}).config.encoder.image_size == 32


def test_images_have_the_size_of_the_checkpoint(source):
    """What counts is the size of its transform, also where a configuration leaves it to the weights."""
    content = torch.load(source, weights_only=True)
    content["config"]["encoder"]["image_size"] = None
    content["transform"]["size"] = 224
    save_checkpoint(source, content)
    config, _ = with_model_of(make_config({"encoder": {"image_size": 224}}), source)
    assert config.encoder.image_size == 224
    assert with_model_of(make_config({"encoder": {"image_size": None}}), source)
    with pytest.raises(UserError, match=r"encoder\.image_size=64 contradicts train\.init_from=.* 224"):
        with_model_of(make_config({"encoder": {"image_size": 64}}), source)


def test_more_of_the_same_encoder_may_be_trained(source):
    captioner = start(source, encoder={"fine_tune": "layer1"}, decoder={"dropout": 0.1})
    assert captioner.config.encoder.fine_tune == "layer1"
    assert captioner.config.decoder.dropout == 0.1
    trained = [name for name, p in captioner.model.encoder.named_parameters() if p.requires_grad]
    assert trained
    assert all("layer1" in name for name in trained)


def test_an_encoder_that_was_trained_before_stays_in_the_checkpoint_when_it_is_frozen(tmp_path, monkeypatch):
    """Frozen, and with weights that torchvision has by name: but it no longer has these."""
    monkeypatch.setattr(
        "torchvision.models.ResNet18_Weights.get_state_dict", lambda entry, **kwargs: resnet18().state_dict()
    )
    config = tiny(tmp_path, encoder={"weights": "IMAGENET1K_V1", "fine_tune": "layer1"})
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tuned = Captioner(build_model(config, len(WORDS)), Vocabulary(WORDS), transform, config, CPU)
    next(tuned.model.encoder.parameters()).data += 1
    save_checkpoint(tmp_path / "tuned.pth", tuned.checkpoint())
    frozen = start(tmp_path / "tuned.pth", encoder={"fine_tune": "none"})
    save_checkpoint(tmp_path / "frozen.pth", frozen.checkpoint())
    again = Captioner.load(tmp_path / "frozen.pth", compute=CPU)
    assert torch.equal(again.model.eval().encoder(IMAGES), tuned.model.eval().encoder(IMAGES))


def test_a_frozen_encoder_without_weights_is_warned_about(tmp_path, capsys):
    make_captioner(tiny(tmp_path), None, TABLE, CPU)
    assert "the encoder is random and never trained" in capsys.readouterr().out
    make_captioner(tiny(tmp_path, encoder={"fine_tune": "all"}), None, TABLE, CPU)
    assert "random" not in capsys.readouterr().out


def test_views_fall_back_to_1_for_a_trained_encoder_and_say_so(tmp_path, capsys):
    config = tiny(tmp_path, encoder={"fine_tune": "all"}, features={"views": 4})
    assert config.views == 1
    make_captioner(config, None, TABLE, CPU)
    assert "features.views=4 is ignored" in capsys.readouterr().out
    make_captioner(tiny(tmp_path, features={"views": 4}, data={"augment": ["crop"]}), None, TABLE, CPU)
    assert "ignored" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"objective": "self_critcal"}, "did you mean 'self_critical'"),
        ({"objective": "self_critical"}, r"set train\.init_from"),
        ({"objective": "actor_critic"}, r"set train\.init_from"),
    ],
)
def test_a_training_that_cannot_start_is_refused_at_once(tmp_path, train, message):
    with pytest.raises(UserError, match=message):
        check(tiny(tmp_path, train=train))


def test_rewards_and_samples_have_to_make_sense(tmp_path):
    learns = {"objective": "self_critical", "init_from": "best.pth"}
    with pytest.raises(UserError, match="nothing to reward"):
        check(tiny(tmp_path, train=learns, rl={"cider": 0.0}))
    with pytest.raises(UserError, match="2 samples or more"):
        check(tiny(tmp_path, train=learns, rl={"samples": 1}))
    check(tiny(tmp_path, train=learns, rl={"samples": 1, "baseline": "greedy"}))


@pytest.mark.parametrize(
    ("name", "mend"),
    [("resnet5", "did you mean 'resnet50'"), ("fcn_resnet50", "did you mean"), ("cnn", "try resnet50")],
)
def test_an_encoder_that_torchvision_does_not_have_is_refused(tmp_path, name, mend):
    with pytest.raises(UserError, match=rf"encoder\.name={name}: .*no such classification model; {mend}"):
        check(tiny(tmp_path, encoder={"name": name}))


def test_an_unknown_decoder_is_answered_with_the_right_names(tmp_path):
    with pytest.raises(UserError, match=r"decoder\.kind=atention: .*did you mean 'attention'"):
        check(tiny(tmp_path, decoder={"kind": "atention"}))


def test_an_error_in_a_checkpoint_names_its_file(source, tmp_path):
    values = {"run": {"folder": str(tmp_path), "name": "r"}, "train": {"init_from": str(source)}}
    config, checkpoint = with_model_of(make_config(values), source)
    checkpoint = replace(checkpoint, encoder_digest="another")
    with pytest.raises(UserError, match=re.escape(f"{source}: the encoder's weights")):
        make_captioner(config, checkpoint, TABLE, CPU)
