"""Words and indices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.vocab import SPECIAL, Vocabulary
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
    vocabulary = Vocabulary.build([*CAPTIONS, "größe 大"], min_freq=1)
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json").words == vocabulary.words


def test_what_is_no_vocabulary_is_named(tmp_path):
    (tmp_path / "vocab.json").write_text('{"words": ["a", "b"]}')
    with pytest.raises(UserError, match=r"vocab\.json is not a vocabulary"):
        Vocabulary.load(tmp_path / "vocab.json")
    with pytest.raises(UserError, match=r"build_vocab\.py"):
        Vocabulary.load(tmp_path / "none.json")


def test_coverage_is_the_share_of_running_words():
    vocabulary = Vocabulary.build(["a a b"], min_freq=2)
    assert vocabulary.coverage(["a a b"]) == pytest.approx(2 / 3)
