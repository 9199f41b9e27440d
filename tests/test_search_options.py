"""What captions must and must not contain, diverse beams, and several decoders at once."""

import pytest
import torch

from models.decoders import DECODERS
from models.ensemble import Ensemble
from models.search import SearchOptions, search
from tests.helpers import small_decoder
from tests.test_search import LENGTH, WORDS, Bigrams, fixed_decoder, sentences, strip
from utils import EOS, PAD, SOS


def one_image(*rows: tuple[int, dict[int, float]]) -> torch.Tensor:
    """The logits (1, V, V) of a model with these probabilities of the next word, for each previous word."""
    table = torch.full((WORDS, WORDS), 1e-9)
    for previous, following in rows:
        for word, probability in following.items():
            table[previous, word] = probability
    return table.log().unsqueeze(0)


def found(grid: torch.Tensor, **options) -> list[tuple[int, ...]]:
    """The captions of one image, best first."""
    captions = search(
        Bigrams(), grid, SearchOptions(**{"max_length": LENGTH, "length_penalty": 0, **options})
    )
    return [strip(t) for t, s in zip(captions.tokens[0], captions.scores[0], strict=True) if s > -torch.inf]


# The words 4, 5 and 6 tend to follow in this order; the end is likely after each.
CHAIN = one_image(
    (SOS, {4: 0.6, 5: 0.3, 6: 0.1}),
    (4, {EOS: 0.5, 5: 0.3, 4: 0.2}),
    (5, {EOS: 0.6, 6: 0.3, 4: 0.1}),
    (6, {EOS: 0.9, 4: 0.1}),
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (4, EOS)),  # 0.6 * 0.5
        ({"min_length": 2}, (4, 5, EOS)),  # 0.6 * 0.3 * 0.6, and (4, 4, EOS) has 0.6 * 0.2 * 0.5
        ({"exclude": [4]}, (5, EOS)),
        ({"exclude": [4, 5]}, (6, EOS)),
        ({"min_length": 3}, (4, 5, 6, EOS)),
        ({"min_length": 3, "exclude": [5, 6]}, (4, 4, 4, EOS)),
        ({"min_length": 3, "exclude": [5, 6], "no_repeat": 1}, (4, EOS)),  # no other word is left
    ],
)
@pytest.mark.parametrize("search_for", [{"beam": 5}, {"beam": 1}, {"temperature": 1e-9}], ids=str)
def test_captions_keep_to_the_rules(options, expected, search_for):
    assert found(CHAIN, **search_for, **options)[0] == expected


def allowed(words: tuple[int, ...], options: dict) -> bool:
    """Whether a sentence (words and <eos>) keeps to the rules, checked word by word."""
    *words, _ = words
    n = options.get("no_repeat", 0)
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)] if n else []
    return (
        len(words) >= options.get("min_length", 0)
        and not set(words) & set(options.get("exclude", []))
        and len(set(ngrams)) == len(ngrams)
        and all(set(words) & set(tokens) for tokens in options.get("include", []))
    )


RULES = [
    {"min_length": 2},
    {"no_repeat": 1},
    {"no_repeat": 2},
    {"exclude": [5]},
    {"include": [[6]]},
    {"include": [[4], [6]]},
    {"include": [[4], [5], [6]]},
    {"include": [[4, 5], [6]]},
    {"include": [[4, 5], [5, 6]], "no_repeat": 1, "min_length": 2},
]


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_a_beam_as_wide_as_all_sentences_finds_the_best_of_those_that_are_allowed(options, penalty):
    grid = torch.randn(3, WORDS, WORDS) * 2
    captions = search(
        Bigrams(), grid, SearchOptions(beam=60, max_length=LENGTH, length_penalty=penalty, **options)
    )
    for i in range(3):
        truth = [(score / len(words) ** penalty, words) for score, words in sentences(grid[i], choosing=True)]
        truth = sorted(((score, words) for score, words in truth if allowed(words, options)), reverse=True)
        possible = captions.scores[i].isfinite()
        assert [strip(tokens) for tokens in captions.tokens[i, possible]] == [words for _, words in truth]
        scores = torch.tensor([score for score, _ in truth])
        torch.testing.assert_close(captions.scores[i, possible], scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", RULES[:4], ids=str)
def test_every_sample_is_allowed(options):
    grid = torch.randn(1, WORDS, WORDS).repeat(200, 1, 1)
    drawn = search(Bigrams(), grid, SearchOptions(temperature=2.0, max_length=6, **options)).tokens[:, 0]
    assert all(allowed(strip(tokens), options) for tokens in drawn)
    assert len({strip(tokens) for tokens in drawn}) > 5


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("options", [{"no_repeat": 2, "min_length": 4}, {"include": [[5], [6, 7]]}], ids=str)
def test_rules_hold_for_every_decoder_while_images_leave_the_batch(kind, options):
    decoder, grid = small_decoder(kind, vocab_size=12), torch.randn(6, 4, 6)
    with torch.no_grad():
        decoder.output.score.bias[EOS] += 1.5
    options = {"beam": 2, "max_length": 12, "exclude": [9], **options}
    together = search(decoder, grid, SearchOptions(**options))
    for i in range(6):
        alone = search(decoder, grid[i : i + 1], SearchOptions(**options))
        assert strip(alone.tokens[0, 0]) == strip(together.tokens[i, 0])
        assert allowed(strip(together.tokens[i, 0]), options)
    # The probabilities are those of the words, so each beam continued its own state.
    decoder.requires_grad_(False)
    state, previous = decoder.start(grid[:1]), SOS
    for t, word in enumerate(strip(together.tokens[0, 0])):
        logits, state, _ = decoder.step(torch.tensor([previous]), state)
        assert float(together.log_probs[0, 0, t]) == pytest.approx(
            float(logits.log_softmax(dim=1)[0, word]), abs=1e-4
        )
        previous = word


def test_a_required_word_occurs_however_improbable_it_is():
    grid = torch.zeros(1, WORDS, WORDS)
    grid[:, :, 6] = -300
    for beam in (1, 3):
        assert all(6 in words for words in found(grid, beam=beam, include=[[6]]))


def test_captions_without_the_required_words_displace_none_with_them():
    # Plain search with a beam of 1 never gets to the word 6: after 4, whose probability is 0.6, it ends.
    assert found(CHAIN, beam=1) == [(4, EOS)]
    assert found(CHAIN, beam=1, include=[[6]]) == [(6, EOS)]  # 0.1 * 0.9; 5, 6, <eos> would have 0.081
    # At each step the better of "4" + 5 (0.18) and "5" + 4 (0.03) goes on.
    assert found(CHAIN, beam=1, include=[[5], [4]]) == [(4, 5, EOS)]


def test_a_later_group_avoids_the_words_of_earlier_ones_at_the_same_step():
    assert found(CHAIN, beam=2, groups=2, diversity=0.0) == [(4, EOS), (4, EOS)]
    # The second group begins with 4 as well, because ln 0.6 - 0.6 > ln 0.3. Then the end, which the first
    # group has chosen, would cost it as much: ln 0.5 - 0.6 < ln 0.3.
    assert found(CHAIN, beam=2, groups=2, diversity=0.6) == [(4, EOS), (4, 5, EOS)]
    # Now it begins with 5, because ln 0.6 - 1.5 < ln 0.3, and goes on with 6 (0.3) instead of the end (0.6).
    assert found(CHAIN, beam=2, groups=2, diversity=1.5) == [(4, EOS), (5, 6, EOS)]
    # The third group pays 1.5 for 4 and for 5 (-2.01 and -2.70); a penalty of 1.9 leaves it 6 (-2.30).
    assert [words[0] for words in found(CHAIN, beam=3, groups=3, diversity=1.5)] == [4, 5, 4]
    assert {words[0] for words in found(CHAIN, beam=3, groups=3, diversity=1.9)} == {4, 5, 6}


def test_the_penalty_is_not_part_of_the_score():
    captions = search(
        Bigrams(), CHAIN, SearchOptions(beam=2, groups=2, diversity=1.5, max_length=LENGTH, length_penalty=0)
    )
    torch.testing.assert_close(captions.scores[0].exp(), torch.tensor([0.3, 0.3 * 0.3 * 0.9]))


def test_one_group_or_groups_that_ignore_each_other_are_plain_beam_search():
    decoder, grid = fixed_decoder("attention")
    plain = search(decoder, grid, SearchOptions(beam=3, max_length=12))
    groups = search(decoder, grid, SearchOptions(beam=6, groups=2, diversity=0.0, max_length=12))
    for one, both in zip(plain.tokens, groups.tokens, strict=True):
        beams = [strip(tokens) for tokens in one]
        assert [strip(tokens) for tokens in both] == [tokens for tokens in beams for _ in range(2)]
    captions = search(decoder, grid, SearchOptions(beam=4, groups=4, diversity=20.0, max_length=12))
    for tokens in captions.tokens:
        assert len({int(first) for first in tokens[:, 0]}) == 4
        assert PAD not in tokens[:, 0]


@pytest.mark.parametrize("options", [{"include": [[5]]}, {"groups": 2, "diversity": 1.0}], ids=str)
def test_sections_of_beams_do_not_depend_on_the_rest_of_the_batch(options):
    grid = torch.randn(8, WORDS, WORDS) * 2
    options = SearchOptions(beam=4, max_length=5, **options)
    together = search(Bigrams(), grid, options)
    for i in range(8):
        alone = search(Bigrams(), grid[i : i + 1], options)
        assert [strip(t) for t in alone.tokens[0]] == [strip(t) for t in together.tokens[i]]


def test_an_ensemble_averages_the_probabilities_at_each_step():
    # First word: (0.9 + 0.1) / 2 and (0.1 + 0.5) / 2. A mean of logarithms would prefer 5.
    one = one_image((SOS, {4: 0.9, 5: 0.1}), (4, {EOS: 1.0}), (5, {EOS: 1.0}))
    other = one_image((SOS, {4: 0.1, 5: 0.5, 6: 0.4}), (4, {EOS: 0.6, 5: 0.4}), (5, {EOS: 1.0}))
    options = SearchOptions(beam=3, max_length=LENGTH, length_penalty=0)
    captions = search(Ensemble([Bigrams(), Bigrams()]), [one, other], options)
    assert [strip(tokens) for tokens in captions.tokens[0, :2]] == [(4, EOS), (5, EOS)]
    torch.testing.assert_close(captions.scores[0, :2].exp(), torch.tensor([0.5 * 0.8, 0.3]))
    torch.testing.assert_close(captions.log_probs[0, 0, :2].exp(), torch.tensor([0.5, 0.8]))


@pytest.mark.parametrize(
    "options", [{"beam": 3}, {"temperature": 1.0}, {"beam": 2, "include": [[5]]}], ids=str
)
def test_an_ensemble_of_equal_models_is_the_model(options):
    decoder, grid = fixed_decoder("attention")
    options = SearchOptions(max_length=12, **options)
    alone, together = search(decoder, grid, options), search(Ensemble([decoder] * 2), [grid] * 2, options)
    assert torch.equal(together.tokens, alone.tokens)
    for one, two in zip(together[1:], alone[1:], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_decoders_of_all_kinds_and_grids_of_all_sizes_make_an_ensemble():
    kinds = sorted(DECODERS, key=lambda kind: DECODERS[kind].attends)  # those without attention first
    decoders = [small_decoder(kind, grid_dim=6 + i, vocab_size=9) for i, kind in enumerate(kinds)]
    grids = [torch.randn(3, 4 + i, 6 + i) for i in range(len(kinds))]
    captions = search(Ensemble(decoders), grids, SearchOptions(beam=2, max_length=4))
    first = next(i for i, decoder in enumerate(decoders) if decoder.attends)
    alphas = decoders[first].step(torch.full((3,), SOS), decoders[first].start(grids[first]))[2]
    assert first > 0
    torch.testing.assert_close(captions.attention[:, 0, 0], alphas.detach())
