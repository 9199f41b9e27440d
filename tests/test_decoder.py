"""Every decoder keeps one contract: start, step and forward agree."""

import pytest
import torch

from models.decoders import DECODERS
from tests.helpers import small_decoder, teacher_forcing
from utils import EOS, PAD, SOS, UserError


def batch():
    """Three images, four captions of different lengths in no order of length."""
    grid = torch.randn(3, 9, 6)
    captions = torch.tensor([
        [SOS, 4, 5, EOS, PAD, PAD],
        [SOS, 6, 7, 8, 9, EOS],
        [SOS, EOS, PAD, PAD, PAD, PAD],
        [SOS, 10, 4, 4, EOS, PAD],
    ])  # fmt: skip
    return grid, captions, torch.tensor([2, 0, 0, 1])


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_forward_equals_repeated_step(kind, tie):
    decoder = small_decoder(kind, tie_embeddings=tie)
    grid, captions, image_index = batch()
    logits, alphas = teacher_forcing(decoder, grid, captions, image_index)
    state = decoder.start(grid).select(image_index)
    for t in range(captions.shape[1] - 1):
        step_logits, state, step_alphas = decoder.step(captions[:, t], state)
        is_token = captions[:, t + 1] != PAD
        torch.testing.assert_close(logits[is_token, t], step_logits[is_token])
        if alphas is not None:
            torch.testing.assert_close(alphas[is_token, t], step_alphas[is_token])


def test_padding_changes_nothing(decoder):
    grid, captions, image_index = batch()
    logits, _ = teacher_forcing(decoder, grid, captions, image_index)
    wider = torch.nn.functional.pad(captions, (0, 5))
    wide, _ = teacher_forcing(decoder, grid, wider, image_index)
    is_token = captions[:, 1:] != PAD
    torch.testing.assert_close(wide[:, : is_token.shape[1]][is_token], logits[is_token])
    alone, _ = teacher_forcing(decoder, grid[2:], captions[:1, :4], torch.tensor([0]))
    torch.testing.assert_close(alone[0], logits[0, :3])


def test_a_caption_without_any_token_is_no_error(decoder):
    captions = torch.tensor([[SOS, PAD, PAD], [SOS, 4, EOS]])
    logits, _ = teacher_forcing(decoder, torch.randn(1, 9, 6), captions, torch.tensor([0, 0]))
    assert logits.isfinite().all()


def test_a_word_is_predicted_only_from_the_words_before_it(decoder):
    grid, captions, image_index = batch()
    logits, _ = teacher_forcing(decoder, grid, captions, image_index)
    changed = captions.clone()
    changed[1, 3] = 5
    other, _ = teacher_forcing(decoder, grid, changed, image_index)
    torch.testing.assert_close(other[1, :3], logits[1, :3])
    assert not torch.allclose(other[1, 3], logits[1, 3])


def test_a_caption_depends_only_on_its_own_image(decoder):
    grid, captions, image_index = batch()
    logits, _ = teacher_forcing(decoder, grid, captions, image_index)
    grid[0] += 1
    other, _ = teacher_forcing(decoder, grid, captions, image_index)
    torch.testing.assert_close(other[[0, 3]], logits[[0, 3]])
    assert not torch.allclose(other[1], logits[1])


def test_a_decoder_that_attends_has_alphas_that_sum_to_one_and_are_zero_on_padding(decoder):
    grid, captions, image_index = batch()
    _, alphas = teacher_forcing(decoder, grid, captions, image_index)
    assert (alphas is not None) == decoder.attends
    if alphas is not None:
        torch.testing.assert_close(alphas.sum(dim=2), (captions[:, 1:] != PAD).float())


def test_beams_share_what_belongs_to_the_image(decoder):
    grid, tokens = torch.randn(3, 9, 6), torch.tensor([4, 5, 6, 7, 8, 9])
    first = decoder.start(grid)
    state = first.repeat(2)
    assert all(a is b for a, b in zip(state.image_tensors(), first.image, strict=True))
    logits, state, alphas = decoder.step(tokens, state)
    # Beam 1 of each image takes the place of both: the image part stays as it is.
    swapped = state.select(torch.tensor([[1, 1], [3, 3], [5, 5]]))
    assert all(a is b for a, b in zip(swapped.image_tensors(), first.image, strict=True))
    next_logits, *_ = decoder.step(tokens, swapped)
    for i, token in enumerate(tokens.tolist()):
        alone = decoder.start(grid[i // 2 : i // 2 + 1])
        expected, _, expected_alphas = decoder.step(torch.tensor([token]), alone)
        torch.testing.assert_close(logits[i : i + 1], expected)
        if alphas is not None:
            torch.testing.assert_close(alphas[i : i + 1], expected_alphas)
        _, alone, _ = decoder.step(tokens[i // 2 * 2 + 1].view(1), decoder.start(grid[i // 2 : i // 2 + 1]))
        torch.testing.assert_close(next_logits[i : i + 1], decoder.step(torch.tensor([token]), alone)[0])


def test_any_sequences_can_be_selected_in_any_order(decoder):
    grid, rows = torch.randn(3, 9, 6), torch.tensor([5, 0, 3, 3])
    tokens = torch.tensor([4, 5, 6, 7, 8, 9])
    _, state, _ = decoder.step(tokens, decoder.start(grid).repeat(2))
    expected, _, _ = decoder.step(tokens, state)
    found, _, _ = decoder.step(tokens[rows], state.select(rows))
    torch.testing.assert_close(found, expected[rows])


def test_a_critic_reads_the_state_of_each_sequence(decoder):
    state = decoder.start(torch.randn(3, 9, 6)).repeat(2)
    assert decoder.critic_input(state).shape == (6, decoder.critic_dim)


def test_tied_embeddings_are_one_tensor(decoder):
    assert decoder.output.score.weight is decoder.embedding.weight


@pytest.mark.parametrize("kind", DECODERS)
def test_word_dropout_removes_whole_words_in_training_alone(kind):
    decoder = small_decoder(kind, dropout=0.0, word_dropout=0.25)
    words = torch.ones(1000, 6, 8)
    kept = decoder.train().input_dropout(words)
    removed = (kept == 0).all(dim=2)
    torch.testing.assert_close(kept[~removed], torch.full_like(kept[~removed], 1 / 0.75))
    assert 0.2 < removed.float().mean() < 0.3
    assert torch.equal(decoder.eval().input_dropout(words), words)


def test_words_are_embedded_with_dropout_in_training_alone(decoder):
    tokens = torch.arange(4, 11).repeat(100)
    with torch.no_grad():
        words = decoder.embed(tokens)
        torch.testing.assert_close(words, decoder.embedding(tokens))
        dropped = decoder.train().embed(tokens) == 0
    assert 0.45 < dropped.float().mean() < 0.55  # small_decoder has dropout 0.5


@pytest.mark.parametrize(
    ("kind", "path"), [("attention", "cells"), ("attention", "output"), ("lstm", "output")]
)
def test_dropout_acts_on_the_image_and_before_the_output(kind, path):
    decoder = small_decoder(kind).train()
    decoder.input_dropout = torch.nn.Identity()
    seen = []
    module = decoder.attention.key if path == "cells" else decoder.output
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grid, captions, image_index = batch()
    teacher_forcing(decoder, grid, captions, image_index)
    assert 0.3 < (seen[0] == 0).float().mean() < 0.7


def test_an_untrained_decoder_gives_every_word_about_the_same_probability(decoder):
    grid, captions, image_index = batch()
    logits, _ = teacher_forcing(decoder, grid, captions, image_index)
    words = logits[captions[:, 1:] != PAD].softmax(dim=1)
    assert words.max() < 3 / 11  # 11 words
    assert (decoder.output.score.bias == 0).all()


@torch.no_grad()
def test_a_step_of_the_attention_decoder_is_that_of_the_equations():
    """Show, Attend and Tell, sections 3.1.2 and 4.2.1: here once more, for one image, without batches."""
    d, grid, token = small_decoder("attention"), torch.randn(9, 6), torch.tensor([4])
    for parameter in d.parameters():
        parameter.mul_(2)  # far from where tanh and sigmoid are lines
    cells = d.cells(grid)
    h, c = torch.tanh(d.init(cells.mean(dim=0))).chunk(2)
    energy = torch.stack(
        [d.attention.score(torch.tanh(d.attention.key(a) + d.attention.query(h))) for a in cells]
    )
    alpha = energy.squeeze(1).exp() / energy.exp().sum()
    beta = torch.sigmoid(d.gate(h))
    z = beta * sum(weight * cell for weight, cell in zip(alpha, cells, strict=True))
    word = d.embedding(token)[0]
    i, f, o, g = (d.from_word(word) + d.from_context(z) + d.from_hidden(h)).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    expected = d.output(torch.tanh(d.deep(torch.cat([h, z, word]))))

    logits, state, alphas = d.step(token, d.start(grid.unsqueeze(0)))
    torch.testing.assert_close(logits[0], expected)
    torch.testing.assert_close(alphas[0], alpha)
    torch.testing.assert_close(state.sequence.memory[0], c)
    torch.testing.assert_close(d.critic_input(state)[0], h)


@torch.no_grad()
def test_the_lstm_decoder_reads_the_mean_cell_and_then_the_words():
    decoder, grid = small_decoder("lstm", layers=2), torch.randn(3, 9, 6)
    image = decoder.project_image(grid.mean(dim=1))
    words = decoder.embedding(torch.tensor([[SOS, 4]] * 3))
    lstm = torch.nn.LSTM(8, 10, num_layers=2, batch_first=True)
    lstm.load_state_dict(decoder.lstm.state_dict())
    out, (hidden, _) = lstm(torch.cat([image.unsqueeze(1), words], dim=1))
    state = decoder.start(grid)
    for token in (SOS, 4):
        logits, state, _ = decoder.step(torch.full((3,), token), state)
    torch.testing.assert_close(logits, decoder.output(out[:, -1]))
    torch.testing.assert_close(decoder.critic_input(state), hidden.transpose(0, 1).flatten(1))


def test_dropout_acts_between_the_layers_of_an_lstm_where_there_are_several():
    assert small_decoder("lstm", layers=2).lstm.dropout == 0.5
    assert small_decoder("lstm").lstm.dropout == 0


def test_forget_gates_start_open():
    assert (small_decoder("attention").from_word.bias.chunk(4)[1] == 1).all()
    lstm = small_decoder("lstm", layers=2).lstm
    assert all((bias.chunk(4)[1] == 1).all() for bias in (lstm.bias_ih_l0, lstm.bias_ih_l1))


def test_the_attention_decoder_refuses_a_second_layer():
    with pytest.raises(UserError, match=r"decoder\.layers: the attention decoder has 1 layer"):
        small_decoder("attention", layers=2)
