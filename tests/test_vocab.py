"""Words and indices."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DataConfig
from data.vocab import SPECIAL, Vocabulary, find_vocabulary
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


def test_what_is_no_vocabulary_is_named(tmp_path):
    bad_record = json.dumps({"words": SPECIAL, "built_from": {"a": 1}})
    for content in ('{"words": ["a", "b"]}', json.dumps(SPECIAL), bad_record, "{"):
        (tmp_path / "vocab.json").write_text(content)
        with pytest.raises(UserError, match=r"vocab\.json is not a vocabulary"):
            Vocabulary.load(tmp_path / "vocab.json")
    with pytest.raises(UserError, match=r"build_vocab\.py"):
        Vocabulary.load(tmp_path / "none.json")


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
