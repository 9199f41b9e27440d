"""Words and indices."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DataConfig
from data.vocab import SPECIAL, Vocabulary, check_words, find_vocabulary
from tests.helpers import write_dataset
from tests.script_helpers import run, write_config
from utils import EOS, PAD, SOS, UNK, UserError

CAPTIONS = ["A dog eats food.", "The dog runs", "a cat", ""]


def test_special_tokens_come_first_and_words_by_frequency_then_alphabet():
    vocabulary = Vocabulary.build(CAPTIONS, min_freq=1)
    assert tuple(vocabulary.words[:4]) == SPECIAL
    assert (PAD, SOS, EOS, UNK) == (0, 1, 2, 3)
    assert vocabulary.words[4:6] == ["a", "dog"]
    assert vocabulary.words[6:10] == ["cat", "eats", "food", "runs"]


def test_rare_words_become_unk():
    vocabulary = Vocabulary.build(CAPTIONS, min_freq=2)
    assert vocabulary.numericalize("a dog flies") == [SOS, 4, 5, UNK, EOS]


@given(st.text(), st.integers(1, 5) | st.none())
def test_an_index_is_never_out_of_range(text, max_length):
    vocabulary = Vocabulary.build(CAPTIONS, min_freq=1)
    indices = vocabulary.numericalize(text, max_length)
    assert all(0 <= i < len(vocabulary) for i in indices)
    assert indices[0] == SOS
    assert not {SOS, EOS, PAD} & set(indices[1:-1])


def test_a_caption_that_is_cut_has_no_end():
    vocabulary = Vocabulary.build(CAPTIONS, min_freq=1)
    assert vocabulary.numericalize("a dog eats food", 2) == [SOS, 4, 5]
    assert vocabulary.numericalize("a dog", 2) == [SOS, 4, 5, EOS]


def test_words_come_back_up_to_the_end():
    vocabulary = Vocabulary.build(CAPTIONS, min_freq=1)
    assert vocabulary.decode([SOS, 4, 5, EOS, 6, PAD]) == ["a", "dog"]


def test_a_saved_vocabulary_loads_as_it_was(tmp_path):
    vocabulary = Vocabulary.build([*CAPTIONS, "größe 大"], 1, [Path("archive/captions.csv")])
    for saved in (vocabulary, Vocabulary(vocabulary.words)):
        saved.save(tmp_path / "vocab.json")
        loaded = Vocabulary.load(tmp_path / "vocab.json")
        assert loaded.words == vocabulary.words
        assert loaded.built_from == saved.built_from


RECORD = {"captions": ["a.csv"], "digest": "0", "min_freq": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"words": ["a", "b"]}', "words: a vocabulary begins with <pad> <sos> <eos> <unk>"),
        (json.dumps(SPECIAL), "should be an object"),
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        ('{"words": ' + "9" * 5000 + "}", "Invalid JSON: number out of range"),
        ('{"words": "<pad>"}', "words: Input should be a valid array"),
        ({"words": [*SPECIAL, 5]}, "words.4: Input should be a valid string"),
        ({"words": [*SPECIAL, None]}, "words.4: Input should be a valid string"),
        ({"words": [*SPECIAL, ""]}, "words: word 4 is empty"),
        ({"words": [*SPECIAL, "dog", "dog"]}, "words: word 5, 'dog', is there twice"),
        ({"words": [*SPECIAL, "<pad>"]}, "words: word 4, '<pad>', is there twice"),
        ({"words": [*SPECIAL, "\x1b[2J"]}, r"words: '\\x1b\[2J' has control characters"),
        ({"words": [*SPECIAL, "\x9b2J"]}, r"words: '\\x9b2J' has control characters"),
        ({"words": [*SPECIAL, "\ud800"]}, "Invalid JSON: "),
        ({"built_from": RECORD}, "words: Field required"),
        ({"words": SPECIAL, "built_from": {"a": 1}}, r"built_from\.captions: Field required"),
        ({"words": SPECIAL, "built_from": 1}, "built_from: "),
        ({"words": SPECIAL, "built_from": {**RECORD, "min_freq": 0}}, r"built_from\.min_freq: "),
        ({"words": SPECIAL, "built_from": {**RECORD, "captions": "a"}}, r"built_from\.captions: "),
        ({"words": SPECIAL, "built_from": {**RECORD, "captions": ["\x1b"]}}, "has control characters"),
    ],
)
def test_what_is_no_vocabulary_is_named(tmp_path, content, problem):
    (tmp_path / "vocab.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=rf"vocab\.json is not a vocabulary \(.*{problem}.*build_vocab\.py"):
        Vocabulary.load(tmp_path / "vocab.json")


def test_a_missing_vocabulary_a_folder_and_a_pipe_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"no vocabulary at .*build_vocab\.py"):
        Vocabulary.load(tmp_path / "none.json")
    for name, message in (("", "is a folder"), ("pipe", "is a pipe"), ("x" * 300, "cannot read")):
        with pytest.raises(UserError, match=message):
            Vocabulary.load(tmp_path / name)


def test_a_vocabulary_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path):
    text = Vocabulary.build(CAPTIONS, 1).as_json()
    (tmp_path / "vocab.json").write_text(text, "utf-8-sig")
    assert Vocabulary.load(tmp_path / "vocab.json").as_json() == text


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=[]))))
def test_any_captions_make_a_vocabulary_that_can_be_saved_and_read(tmp_path_factory, captions):
    path = tmp_path_factory.getbasetemp() / "any_vocab.json"
    built = Vocabulary.build(captions, 1)
    built.save(path)
    assert Vocabulary.load(path).words == built.words == check_words(built.words)


def test_coverage_is_the_share_of_running_words():
    vocabulary = Vocabulary.build(["a a b"], min_freq=2)
    assert vocabulary.coverage(["a a b"]) == pytest.approx(2 / 3)


TABLE = pd.DataFrame(
    {"caption": [*CAPTIONS, "only in val val"], "split": ["train"] * len(CAPTIONS) + ["val"]}
)


def build_file(folder: Path, captions=CAPTIONS, min_freq: int = 1) -> DataConfig:
    """Save a vocabulary beside the captions; returns a configuration with data.min_freq=1."""
    data = DataConfig(captions=folder / "captions.csv", min_freq=1)
    Vocabulary.build(captions, min_freq, data.captions).save(folder / "vocab.json")
    return data


def test_training_builds_its_vocabulary_from_the_training_captions(tmp_path, capsys):
    data = DataConfig(captions=tmp_path / "captions.csv", min_freq=2)
    assert find_vocabulary(data, TABLE).words == [*SPECIAL, "a", "dog"]
    assert capsys.readouterr().out == ""


def test_a_saved_vocabulary_of_the_same_settings_is_used_with_its_edits(tmp_path, capsys):
    data = build_file(tmp_path, CAPTIONS[::-1])  # the order of the captions does not matter
    content = json.loads((tmp_path / "vocab.json").read_text())
    content["words"].append("unicorn")
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    assert find_vocabulary(data, TABLE).words[-1] == "unicorn"
    assert capsys.readouterr().out == f"vocabulary: {tmp_path / 'vocab.json'}\n"


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        ({"min_freq": 3}, "was built with data.min_freq=3 instead of 1, so"),
        ({"captions": CAPTIONS[:2]}, "was built from other training captions (of captions.csv), so"),
        (
            {"captions": CAPTIONS[:2], "min_freq": 2},
            "from other training captions (of captions.csv) and with data.min_freq=2 instead of 1, so",
        ),
    ],
)
def test_a_saved_vocabulary_of_other_settings_is_not_used_and_one_line_tells_why(
    tmp_path, capsys, built, reason
):
    data = build_file(tmp_path, **built)
    vocabulary = find_vocabulary(data, TABLE)
    assert vocabulary.words == Vocabulary.build(CAPTIONS, 1).words
    [line] = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "vocab.json") in line
    assert reason in line


def test_a_saved_vocabulary_without_a_record_is_not_used(tmp_path, capsys):
    data = build_file(tmp_path)
    Vocabulary([*SPECIAL, "cat"]).save(tmp_path / "vocab.json")
    assert len(find_vocabulary(data, TABLE)) > 5
    assert "does not record what it was built from, so" in capsys.readouterr().out


@pytest.fixture
def config(tmp_path) -> Path:
    """A configuration file in a folder with a dataset."""
    write_dataset(tmp_path / "data")
    return write_config(tmp_path)


def test_a_vocabulary_is_built_again_but_one_that_was_edited_is_not_overwritten(tmp_path, config):
    path = tmp_path / "data" / "vocab.json"
    for _ in range(2):
        run(tmp_path, "build_vocab", "--config", config)
    content = json.loads(path.read_text())
    content["words"].append("unicorn")
    path.write_text(json.dumps(content))
    assert "vocab.json exists" in run(tmp_path, "build_vocab", "--config", config, status=2)
    assert json.loads(path.read_text()) == content


def test_no_other_file_and_no_folder_is_replaced_by_a_vocabulary(tmp_path, config):
    captions = tmp_path / "data" / "captions.csv"
    before = captions.read_text()
    assert "exists" in run(tmp_path, "build_vocab", "--config", config, "--output", captions, status=2)
    assert captions.read_text() == before
    for folder in ("", tmp_path / "data", "."):
        run(tmp_path, "build_vocab", "--config", config, "--output", folder, status=2)
    assert "is not a folder" in run(
        tmp_path, "build_vocab", "--config", config, "--output", captions / "v.json", status=2
    )
    run(tmp_path, "build_vocab", "--config", config, "--output", tmp_path / "new" / "v.json")
    assert len(Vocabulary.load(tmp_path / "new" / "v.json")) > 4


def test_the_number_of_words_to_print_is_0_or_more(tmp_path, config):
    assert "most frequent" not in run(tmp_path, "build_vocab", "--config", config, "--top", 0)
    assert "--top -1 is less than 0" in run(tmp_path, "build_vocab", "--config", config, "--top=-1", status=2)
