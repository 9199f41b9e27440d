"""The configuration says what is wrong, and where."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import Config
from config_reading import all_keys, keys_help, load_config, make_config
from utils import UserError
from yaml_reading import read_yaml

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
        ("data.captions={a: 1}", r"data\.captions=.*not a valid path \(captions file"),
        ("data.max_bad_rows=5", r"data\.max_bad_rows=5: .*less than or equal to 1"),
        ("epochs=3", r"'epochs=3' is not an override"),
        ("train.lr", r"'train\.lr' is not an override"),
        ("run.name=../x", r"run\.name"),
        ("run.name=.", r"run\.name='\.': .*pattern"),
        ("run.name=..", r"run\.name='\.\.': .*pattern"),
        ("run.name=...", r"run\.name='\.\.\.': .*pattern"),
        ("run.name=-x", r"run\.name='-x': .*pattern"),
        ("run.name=" + "x" * 300, r"run\.name='xxx.*longer than a path"),
        ("run.name=", r"run\.name=None: .*string"),
        ("run.name=''", r"run\.name='': .*at least 1 character"),
        ("train.lr=.inf", r"train\.lr=inf: .*finite"),
        ("train.lr=.nan", r"train\.lr=nan: .*finite"),
        ("train.lr=1.0e+400", r"train\.lr=inf: .*finite"),
        ("train.epochs=.inf", r"train\.epochs=inf: .*finite"),
        ("train.lr=true", r"train\.lr=True: true and false .*are no value"),
        ("train.epochs=yes", r"train\.epochs=True: true and false .*are no value"),
        ("encoder.grid=false", r"encoder\.grid=False: true and false .*are no value"),
        ("train.epochs=2020-13-45", r"train\.epochs='2020-13-45': .*integer"),
        ("train.epochs=2020-01-01", r"train\.epochs='2020-01-01': .*integer"),
        ("train.epochs=" + "9" * 5000, "the value is not valid YAML"),
        ("train.epochs=0x" + "f" * 5000, r"train\.epochs=a number of thousands of digits: "),
        ("train.lr=0x" + "f" * 5000, r"train\.lr=a number of thousands of digits: "),
        ("train.epochs=0b_", "the value is not valid YAML"),
        ("train.epochs=" + "[" * 600, "the value is not valid YAML"),
        ("train.epochs=!!float x", "the value is not valid YAML"),
        ("train.epochs=!!timestamp x", "the value is not valid YAML"),
        ("train.epochs=!!python/name:os.system", "the value is not valid YAML"),
        ("train.epochs={a: 1, a: 2}", "the value is not valid YAML"),
        ("train.epochs=&a [*a]", "the value is not valid YAML"),
        ('data.captions=["a\\0b.csv"]', r"data\.captions=.*control characters"),
        ("data.images=a\0b", r"data\.images='a\\x00b': .*control characters"),
        ("data.images=\x1b[2J", r"data\.images='\\x1b\[2J': .*control characters"),
        ("data.images=a\udcff", r"data\.images='a\\udcff': .*not valid Unicode"),
        ("data.images=" + "a/" * 5000, r"data\.images='a/a.*longer than a path"),
        ("data.images=~nobody-of-this-name/x", r"data\.images='~nobody.*home directory"),
        ("data.captions=''", r"data\.captions='': it is empty"),
        ("train.init_from=''", r"train\.init_from='': it is empty"),
        ("encoder.image_size=1000000", r"encoder\.image_size=1000000: .*less than or equal to 4096"),
        ("decoder.hidden_dim=1000000000", r"decoder\.hidden_dim=1000000000: .*less than or equal to 65536"),
        ("search.beam=1000000", r"search\.beam=1000000: .*less than or equal to 10000"),
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


BOMB = "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 3000))
MERGES = "\n".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: &a [1]\n" + BOMB, "stands for more than 10,000 values"),
        ("a: &a {x: 1}\n" + MERGES, "stands for more than 10,000 values"),
        ("a0: &a0 [1]\n" + CHAIN, "."),
        ("train: &a\n  epochs: *a", "an alias names what it is part of"),
        ("train: {epochs: 1}\ntrain: {epochs: 2}", "the key 'train' is repeated"),
        ("train: {epochs: 1, epochs: 2}", "the key 'epochs' is repeated"),
        ("[" * 600, "nested too deeply"),
        ("- " * 2_000, "nested too deeply"),
        ("? " * 2_000, "nested too deeply"),
        ("x" * 200_000, "is too large for a configuration"),
        ("train: {epochs: " + "9" * 5000 + "}", "is not valid YAML: Exceeds the limit"),
        ("train: {epochs: 2020-13-45}", "train.epochs='2020-13-45': input should be a valid integer"),
        ("data: {images: ''}", "data.images='': it is empty"),
        ('data: {images: "\\e[2J"}', "has control characters"),
        ('data: {images: "\\ud800"}', "has control characters, or is not valid Unicode"),
        ("\0", "is not valid YAML"),
        ("a: 1\n--- \nb: 2", "is not valid YAML"),
        ("false", "expected sections"),
        ("train: {1: 2}", "train"),
        ("1: {1: 2}", "config"),
        ("? [a]\n: {b: 1}", "is not valid YAML"),
        ("=: {}", "unknown section '='"),
        ("train: =", "is not valid YAML"),
    ],
)
def test_a_file_that_misleads_or_overwhelms_is_refused(tmp_path, content, problem):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "config.yaml")
    assert problem in str(error.value)
    assert str(tmp_path / "config.yaml") in str(error.value)
    assert len(str(error.value)) < 2000


def test_anchors_and_merges_that_multiply_nothing_are_allowed(tmp_path):
    text = "train: &t {epochs: &n 3, patience: *n}\nrl: {samples: *n}\nsearch: {<<: {beam: 2}, beam: 4}"
    (tmp_path / "config.yaml").write_text(text)
    config = load_config(tmp_path / "config.yaml")
    assert (config.train.epochs, config.train.patience, config.rl.samples, config.search.beam) == (3, 3, 3, 4)


def test_a_pipe_a_folder_and_a_name_that_no_file_has_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "no configuration at"),
        (Path("a\0b"), "no configuration at"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(path)


@pytest.mark.parametrize("name", ["1.50", "on", "null_", "2024-05-01", "1_000", "0x10", ".hidden", "1e3"])
def test_a_name_on_the_command_line_is_taken_as_it_is(name):
    assert make_config({}, [f"run.name={name}"]).run.name == name


def test_a_path_on_the_command_line_is_taken_as_it_is_unless_it_is_quoted():
    for text in ("a b #1", "a: b", "[x]", "2024", "*.csv"):
        assert make_config({}, [f"data.images={text}"]).data.images == Path(text)
    assert make_config({}, ['data.images="a b"']).data.images == Path("a b")
    for empty in ("", "null", "~"):
        assert make_config({}, [f"data.lists={empty}"]).data.lists is None


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides = ["run.folder=~/runs", "data.captions=[~/a.csv, b.csv]", "decoder.embeddings=~/glove.txt"]
    config = make_config({}, [*overrides, "encoder.weights=~/w.pth", "data.images=./~/x"])
    assert config.run.folder == Path("/home/me/runs")
    assert config.data.captions == [Path("/home/me/a.csv"), Path("b.csv")]
    assert config.decoder.vectors == Path("/home/me/glove.txt")
    assert config.encoder.weights == "/home/me/w.pth"
    assert config.data.images == Path("~/x")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**64, float("nan"), float("inf"), b"x", Path("x"), object])
    | st.just(5000).map(lambda digits: 10**digits)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@example("search.exclude", [10**5000], None)
@given(st.sampled_from(sorted(all_keys())), ANYTHING, st.none() | ANYTHING)
def test_any_value_gives_a_configuration_or_one_line(key, value, other):
    """A checkpoint can carry anything: what is accepted is written as YAML and read again."""
    section, name = key.split(".")
    values = {section: {name: value}} | ({} if other is None else {"train": other})
    found = config_or_message(values)
    if isinstance(found, str):
        assert len(found) < 1500
    else:
        assert make_config(read_yaml(yaml.safe_dump(found.as_dict()))) == found


def config_or_message(values: dict) -> Config | str:
    try:
        return make_config(values)
    except UserError as error:
        return str(error)


def test_values_that_contain_themselves_are_refused():
    loop: list = []
    loop.append(loop)
    for key in ("train.epochs", "data.captions", "data.augment", "run.name"):
        section, name = key.split(".")
        with pytest.raises(UserError, match=key):
            make_config({section: {name: loop}})


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
    rooms = ("data", "jobs", "models", "training")
    files = [*root.glob("*.py"), *(path for room in rooms for path in (root / room).rglob("*.py"))]
    code = "\n".join(path.read_text() for path in files if path.name != "config.py")
    whole = {
        f"search.{name}" for name in Config.model_fields["search"].annotation.model_fields
    }  # SearchOptions
    for key in set(all_keys()) - whole:
        assert f".{key.split('.')[1]}" in code, key


def test_captions_are_one_file_or_a_list_of_files():
    for override, files in (("a.json", ["a.json"]), ("[a.json,b.json]", ["a.json", "b.json"])):
        config = make_config({}, [f"data.captions={override}"])
        assert config.data.captions == [Path(file) for file in files]
        assert make_config(config.as_dict()) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.include=[a,b,c,d,e]"], r"search\.include=.*at most 4"),
        (["search.include=dog", "search.temperature=1"], r"search\.include: .*set search\.temperature=0"),
        (["search.include=dog", "search.beam=2", "search.groups=2"], r"set search\.groups=1"),
        (["search.beam=5", "search.groups=2"], r"search\.groups=2: it must divide search\.beam=5"),
        (["search.min_length=9", "search.max_length=8"], r"search\.min_length: .*max_length=8 is too short"),
        (["search.include=[a,b]", "search.max_length=1"], r"search\.include: .*max_length=1 is too short"),
    ],
    ids=str,
)
def test_searches_that_are_not_possible_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        make_config({}, overrides)
