"""Cross entropy, and scheduled sampling."""

import pytest
import torch

from data.dataset import Batch
from models.decoders import DECODERS
from models.model import build_model
from tests.helpers import CPU, IMAGES, small_decoder, tiny
from training.loss import caption_loss
from training.objectives.cross_entropy import CrossEntropy, sampling_probability, scheduled_sampling
from utils import EOS, PAD, SOS, UNK

# The last caption was cut.
CAPTIONS = torch.tensor([[SOS, 4, 5, 6, EOS], [SOS, 5, EOS, PAD, PAD], [SOS, 6, 6, 4, 4]])


def certain_decoder(kind: str):
    """One whose distributions are so sharp that a sample is the most likely word."""
    decoder = small_decoder(kind, grid_dim=3, vocab_size=9, dropout=0.0, tie_embeddings=False)
    with torch.no_grad():
        decoder.output.score.weight.mul_(1000)
    return decoder


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_sampled_words_follow_from_the_sampled_words_before_them(kind):
    made, grid, image_index = certain_decoder(kind), torch.randn(2, 4, 3), torch.tensor([0, 0, 1])
    read = scheduled_sampling(made, grid, CAPTIONS, image_index, probability=1.0)
    logits, _ = made(grid, read, image_index)
    logits[:, :, [PAD, SOS, EOS, UNK]] = -torch.inf
    words = CAPTIONS > EOS
    words[:, -1] = False  # no step reads the last one
    expected = logits.argmax(dim=2)[words[:, 1:]]
    assert read[:, 1:][words[:, 1:]].tolist() == expected.tolist()
    assert torch.equal(read[~words], CAPTIONS[~words])


@torch.no_grad()
def test_words_are_replaced_with_the_given_probability():
    captions = torch.tensor([[SOS, 4, 4, 4, 4, EOS]]).repeat(500, 1)
    made, grid, image_index = (
        certain_decoder("lstm"),
        torch.randn(1, 4, 3),
        torch.zeros(500, dtype=torch.int64),
    )
    made.output.score.bias[4] = -1e6  # the model itself never samples 4
    read = scheduled_sampling(made, grid, captions, image_index, probability=0.25)
    assert float((read[:, 1:5] != 4).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert torch.equal(scheduled_sampling(made, grid, captions, image_index, probability=0.0), captions)


def test_the_probability_rises_from_0_to_that_of_the_last_epoch():
    assert [sampling_probability(0.4, epoch, 5) for epoch in (1, 3, 5)] == pytest.approx([0, 0.2, 0.4])


def test_the_model_reads_sampled_words_and_is_compared_with_the_caption(tmp_path):
    config = tiny(tmp_path, decoder={"dropout": 0}, train={"scheduled_sampling": 0.9, "epochs": 2})
    model = build_model(config, vocab_size=9)
    objective = CrossEntropy(model, config, CPU, train_set=None)
    batch = Batch(IMAGES[:2], CAPTIONS, None, torch.tensor([0, 0, 1]))
    plain = caption_loss(*forward(model, batch), config.train.label_smoothing, config.train.attention_weight)
    first = objective(batch, [0, 1], epoch=1)
    assert first.total(CPU) == plain.total(CPU)
    sampled = objective(batch, [0, 1], epoch=2)
    assert sampled.sums["nll"] != plain.sums["nll"]
    assert sampled.sums["tokens"] == plain.sums["tokens"]
    assert model.training


def test_sampled_words_are_read_and_the_caption_s_own_are_the_targets(tmp_path, monkeypatch):
    config = tiny(tmp_path, decoder={"dropout": 0}, train={"scheduled_sampling": 0.9, "epochs": 2})
    model = build_model(config, vocab_size=9)
    objective = CrossEntropy(model, config, CPU, train_set=None)
    batch = Batch(IMAGES[:2], CAPTIONS, None, torch.tensor([0, 0, 1]))
    inputs = torch.where(CAPTIONS > EOS, 8, CAPTIONS)
    monkeypatch.setattr(objective, "sample_inputs", lambda *_: inputs)
    logits, _ = model(batch.images, inputs, batch.image_index)
    loss = objective(batch, [0, 1], epoch=2)
    torch.testing.assert_close(loss.sums["nll"], caption_loss(logits, CAPTIONS).sums["nll"])


def forward(model, batch: Batch):
    logits, alphas = model(batch.images, batch.captions, batch.image_index)
    return logits, batch.captions, alphas
