"""Cross entropy, and scheduled sampling."""

import pytest
import torch

from data.dataset import Batch
from models.decoder import AttentionDecoder, LSTMDecoder
from models.model import build_model
from tests.conftest import tiny
from training.cross_entropy import CrossEntropy, rising, scheduled_sampling
from training.loss import caption_loss
from utils import EOS, PAD, SOS

CAPTIONS = torch.tensor([[1, 4, 5, 6, 2], [1, 5, 2, 0, 0], [1, 6, 6, 4, 4]])  # the last one was cut


def decoder(kind: str):
    torch.manual_seed(0)
    common = {"grid_dim": 3, "words": 9, "embed_dim": 4, "hidden_dim": 5, "dropout": 0.0, "tie": False}
    made = LSTMDecoder(layers=1, **common) if kind == "lstm" else AttentionDecoder(attention_dim=4, **common)
    with torch.no_grad():
        made.output.score.weight.mul_(1000)  # so sure of itself that a draw is a maximum
    return made


@pytest.mark.parametrize("kind", ["lstm", "attention"])
@torch.no_grad()
def test_own_words_follow_from_own_words(kind):
    made, grid, image_index = decoder(kind), torch.randn(2, 4, 3), torch.tensor([0, 0, 1])
    read = scheduled_sampling(made, grid, CAPTIONS, image_index, probability=1.0)
    logits, _ = made(grid, read, image_index)
    logits[:, :, [PAD, SOS, EOS, 3]] = -torch.inf
    words = CAPTIONS > EOS
    words[:, -1] = False  # nothing reads the last one
    said = logits.argmax(dim=2)[words[:, 1:]]
    assert read[:, 1:][words[:, 1:]].tolist() == said.tolist()
    assert torch.equal(read[~words], CAPTIONS[~words])


@torch.no_grad()
def test_words_are_replaced_with_the_probability_asked_for():
    captions = torch.tensor([[1, 4, 4, 4, 4, 2]]).repeat(500, 1)
    made, grid, image_index = decoder("lstm"), torch.randn(1, 4, 3), torch.zeros(500, dtype=torch.int64)
    made.output.score.bias[4] = -1e6  # the model itself never says 4
    torch.manual_seed(1)
    read = scheduled_sampling(made, grid, captions, image_index, probability=0.25)
    assert float((read[:, 1:5] != 4).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert torch.equal(scheduled_sampling(made, grid, captions, image_index, probability=0.0), captions)


def test_the_probability_rises_from_nothing_to_the_last_epoch_s():
    assert [rising(0.4, epoch, 5) for epoch in (1, 3, 5)] == pytest.approx([0, 0.2, 0.4])


def test_the_model_reads_its_own_words_and_is_judged_by_the_caption_s(tmp_path):
    config = tiny(tmp_path, decoder={"dropout": 0}, train={"scheduled_sampling": 0.9, "epochs": 2})
    torch.manual_seed(0)
    model = build_model(config, words=9)
    objective = CrossEntropy(model, config, torch.device("cpu"), torch.float32)
    batch = Batch(torch.randn(2, 3, 32, 32), CAPTIONS, None, torch.tensor([0, 0, 1]))
    plain = caption_loss(*forward(model, batch), config.train.label_smoothing, config.train.attention_weight)
    assert objective.loss(batch, [0, 1], epoch=1) == plain
    sampled = objective.loss(batch, [0, 1], epoch=2)
    assert sampled.nll != plain.nll
    assert sampled.tokens == plain.tokens
    assert model.training


def forward(model, batch: Batch):
    logits, alphas = model(batch.images, batch.captions, batch.image_index)
    return logits, batch.captions, alphas
