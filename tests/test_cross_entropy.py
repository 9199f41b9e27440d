"""Cross entropy, and scheduled sampling."""

from dataclasses import replace

import pytest
import torch

from data.dataset import Batch
from models.decoders import DECODERS
from models.model import build_model
from tests.helpers import CPU, IMAGES, loss_of, packed, randoms, small_decoder, tiny, unpacked
from training.loss import caption_loss
from training.objectives.cross_entropy import CrossEntropy, sampling_probability, scheduled_sampling
from utils import EOS, PAD, SOS, UNK

# The last caption was cut.
CAPTIONS = torch.tensor([[SOS, 4, 5, 6, EOS], [SOS, 5, EOS, PAD, PAD], [SOS, 6, 6, 4, 4]])
LENGTHS, IMAGE_INDEX = torch.tensor([5, 3, 5]), torch.tensor([0, 0, 1])


def certain_decoder(kind: str):
    """One whose distributions are so sharp that a sample is the most likely word."""
    decoder = small_decoder(kind, grid_dim=3, vocab_size=9, dropout=0.0, tie_embeddings=False)
    with torch.no_grad():
        decoder.output.score.weight.mul_(1000)
    return decoder


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_sampled_words_follow_from_the_sampled_words_before_them(kind):
    made, grid, captions = certain_decoder(kind), torch.randn(2, 4, 3), packed(CAPTIONS, IMAGE_INDEX, 2)
    read = scheduled_sampling(made, grid, captions, randoms(2, 2, 10), probability=1.0)
    logits = unpacked(made(grid, read)[0], read, CAPTIONS)
    logits[:, :, [PAD, SOS, EOS, UNK]] = -torch.inf
    inputs, expected = unpacked(read.inputs, read, CAPTIONS), logits.argmax(dim=2)
    is_word = unpacked(captions.inputs, captions, CAPTIONS) > EOS
    assert inputs[:, 1:][is_word[:, 1:]].tolist() == expected[:, :-1][is_word[:, 1:]].tolist()
    assert torch.equal(read.inputs[:3], torch.full((3,), SOS))
    assert torch.equal(read.targets, captions.targets)


@torch.no_grad()
def test_words_are_replaced_with_the_given_probability():
    padded = torch.tensor([[SOS, 4, 4, 4, 4, EOS]]).repeat(500, 1)
    captions = packed(padded, torch.zeros(500, dtype=torch.int64), 1)
    made, grid = certain_decoder("lstm"), torch.randn(1, 4, 3)
    made.output.score.bias[4] = -1e6  # the model itself never samples 4
    numbers = randoms(1, 500, 12)
    read = scheduled_sampling(made, grid, captions, numbers, probability=0.25).inputs
    assert float((read[500:] != 4).float().mean()) == pytest.approx(0.25, abs=0.04)
    unchanged = scheduled_sampling(made, grid, captions, numbers, probability=0.0)
    assert torch.equal(unchanged.inputs, captions.inputs)


def test_the_probability_rises_from_0_to_that_of_the_last_epoch():
    assert [sampling_probability(0.4, epoch, 5) for epoch in (1, 3, 5)] == pytest.approx([0, 0.2, 0.4])


def test_the_model_reads_sampled_words_and_is_compared_with_the_caption(tmp_path):
    config = tiny(tmp_path, decoder={"dropout": 0}, train={"scheduled_sampling": 0.9, "epochs": 2})
    model = build_model(config, vocab_size=9)
    objective = CrossEntropy(model, config, CPU, train_set=None)
    batch = Batch(IMAGES[:2], CAPTIONS, LENGTHS, IMAGE_INDEX)
    plain = caption_loss(*forward(model, batch), config.train.label_smoothing, config.train.attention_weight)
    first = loss_of(objective, batch, [0, 1], 1)
    assert first.total == plain.total
    sampled = loss_of(objective, batch, [0, 1], 2)
    assert sampled.sums["nll"] != plain.sums["nll"]
    assert sampled.sums["tokens"] == plain.sums["tokens"]
    assert model.training


def test_sampled_words_are_read_and_the_caption_s_own_are_the_targets(tmp_path, monkeypatch):
    config = tiny(tmp_path, decoder={"dropout": 0}, train={"scheduled_sampling": 0.9, "epochs": 2})
    model = build_model(config, vocab_size=9)
    objective = CrossEntropy(model, config, CPU, train_set=None)
    batch = Batch(IMAGES[:2], CAPTIONS, LENGTHS, IMAGE_INDEX)
    captions = batch.packed()
    read = replace(captions, inputs=torch.where(captions.inputs > EOS, 8, captions.inputs))
    monkeypatch.setattr(objective, "sample_inputs", lambda *_: read)
    logits, _ = model(batch.images, read)
    loss = loss_of(objective, batch, [0, 1], 2)
    torch.testing.assert_close(loss.sums["nll"], caption_loss(logits, captions).sums["nll"])


def forward(model, batch: Batch):
    logits, alphas = model(batch.images, batch.packed())
    return logits, batch.packed(), alphas


def test_what_is_sampled_for_an_image_does_not_depend_on_the_others(tmp_path):
    config = tiny(tmp_path, train={"scheduled_sampling": 0.9, "epochs": 2})
    objective = CrossEntropy(build_model(config, vocab_size=9), config, CPU, train_set=None)

    def read(index: int, captions: list[int]) -> torch.Tensor:
        """What is read of the captions of one image, in a batch with the first `captions`."""
        images = IMAGE_INDEX[captions] - IMAGE_INDEX[captions].min()
        batch = packed(CAPTIONS[captions], images, int(images.max()) + 1)
        indices = sorted({int(IMAGE_INDEX[c]) + 7 for c in captions})
        sampled = objective.sample_inputs(IMAGES[: len(indices)], batch, indices, 2)
        padded = unpacked(sampled.inputs, sampled, CAPTIONS[captions])
        return padded[IMAGE_INDEX[captions] == index]

    assert torch.equal(read(0, [0, 1, 2]), read(0, [0, 1]))
