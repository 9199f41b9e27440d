"""The configuration says what is wrong, and where."""

from pathlib import Path

import pytest

from config import Config
from config_reading import all_keys, keys_help, load_config, make_config
from utils import UserError

CONFIGS = [Path("config.yaml"), *sorted(Path("configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_configuration_of_the_project_is_valid(path):
    load_config(Path(__file__).parents[1] / path)


def test_there_are_configurations_to_test():
    assert (Path(__file__).parents[1] / "configs" / "sample.yaml").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.ephocs=3", r"unknown key 'train\.ephocs'; did you mean 'train\.epochs'"),
        ("trian.epochs=3", r"unknown section 'trian'; did you mean 'train'"),
        ("train.epochs=many", r"train\.epochs='many': .*integer.*\(passes over the training images\)"),
        ("train.epochs=0", r"train\.epochs=0: .*greater than or equal to 1"),
        ("data.captions=[]", r"data\.captions=\[\]: .*at least 1 item"),
        ("data.captions={a: 1}", r"data\.captions=.*not a valid path"),
        ("data.max_bad_rows=5", r"data\.max_bad_rows=5: .*less than or equal to 1"),
        ("epochs=3", r"'epochs=3' is not an override"),
        ("train.lr", r"'train\.lr' is not an override"),
        ("run.name=../x", r"run\.name"),
    ],
)
def test_an_error_names_the_key_the_value_and_the_fix(override, message):
    with pytest.raises(UserError, match=message):
        make_config({}, [override])


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path):
    with pytest.raises(UserError, match="no configuration at"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("train: [1, 2")
    with pytest.raises(UserError, match=r"a\.yaml is not valid YAML"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("epochs: 3")
    with pytest.raises(UserError, match="expected sections"):
        load_config(tmp_path / "a.yaml")


def test_overrides_win_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 3, lr: 1e-3}")
    config = load_config(tmp_path / "a.yaml", ["train.epochs=5", "run.name=x"])
    assert (config.train.epochs, config.train.lr, config.run.name) == (5, 1e-3, "x")


def test_a_configuration_survives_the_checkpoint():
    config = make_config({}, ["train.init_from=a/b.pth", "data.augment=[flip]"])
    assert make_config(config.as_dict()) == config


def test_every_key_is_described_and_in_the_help():
    text = keys_help()
    for key, field in all_keys().items():
        assert field.description, key
        assert f"{key} " in text


def test_every_key_is_read_somewhere():
    """An option that nothing reads is a lie: its name occurs outside config.py."""
    root = Path(__file__).parents[1]
    rooms = ("data", "models", "training")
    files = [*root.glob("*.py"), *(path for room in rooms for path in (root / room).rglob("*.py"))]
    code = "\n".join(path.read_text() for path in files if path.name != "config.py")
    whole = {
        f"search.{name}" for name in Config.model_fields["search"].annotation.model_fields
    }  # SearchOptions
    for key in set(all_keys()) - whole:
        assert f".{key.split('.')[1]}" in code, key


@pytest.mark.parametrize(
    ("name", "mend"),
    [("resnet5", "did you mean 'resnet50'"), ("fcn_resnet50", "did you mean"), ("cnn", "try resnet50")],
)
def test_an_encoder_that_torchvision_does_not_have_is_refused(name, mend):
    with pytest.raises(UserError, match=rf"encoder\.name='{name}': .*no such classification model; {mend}"):
        make_config({"encoder": {"name": name}})


def test_captions_are_one_file_or_a_list_of_files():
    for override, files in (("a.json", ["a.json"]), ("[a.json,b.json]", ["a.json", "b.json"])):
        config = make_config({}, [f"data.captions={override}"])
        assert config.data.captions == [Path(file) for file in files]
        assert make_config(config.as_dict()) == config
