"""Greedy, beam and sampling, over any decoder that has start and step."""

from itertools import pairwise, product
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder import DecoderState
from models.decoders import DECODERS
from models.search import SearchOptions, cut_tail, search
from tests.helpers import small_decoder
from utils import EOS, PAD, SOS, UNK

WORDS, LENGTH = 7, 3  # three real words besides the special tokens


class Table(NamedTuple):
    logits: torch.Tensor  # (N, V, V): logits of the next word by the previous one


class NoMemory(NamedTuple):
    nothing: torch.Tensor  # (B,): all that a bigram remembers is the previous word


class Bigrams:
    """A decoder whose next word depends on the image and the last word: small enough to enumerate."""

    def start(self, grid):
        return DecoderState.first(Table(grid.view(-1, WORDS, WORDS)), NoMemory(grid.new_zeros(len(grid))))

    def step(self, tokens, state):
        return state.image.logits[state.image_index, tokens].clone(), state, None


def sentences(table: torch.Tensor) -> list[tuple[float, tuple[int, ...]]]:
    """Log-probability and tokens of every sentence of up to LENGTH words, by enumeration."""
    table = table.view(WORDS, WORDS).clone()
    table[:, [PAD, SOS, UNK]] = -torch.inf
    log_probs = table.log_softmax(dim=1)
    found = []
    for n in range(LENGTH + 1):
        for words in product((4, 5, 6), repeat=n):
            path = (SOS, *words, EOS)
            found.append((sum(float(log_probs[a, b]) for a, b in pairwise(path)), (*words, EOS)))
    return found


def strip(tokens: torch.Tensor) -> tuple[int, ...]:
    return tuple(t for t in tokens.tolist() if t != PAD)


def decoders():
    grid = torch.randn(5, 4, 6)
    for kind in DECODERS:
        yield small_decoder(kind, vocab_size=9), grid
    yield Bigrams(), torch.randn(5, WORDS, WORDS) * 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.7, 1.0]))
def test_a_beam_as_wide_as_all_sentences_finds_the_best_of_them(seed, penalty):
    grid = torch.randn(2, WORDS, WORDS, generator=torch.Generator().manual_seed(seed)) * 2
    options = SearchOptions(beam=60, max_length=LENGTH, length_penalty=penalty)
    captions = search(Bigrams(), grid, options)
    assert (captions.log_probs[captions.tokens == PAD] == 0).all()  # also where there is no K-th caption
    for i in range(2):
        truth = sorted(sentences(grid[i]), key=lambda s: s[0] / len(s[1]) ** penalty, reverse=True)
        assert strip(captions.tokens[i, 0]) == truth[0][1]
        # The whole list is right, not only its head: 40 sentences of up to 3 words.
        found = captions.log_probs[i, :40].sum(dim=1)
        torch.testing.assert_close(found, torch.tensor([s[0] for s in truth]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_a_beam_of_one_is_greedy(penalty):
    for decoder, grid in decoders():
        captions = search(decoder, grid, SearchOptions(beam=1, max_length=12, length_penalty=penalty))
        for i in range(len(grid)):
            state, token, greedy = decoder.start(grid[i : i + 1]), torch.tensor([SOS]), []
            while not greedy or greedy[-1] != EOS:
                logits, state, _ = decoder.step(token, state)
                logits[:, [PAD, SOS, UNK]] = -torch.inf
                token = logits.argmax(dim=1) if len(greedy) < 12 else torch.tensor([EOS])
                greedy.append(int(token))
            assert strip(captions.tokens[i, 0]) == tuple(greedy)


@pytest.mark.parametrize("beam", [1, 3])
def test_captions_do_not_depend_on_the_rest_of_the_batch(beam):
    for decoder, grid in decoders():
        together = search(decoder, grid, SearchOptions(beam=beam, max_length=8))
        for i in range(len(grid)):
            alone = search(decoder, grid[i : i + 1], SearchOptions(beam=beam, max_length=8))
            assert [strip(t) for t in alone.tokens[0]] == [strip(t) for t in together.tokens[i]]


@pytest.mark.parametrize("options", [{"beam": 4}, {"temperature": 1.5, "seed": 3}])
def test_no_caption_holds_a_special_token_or_goes_on_after_its_end(options):
    for decoder, grid in decoders():
        captions = search(decoder, grid, SearchOptions(max_length=6, **options))
        for tokens in captions.tokens.flatten(0, 1):
            words = strip(tokens)
            assert not {SOS, UNK} & set(words)
            assert len(words) <= 7
            assert EOS not in words[:-1]
            assert PAD not in tokens[: len(words)].tolist()


@pytest.mark.parametrize("options", [{"beam": 3}, {"temperature": 1.0}])
def test_log_probabilities_are_those_of_the_words_and_padding_has_none(options):
    grid = torch.randn(8, WORDS, WORDS)
    captions = search(Bigrams(), grid, SearchOptions(max_length=LENGTH, length_penalty=0, **options))
    assert (captions.log_probs[captions.tokens == PAD] == 0).all()
    torch.testing.assert_close(captions.log_probs.sum(dim=2), captions.scores)
    for i in range(8):
        truth = {words: log_prob for log_prob, words in sentences(grid[i])}
        for tokens, log_probs in zip(captions.tokens[i], captions.log_probs[i], strict=True):
            assert float(log_probs.sum()) == pytest.approx(truth[strip(tokens)], abs=1e-4)


def test_beams_are_ranked_and_different():
    for decoder, grid in decoders():
        captions = search(decoder, grid, SearchOptions(beam=5, max_length=8))
        for i in range(len(grid)):
            assert len({strip(t) for t in captions.tokens[i]}) == 5


def test_attention_of_a_beam_is_that_of_its_own_words():
    decoder, grid = small_decoder("attention", vocab_size=9), torch.randn(2, 4, 6)
    captions = search(decoder, grid, SearchOptions(beam=3, max_length=5))
    for i, k in product(range(2), range(3)):
        words = strip(captions.tokens[i, k])
        _, alphas = decoder(grid, torch.tensor([[SOS, *words]]), torch.tensor([i]))
        torch.testing.assert_close(captions.attention[i, k, : len(words)], alphas[0])


def test_sampling_repeats_with_its_seed_and_differs_without():
    decoder, grid = next(decoders())
    a, b, c = (
        search(decoder, grid, SearchOptions(temperature=1.0, max_length=10, seed=s)).tokens.tolist()
        for s in (1, 1, 2)
    )
    assert a == b != c


def test_sampling_follows_the_distribution():
    grid = torch.zeros(1, WORDS, WORDS)
    grid[0, SOS, 4] = 1.0  # first word: e : 1 : 1 : 1 with the end
    grid = grid.repeat(20_000, 1, 1)
    first = search(Bigrams(), grid, SearchOptions(temperature=1.0, max_length=1)).tokens[:, 0, 0]
    e = torch.e
    assert float((first == 4).float().mean()) == pytest.approx(e / (e + 3), abs=0.02)
    cold = search(Bigrams(), grid, SearchOptions(temperature=0.5, max_length=1)).tokens[:, 0, 0]
    assert float((cold == 4).float().mean()) == pytest.approx(e**2 / (e**2 + 3), abs=0.02)


def test_sampling_among_one_word_is_greedy():
    for decoder, grid in decoders():
        greedy = search(decoder, grid, SearchOptions(beam=1, max_length=6)).tokens
        for cut in ({"top_k": 1}, {"top_p": 1e-9}):
            sampled = search(decoder, grid, SearchOptions(temperature=1.0, max_length=6, **cut)).tokens
            assert [strip(t[0]) for t in sampled] == [strip(t[0]) for t in greedy]


def test_the_tail_is_cut_where_top_k_and_top_p_say():
    log_probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert cut_tail(log_probs, 2, 1.0).isfinite().tolist() == [[True, True, False, False]]
    assert cut_tail(log_probs, 0, 0.6).isfinite().tolist() == [[True, True, False, False]]
    assert cut_tail(log_probs, 0, 0.81).isfinite().tolist() == [[True, True, True, False]]
