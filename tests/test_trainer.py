"""One training step, and the moving average of the weights."""

import pytest
import torch

from data.dataset import Batch
from models.decoders import DECODERS
from models.model import build_model
from tests.helpers import CPU, IMAGES, tiny
from training.objective import Part
from training.objectives.cross_entropy import CrossEntropy
from training.trainer import Trainer
from utils import EOS, PAD, SOS

CAPTIONS = torch.tensor([[SOS, 4, 5, EOS], [SOS, 5, EOS, PAD], [SOS, 5, 5, EOS]])
BATCH = Batch(IMAGES[:2], CAPTIONS, torch.tensor([4, 3, 4]), torch.tensor([0, 0, 1]))


def make(tmp_path, **sections) -> Trainer:
    config = tiny(tmp_path, **sections)
    objective = CrossEntropy(build_model(config, vocab_size=6), config, CPU, train_set=None)
    return Trainer(objective, steps_per_epoch=10)


def weights(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("fine_tune", ["none", "all"])
def test_steps_on_one_batch_learn_it(tmp_path, kind, fine_tune):
    trainer = make(
        tmp_path,
        decoder={"kind": kind, "dropout": 0},
        encoder={"fine_tune": fine_tune},
        train={"label_smoothing": 0, "warmup": 0, "schedule": "constant"},
    )
    losses = [float(trainer.step([Part(BATCH, [0, 1])], 1)["nll"]) for _ in range(60)]
    # Two captions of one image begin alike for the model: their first words cannot both be certain.
    assert losses[-1] < losses[0] / 4


def test_no_gradient_reaches_a_frozen_encoder(tmp_path):
    trainer = make(tmp_path)
    before = weights(trainer.model.encoder)
    trainer.step([Part(BATCH, [0, 1])], 1)
    assert all(p.grad is None for p in trainer.model.encoder.parameters())
    assert all(torch.equal(before[key], value) for key, value in weights(trainer.model.encoder).items())


def test_the_encoder_has_its_own_learning_rate(tmp_path):
    trainer = make(
        tmp_path, encoder={"fine_tune": "all"}, train={"lr": 0.1, "encoder_lr": 0.003, "warmup": 0}
    )
    trainer.step([Part(BATCH, [0, 1])], 1)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.1, 0.003])


def test_the_rate_follows_the_schedule_and_weights_decay(tmp_path):
    trainer = make(tmp_path, train={"lr": 0.1, "warmup": 1, "weight_decay": 0.03})  # 10 steps an epoch
    rates = []
    for _ in range(3):
        trainer.step([Part(BATCH, [0, 1])], 1)
        rates.append(trainer.lr)
    assert rates == pytest.approx([0.01, 0.02, 0.03])
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.03}


def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path):
    trainer = make(tmp_path, train={"clip": 1e-3})
    trainer.step([Part(BATCH, [0, 1])], 1)
    norm = torch.stack([p.grad.norm() for p in trainer.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_of_the_weights_is_the_one_worked_out_by_hand(tmp_path):
    trainer = make(tmp_path, train={"average": 0.15})
    history = []
    for _ in range(3):
        trainer.step([Part(BATCH, [0, 1])], 1)
        history.append(weights(trainer.model.decoder)["embedding.weight"])
    # The first weights as they are, then a decay of min(0.15, (1 + n) / (10 + n)).
    expected = 0.15 * history[0] + 0.85 * history[1]
    expected = 0.15 * expected + 0.85 * history[2]
    torch.testing.assert_close(weights(trainer.evaluated)["decoder.embedding.weight"], expected)
    assert trainer.evaluated.encoder is trainer.model.encoder


def test_without_an_average_the_model_itself_is_kept(tmp_path):
    trainer = make(tmp_path)
    assert trainer.evaluated is trainer.model
