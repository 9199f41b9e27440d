"""Greedy, beam and sampling, over any decoder that has start and step."""

import json
import math
import zlib
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.choices import choosable, cut_tail, draw
from models.decoders import DECODERS
from models.search import SearchOptions, search
from models.state import DecoderState
from tests.helpers import randoms, small_decoder
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


def sentences(table: torch.Tensor, choosing: bool = False) -> list[tuple[float, tuple[int, ...]]]:
    """Log-probability and tokens of every sentence of up to LENGTH words, by enumeration.

    The log-probability is the model's, or with `choosing` the one without tokens that are never chosen.
    """
    table = table.view(WORDS, WORDS).clone()
    if choosing:
        table[:, [PAD, SOS, UNK]] = -torch.inf
    log_probs = table.log_softmax(dim=1)
    found = []
    for n in range(LENGTH + 1):
        for words in product((4, 5, 6), repeat=n):
            path = (SOS, *words, EOS)
            found.append((sum(float(log_probs[a, b]) for a, b in pairwise(path)), (*words, EOS)))
    return found


SAVED = json.loads((Path(__file__).parent / "search_captions.json").read_text(encoding="utf-8"))


def fixed(name: str, *shape: int) -> torch.Tensor:
    """Random numbers that depend on nothing but the name and the shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"c{name}".encode())))


def fixed_decoder(kind: str):
    """A decoder, and the grids of eight images whose captions end after 1 to 24 words, or later."""
    scale, end = {"attention": (1.3, 3.0), "lstm": (0.8, 2.0)}[kind]
    sizes = {"embed_dim": 12, "hidden_dim": 16, "attention_dim": 10}
    decoder = small_decoder(kind, 6, 20, **sizes, dropout=0.0, tie_embeddings=False)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(scale * fixed(name, *parameter.shape))
        decoder.output.score.bias[EOS] += end
    return decoder, fixed("grid", 8, 9, 6)


def strip(tokens: torch.Tensor) -> tuple[int, ...]:
    return tuple(t for t in tokens.tolist() if t != PAD)


def decoders():
    grid = torch.randn(5, 4, 6)
    for kind in DECODERS:
        yield small_decoder(kind, vocab_size=9), grid
    yield Bigrams(), torch.randn(5, WORDS, WORDS) * 2


@pytest.mark.parametrize("saved", SAVED, ids=lambda saved: "{kind}, {options}".format(**saved))
def test_captions_are_those_that_were_saved(saved):
    """They come from a search that reordered whole vocabularies and kept finished images in the batch."""
    decoder, grid = fixed_decoder(saved["kind"])
    found = search(decoder, grid, SearchOptions(**saved["options"])).tokens
    assert [[list(strip(beam)) for beam in beams] for beams in found] == saved["captions"]


@pytest.mark.parametrize("kind", ["attention", "lstm"])
@pytest.mark.parametrize("options", [{"beam": 1}, {"beam": 3}, {"temperature": 1.0}])
def test_finished_images_leave_the_batch(kind, options, monkeypatch):
    (decoder, grid), sizes = fixed_decoder(kind), []
    step = decoder.step
    monkeypatch.setattr(
        decoder, "step", lambda tokens, state: sizes.append(len(tokens)) or step(tokens, state)
    )
    captions = search(decoder, grid, SearchOptions(max_length=24, **options))
    k = captions.tokens.shape[1]
    ends = (captions.tokens != PAD).sum(dim=2).max(dim=1).values  # steps until an image is finished
    assert len(ends.unique()) > 1
    assert sizes == [8] + [int((ends > t).sum()) * k for t in range(1, int(ends.max()))]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.7, 1.0]))
def test_a_beam_as_wide_as_all_sentences_finds_the_best_of_them(seed, penalty):
    grid = torch.randn(2, WORDS, WORDS, generator=torch.Generator().manual_seed(seed)) * 2
    options = SearchOptions(beam=60, max_length=LENGTH, length_penalty=penalty)
    captions = search(Bigrams(), grid, options)
    assert (captions.log_probs[captions.tokens == PAD] == 0).all()  # also where there is no K-th caption
    for i in range(2):
        truth = [(score / len(words) ** penalty, words) for score, words in sentences(grid[i], choosing=True)]
        truth.sort(reverse=True)
        assert strip(captions.tokens[i, 0]) == truth[0][1]
        # The whole list is right, not only its head: 40 sentences of up to 3 words.
        scores = torch.tensor([score for score, _ in truth])
        torch.testing.assert_close(captions.scores[i, :40], scores, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize(
    "options",
    [{"beam": 3}, {"temperature": 1.0}, {"temperature": 0.3}, {"temperature": 3.0, "top_k": 2, "top_p": 0.9}],
)
def test_log_probabilities_are_those_of_the_words_and_padding_has_none(options):
    grid = torch.randn(8, WORDS, WORDS)
    captions = search(Bigrams(), grid, SearchOptions(max_length=LENGTH, length_penalty=0, **options))
    assert (captions.log_probs[captions.tokens == PAD] == 0).all()
    for i in range(8):
        truth = {words: log_prob for log_prob, words in sentences(grid[i])}
        for tokens, log_probs in zip(captions.tokens[i], captions.log_probs[i], strict=True):
            assert float(log_probs.sum()) == pytest.approx(truth[strip(tokens)], abs=1e-4)


def one_word(*probabilities: float) -> torch.Tensor:
    """A table (1, V, V) of one image whose next word always has these probabilities."""
    return torch.tensor(probabilities).log().expand(1, WORDS, WORDS)


@pytest.mark.parametrize(
    "options", [{"beam": 1}, {"temperature": 0.01}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1e-45}]
)
def test_a_reported_probability_is_the_models_own_whatever_the_choice_was_made_from(options):
    # <unk> is the most likely word, and 0.3 the probability of the best word that may be chosen.
    grid = one_word(0.01, 0.02, 0.1, 0.5, 0.3, 0.05, 0.02)
    captions = search(Bigrams(), grid, SearchOptions(max_length=2, length_penalty=0, **options))
    assert captions.tokens.tolist() == [[[4, 4, EOS]]]
    torch.testing.assert_close(captions.log_probs[0, 0].exp(), torch.tensor([0.3, 0.3, 0.1]))


def test_beams_are_ranked_by_probabilities_without_unknown_words():
    # "5" is less likely than "4", but without <unk> the end after "4" has the probability 0.2 / 0.3 = 0.67.
    table = torch.full((WORDS, WORDS), 1e-6)
    table[SOS, [4, 5]] = torch.tensor([0.55, 0.45])
    table[4, [EOS, UNK, 6]] = torch.tensor([0.2, 0.7, 0.1])
    table[5, [EOS, 6]] = torch.tensor([0.5, 0.5])
    options = SearchOptions(beam=4, max_length=1, length_penalty=0)
    captions = search(Bigrams(), table.log().unsqueeze(0), options)
    assert [strip(tokens) for tokens in captions.tokens[0, :2]] == [(4, EOS), (5, EOS)]
    ranks, own = captions.scores[0, :2].exp(), captions.log_probs[0, :2].sum(dim=1).exp()
    torch.testing.assert_close(ranks, torch.tensor([0.55 * 2 / 3, 0.225]), atol=1e-4, rtol=0)
    torch.testing.assert_close(own, torch.tensor([0.11, 0.225]), atol=1e-4, rtol=0)


def test_beams_are_ranked_and_different():
    for decoder, grid in decoders():
        captions = search(decoder, grid, SearchOptions(beam=5, max_length=8))
        for i in range(len(grid)):
            assert len({strip(t) for t in captions.tokens[i]}) == 5


@pytest.mark.parametrize("options", [{"beam": 3}, {"temperature": 1.0}])
def test_attention_and_log_probabilities_are_those_of_the_own_words(options):
    decoder, grid = fixed_decoder("attention")
    captions = search(decoder, grid, SearchOptions(max_length=12, **options))
    assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=0)
    for i, k in product(range(8), range(captions.tokens.shape[1])):
        state, previous = decoder.start(grid[i : i + 1]), SOS
        for t, word in enumerate(strip(captions.tokens[i, k])):
            logits, state, alphas = decoder.step(torch.tensor([previous]), state)
            assert_close(captions.attention[i, k, t], alphas[0])
            assert_close(captions.log_probs[i, k, t], logits[0].log_softmax(dim=0)[word])
            previous = word


def test_sampling_repeats_with_its_seed_and_differs_without():
    decoder, grid = next(decoders())
    a, b, c = (
        search(decoder, grid, SearchOptions(temperature=1.0, max_length=10, seed=s)).tokens.tolist()
        for s in (1, 1, 2)
    )
    assert a == b != c


@given(st.integers(0, 100), st.integers(1, 7), st.permutations(range(8)))
@settings(max_examples=20, deadline=None)
def test_a_sample_depends_on_the_seed_and_the_index_and_not_on_the_batch(seed, batch_size, order):
    grid = torch.randn(8, WORDS, WORDS, generator=torch.Generator().manual_seed(seed))
    options = SearchOptions(temperature=1.0, max_length=LENGTH, seed=seed)
    together = [strip(tokens) for tokens in search(Bigrams(), grid, options).tokens[:, 0]]
    for at in range(0, 8, batch_size):
        indices = order[at : at + batch_size]
        found = search(Bigrams(), grid[indices], options, indices).tokens[:, 0]
        assert [strip(tokens) for tokens in found] == [together[i] for i in indices]


def test_images_and_seeds_do_not_share_their_luck():
    grid = torch.zeros(1, WORDS, WORDS).repeat(32, 1, 1)  # all images are the same, all words equally likely
    captions = set()
    for seed, first in product((0, 1), (0, 32)):
        options = SearchOptions(temperature=1.0, max_length=30, seed=seed)
        found = search(Bigrams(), grid, options, range(first, first + 32)).tokens[:, 0]
        captions |= {strip(tokens) for tokens in found if len(strip(tokens)) > 6}
        captions.add(tuple(found.flatten().tolist()))
    long = [caption for caption in captions if len(caption) < 32]
    assert len(captions) - len(long) == 4  # no batch is like another
    assert len(long) > 10  # and no long caption was drawn twice


def test_a_caption_that_must_end_ends_however_improbable_that_is():
    grid = torch.zeros(1, WORDS, WORDS)
    grid[:, :, EOS] = -200  # at this temperature, its probability is 0 in float32
    for top_p in (1.0, 0.5):
        options = SearchOptions(temperature=0.1, top_k=2, top_p=top_p, max_length=3)
        captions = search(Bigrams(), grid, options)
        assert captions.tokens[0, 0, 3] == EOS
        assert float(captions.log_probs[0, 0, 3]) == pytest.approx(-200 - math.log(6), abs=1e-3)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e38])
def test_extreme_temperatures_draw_the_most_likely_word_or_any(temperature):
    options = SearchOptions(temperature=temperature, max_length=1, top_p=0.99)
    grid = torch.randn(1, WORDS, WORDS).repeat(50, 1, 1)
    first = search(Bigrams(), grid, options).tokens[:, 0, 0]
    allowed = grid[0, SOS, [EOS, 4, 5, 6]]
    best = [EOS, 4, 5, 6][int(allowed.argmax())]
    assert set(first.tolist()) == ({best} if temperature < 1 else {EOS, 4, 5, 6})


def test_sampling_follows_the_distribution():
    grid = torch.zeros(1, WORDS, WORDS)
    grid[0, SOS, 4] = 1.0  # first word: e : 1 : 1 : 1 with the end
    grid = grid.repeat(5_000, 1, 1)
    first = search(Bigrams(), grid, SearchOptions(temperature=1.0, max_length=1)).tokens[:, 0, 0]
    e = torch.e
    assert float((first == 4).float().mean()) == pytest.approx(e / (e + 3), abs=0.03)
    cold = search(Bigrams(), grid, SearchOptions(temperature=0.5, max_length=1)).tokens[:, 0, 0]
    assert float((cold == 4).float().mean()) == pytest.approx(e**2 / (e**2 + 3), abs=0.03)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.2, 0.4, 0.3, 0.1]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_p": 0.85}, [2 / 9, 4 / 9, 3 / 9, 0]),
        # At this temperature the probabilities are as 4 : 16 : 9 : 1, so two words have 25 / 30 of the total.
        ({"temperature": 0.5, "top_p": 0.8}, [0, 16 / 25, 9 / 25, 0]),
    ],
)
def test_words_are_drawn_as_often_as_their_renormalised_probabilities_say(options, expected):
    # Half of the model's probability is that of tokens which are never drawn.
    grid = one_word(0.2, 0.1, 0.1, 0.2, 0.2, 0.15, 0.05).repeat(5_000, 1, 1)
    drawn = search(Bigrams(), grid, SearchOptions(max_length=1, **{"temperature": 1.0, **options}))
    shares = torch.bincount(drawn.tokens[:, 0, 0], minlength=WORDS) / 5_000
    torch.testing.assert_close(shares[[EOS, 4, 5, 6]], torch.tensor(expected), atol=0.03, rtol=0)


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


def numbers(count: int) -> torch.Tensor:
    return randoms(count, 1, 1).flatten()


def test_training_draws_words_as_often_as_their_probabilities_say():
    logits = torch.tensor([[9.0, 9.0, 0.0, 9.0, 1.0, -1.0, 2.0], [9.0, 9.0, -20.0, 9.0, -20.0, -20.0, -21.0]])
    logits[0, 5] = -torch.inf
    for temperature in (1.0, 0.5):
        may_follow = choosable(logits, temperature)
        drawn = draw(may_follow.repeat(20_000, 1), numbers(40_000)).view(20_000, 2)
        for row in range(2):
            expected = (logits[row, [EOS, 4, 5, 6]] / temperature).softmax(dim=0)
            shares = torch.bincount(drawn[:, row], minlength=WORDS) / 20_000
            assert shares[[PAD, SOS, UNK]].tolist() == [0, 0, 0]
            # 4.5 standard deviations of a share are 0.016 at most.
            torch.testing.assert_close(shares[[EOS, 4, 5, 6]], expected, atol=0.016, rtol=0)
            assert shares[5] == 0 or row == 1


def test_training_draws_a_word_even_where_nothing_is_probable_or_not_finite():
    log_probs = torch.full((3, 50, WORDS), -torch.inf)
    log_probs[0, :, 5] = 0
    log_probs[1, :, :4] = torch.nan
    drawn = torch.stack([draw(rows, numbers(50)) for rows in log_probs])
    assert set(drawn[0].tolist()) == {5}
    assert set(drawn[1:].flatten().tolist()) == {EOS, 4, 5, 6}


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{"beam": 3}, {"temperature": 1.0}])
def test_a_step_does_not_wait_for_the_device(options):
    decoder, grid = fixed_decoder("attention")
    decoder, grid = decoder.cuda(), grid.cuda()
    options = SearchOptions(max_length=2, **options)  # before the first test whether captions are finished
    search(decoder, grid, options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        search(decoder, grid, options)
        draw(choosable(torch.randn(4, 9, device="cuda")), numbers(4).cuda())
    finally:
        torch.cuda.set_sync_debug_mode("default")
