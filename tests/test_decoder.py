"""Both decoders keep one contract: start, step and forward say the same."""

import pytest
import torch

from models.decoder import AttentionDecoder, LSTMDecoder

WORDS, GRID = 11, 6


def make(kind: str, tie: bool = True):
    torch.manual_seed(0)
    if kind == "attention":
        return AttentionDecoder(GRID, WORDS, 8, 10, 7, dropout=0.5, tie=tie).eval()
    return LSTMDecoder(GRID, WORDS, 8, 10, layers=2, dropout=0.5, tie=tie).eval()


def batch():
    """Three images, four captions of different lengths in no order of length."""
    torch.manual_seed(1)
    grid = torch.randn(3, 9, GRID)
    captions = torch.tensor([[1, 4, 5, 2, 0, 0], [1, 6, 7, 8, 9, 2], [1, 2, 0, 0, 0, 0], [1, 10, 4, 4, 2, 0]])
    return grid, captions, torch.tensor([2, 0, 0, 1])


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_forward_equals_repeated_step(kind, tie):
    decoder = make(kind, tie)
    grid, captions, image_index = batch()
    logits, alphas = decoder(grid, captions, image_index)
    state = decoder.start(grid)
    state = type(state)(*(x[image_index] for x in state))
    for t in range(captions.shape[1] - 1):
        step_logits, state, step_alphas = decoder.step(captions[:, t], state)
        real = captions[:, t + 1] != 0
        torch.testing.assert_close(logits[real, t], step_logits[real])
        if alphas is not None:
            torch.testing.assert_close(alphas[real, t], step_alphas[real])


@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_padding_changes_nothing(kind):
    decoder = make(kind)
    grid, captions, image_index = batch()
    logits, _ = decoder(grid, captions, image_index)
    wider = torch.nn.functional.pad(captions, (0, 5))
    wide, _ = decoder(grid, wider, image_index)
    real = captions[:, 1:] != 0
    torch.testing.assert_close(wide[:, : real.shape[1]][real], logits[real])
    alone, _ = decoder(grid[2:], captions[:1, :4], torch.tensor([0]))
    torch.testing.assert_close(alone[0], logits[0, :3])


@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_a_word_is_predicted_from_the_words_before_it_alone(kind):
    decoder = make(kind)
    grid, captions, image_index = batch()
    logits, _ = decoder(grid, captions, image_index)
    changed = captions.clone()
    changed[1, 3] = 5
    other, _ = decoder(grid, changed, image_index)
    torch.testing.assert_close(other[1, :3], logits[1, :3])
    assert not torch.allclose(other[1, 3], logits[1, 3])


@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_a_caption_depends_on_its_own_image_alone(kind):
    decoder = make(kind)
    grid, captions, image_index = batch()
    logits, _ = decoder(grid, captions, image_index)
    grid[0] += 1
    other, _ = decoder(grid, captions, image_index)
    torch.testing.assert_close(other[[0, 3]], logits[[0, 3]])
    assert not torch.allclose(other[1], logits[1])


def test_attention_sums_to_one_over_the_cells_and_is_zero_on_padding():
    decoder = make("attention")
    grid, captions, image_index = batch()
    _, alphas = decoder(grid, captions, image_index)
    real = captions[:, 1:] != 0
    torch.testing.assert_close(alphas.sum(dim=2), real.float())


def test_tied_embeddings_are_one_tensor():
    decoder = make("attention")
    assert decoder.output.score.weight is decoder.embedding.weight


@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_word_dropout_silences_whole_words_in_training_alone(kind):
    kinds = {"attention": AttentionDecoder, "lstm": LSTMDecoder}
    decoder = kinds[kind](GRID, WORDS, 8, 10, 1, dropout=0.0, tie=True, word_dropout=0.25)
    words = torch.ones(1000, 6, 8)
    heard = decoder.train().hear(words)
    silent = (heard == 0).all(dim=2)
    torch.testing.assert_close(heard[~silent], torch.full_like(heard[~silent], 1 / 0.75))
    assert 0.2 < silent.float().mean() < 0.3
    assert torch.equal(decoder.eval().hear(words), words)


def test_forget_gates_start_open():
    assert (make("attention").from_word.bias.chunk(4)[1] == 1).all()
    lstm = make("lstm").lstm
    assert all((bias.chunk(4)[1] == 1).all() for bias in (lstm.bias_ih_l0, lstm.bias_ih_l1))
