"""Self-critical and actor-critic training against a vocabulary small enough to enumerate."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.dataset import Batch
from models.decoders import DECODERS
from models.model import CaptionModel, build_model
from models.search import SearchOptions, search
from tests.helpers import CPU, loss_of, packed, randoms, small_decoder, tiny, unpacked
from training.objective import Part
from training.objectives.actor_critic import (
    ActorCritic,
    ActorCriticAverages,
    discounted,
    entropy_weight,
    prepare,
)
from training.objectives.self_critical import SelfCritical, leave_one_out
from training.rollout import log_probabilities, rollout
from training.trainer import Trainer
from utils import EOS, PAD, SOS

VOCAB_SIZE, LONGEST = 6, 2  # two words besides <eos>, and at most two of them in a caption
# One reference caption, "4": what the rewards are made of, until a test sets its own.
TRAIN_SET = SimpleNamespace(all_captions=lambda: (np.array([[4, EOS]]), np.array([0])))


def toy_model(kind: str = "lstm") -> CaptionModel:
    sizes = {"embed_dim": 4, "hidden_dim": 5, "attention_dim": 4, "heads": 1, "tie_embeddings": False}
    layers = 2 if kind == "lstm" else 1
    decoder = small_decoder(kind, grid_dim=3, vocab_size=VOCAB_SIZE, layers=layers, **sizes)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)  # far from all words being equally likely
    encoder = torch.nn.Identity()
    encoder.trained = []
    return CaptionModel(encoder, decoder)


def toy_batch(images: int) -> Batch:
    """One image as often as is wanted; its captions are not looked at."""
    grid = torch.linspace(-1, 1, 6).view(1, 2, 3).expand(images, 2, 3)
    return Batch(grid, torch.zeros(1, 1), torch.ones(1), torch.zeros(1))


def toy_reward(tokens: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Something that depends on every word, on their order and on whether the sentence ended."""
    weights = np.array([0.0, 0, 0.7, 0, 1.0, -0.4])
    places = np.array([1.0, 0.6, 1.5])[: tokens.shape[1]]
    return 1 + (weights[tokens] * places).sum(axis=1)


def every_caption() -> torch.Tensor:
    """All that can be said: <sos>, up to two words, <eos> or, where it is cut, a third word."""
    captions = set()
    for words in itertools.product([EOS, 4, 5], repeat=LONGEST + 1):
        length = words.index(EOS) + 1 if EOS in words else len(words)
        captions.add((SOS, *words[:length], *[PAD] * (len(words) - length)))
    return torch.tensor(sorted(captions))


def probabilities(model: CaptionModel, captions: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Of each caption (M,), word by word, with a gradient: the definition, without any of the fast paths."""
    grid = toy_batch(len(captions)).images
    state, total = model.decoder.start(grid), torch.zeros(len(captions))
    for t in range(captions.shape[1] - 1):
        logits, state, _ = model.decoder.step(captions[:, t], state)
        allowed = logits[:, [EOS, 4, 5]] / temperature
        place = torch.tensor([0, 0, 0, 0, 1, 2])[captions[:, t + 1]].unsqueeze(1)
        log_prob = allowed.log_softmax(dim=1).gather(1, place).squeeze(1)
        total = total + torch.where(captions[:, t + 1] == PAD, torch.zeros(()), log_prob)
    return total.exp()


def gradient(model: CaptionModel, value: torch.Tensor) -> torch.Tensor:
    parameters = list(model.decoder.parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return torch.cat([
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for p, g in zip(parameters, gradients, strict=True)
    ])  # fmt: skip


def exact_gradient(model: CaptionModel, temperature: float = 1.0) -> torch.Tensor:
    captions = every_caption()
    rewards = torch.tensor(toy_reward(captions[:, 1:].numpy(), None), dtype=torch.float32)
    return gradient(model, (probabilities(model, captions, temperature) * rewards).sum())


def objective(kind, model: CaptionModel, tmp_path, rewards=toy_reward, **rl):
    config = tiny(
        tmp_path,
        decoder={"kind": "lstm", "layers": 2, "hidden_dim": 5},
        train={"objective": "self_critical", "init_from": "some/best.pth", "lr": 0.01},
        search={"max_length": LONGEST},
    )
    config.rl = config.rl.model_copy(update=rl)
    made = kind(model, config, CPU, TRAIN_SET)
    made.rewards = rewards
    return made


def test_all_captions_together_have_probability_one():
    assert len(every_caption()) == 1 + 2 + 4 * 3
    assert float(probabilities(toy_model(), every_caption()).sum().detach()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "rl"),
    [
        (SelfCritical, {"baseline": "greedy", "samples": 3}),
        (SelfCritical, {"baseline": "leave_one_out", "samples": 2}),
        (SelfCritical, {"baseline": "leave_one_out", "samples": 4, "temperature": 0.7}),
        (ActorCritic, {"batch_mean": False, "reward_clip": 0.0, "entropy_weight": 0.0, "samples": 4}),
        (ActorCritic, {"batch_mean": True, "reward_clip": 0.0, "entropy_weight": 0.0, "samples": 4}),
    ],
)
def test_the_estimate_is_the_exact_gradient_of_the_expected_reward(tmp_path, kind, rl):
    model = toy_model()
    trained = objective(kind, model, tmp_path, **rl)
    if kind is ActorCritic:  # a critic that is wrong, and differently so after every word
        with torch.no_grad():
            trained.critic.layers[2].weight.mul_(20)
    batch = toy_batch(20_000)
    loss = loss_of(trained, batch, range(len(batch.images)), 1)
    estimate, exact = -gradient(model, loss.total), exact_gradient(model, rl.get("temperature", 1.0))
    assert float((estimate - exact).norm() / exact.norm()) < 0.08


def test_the_baseline_changes_the_variance_and_not_the_expected_gradient():
    model, captions = toy_model(), every_caption()
    rewards = torch.tensor(toy_reward(captions[:, 1:].numpy(), None), dtype=torch.float32)
    probability = probabilities(model, captions).detach()
    scores = torch.stack(
        [gradient(model, p.log()) for p in probabilities(model, captions)]
    )  # (M, parameters)
    first, second = (x.flatten() for x in torch.meshgrid(*[torch.arange(len(captions))] * 2, indexing="ij"))
    weight = (probability[first] * probability[second]).unsqueeze(1)  # of each pair of samples

    pairs = torch.stack([rewards[first], rewards[second]], dim=1)
    advantage = leave_one_out(pairs).neg() + pairs
    with_baseline = (advantage[:, :1] * scores[first] + advantage[:, 1:] * scores[second]) / 2
    without = (pairs[:, :1] * scores[first] + pairs[:, 1:] * scores[second]) / 2
    exact = exact_gradient(model)
    for estimates in (with_baseline, without):
        torch.testing.assert_close((weight * estimates).sum(dim=0), exact, atol=1e-5, rtol=1e-3)
    variance = [(weight * (e - exact).square()).sum() for e in (with_baseline, without)]
    assert variance[0] < 0.7 * variance[1]


@pytest.mark.parametrize("kind", [SelfCritical, ActorCritic])
def test_training_raises_the_reward(tmp_path, kind):
    model = toy_model()
    objective_ = objective(kind, model, tmp_path, entropy_weight=0.0)
    trainer = Trainer(objective_, steps_per_epoch=100)
    rewards = [trainer.step([Part(toy_batch(16), range(16))], epoch) for epoch in range(1, 61)]
    means = [float(loss["reward"] / loss["captions"]) for loss in rewards]
    best = toy_reward(every_caption()[:, 1:].numpy(), None).max()
    assert means[0] < best - 1.5
    assert np.mean(means[-5:]) > best - 0.5


def test_the_critic_learns_a_constant_reward(tmp_path):
    model = toy_model()
    sevens = lambda tokens, images: np.full(len(tokens), 0.7)  # noqa: E731
    constant = objective(ActorCritic, model, tmp_path, rewards=sevens, batch_mean=False)
    trainer = Trainer(constant, steps_per_epoch=300)
    losses = [trainer.step([Part(toy_batch(8), range(8))], epoch) for epoch in range(1, 301)]
    errors = [float(loss["critic_loss"] / loss["tokens"]) for loss in losses]
    assert errors[0] > 0.1
    assert max(errors[-5:]) < 1e-3


def test_the_baseline_leaves_out_the_sample_itself():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    assert leave_one_out(rewards).tolist() == [[4.0, 3.5, 1.5], [3.0, 3.0, 3.0]]


@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_what_all_captions_are_rewarded_alike_for_teaches_nothing(tmp_path, baseline):
    model = toy_model()
    made = objective(
        SelfCritical,
        model,
        tmp_path,
        rewards=lambda tokens, images: np.full(len(tokens), 0.7),
        baseline=baseline,
    )
    loss = loss_of(made, toy_batch(8), range(8), 1)
    assert float(gradient(model, loss.total).abs().max()) < 1e-6


def test_each_caption_is_rewarded_for_its_own_image(tmp_path):
    made = objective(SelfCritical, toy_model(), tmp_path, rewards=lambda tokens, images: images / 2)
    captions = torch.tensor([[SOS, 4, EOS]] * 6)
    assert made.score(captions, [5, 7]).tolist() == [2.5] * 3 + [3.5] * 3


def test_rewards_are_of_the_words_behind_the_start(tmp_path):
    made = objective(SelfCritical, toy_model(), tmp_path, rewards=lambda tokens, images: tokens[:, 0])
    assert made.score(torch.tensor([[SOS, 4, EOS], [SOS, 5, EOS]]), [0]).tolist() == [4, 5]


def test_a_step_learns_from_all_samples_of_each_image(tmp_path):
    assert objective(SelfCritical, toy_model(), tmp_path, samples=3).num_captions(toy_batch(5)) == 15


def test_figures_are_means_over_captions_and_those_of_words_over_tokens():
    averages = ActorCriticAverages(CPU)
    sums = {"reward": 6, "actor_loss": 3, "entropy": 8, "captions": 2, "tokens": 4, "critic_loss": 1}
    for _ in range(2):
        averages.add({name: torch.tensor(value) for name, value in sums.items()})
    assert averages.read() == {"reward": 3, "actor_loss": 1.5, "entropy": 2, "critic_loss": 0.25}


def test_the_critic_s_error_has_its_weight_in_the_loss(tmp_path):
    model, losses = toy_model(), []
    made = objective(ActorCritic, model, tmp_path)
    for weight in (0.5, 2.0):
        made.config.rl = made.config.rl.model_copy(update={"value_weight": weight})
        losses.append(loss_of(made, toy_batch(8), range(8), 1))
    error = losses[0].sums["critic_loss"] / losses[0].sums["tokens"]
    difference = losses[1].total - losses[0].total
    torch.testing.assert_close(difference.detach(), 1.5 * error)


def fake_rewards(tokens: np.ndarray, images: np.ndarray) -> np.ndarray:
    return (tokens == 4).sum(axis=1).astype(float)


@pytest.mark.parametrize("kind", [SelfCritical, ActorCritic])
@pytest.mark.parametrize("fine_tune", ["none", "all"])
def test_a_gradient_reaches_the_encoder_only_where_it_is_trained(tmp_path, kind, fine_tune):
    config = tiny(
        tmp_path,
        encoder={"fine_tune": fine_tune},
        train={"objective": "self_critical", "init_from": "some/best.pth", "warmup": 0},
    )
    model = build_model(config, vocab_size=VOCAB_SIZE)
    trained = kind(model, config, CPU, TRAIN_SET)
    trained.rewards = fake_rewards
    trainer = Trainer(trained, steps_per_epoch=10)
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    statistics = {key for key in before if "running" in key or "batches" in key}
    trainer.step([Part(Batch(torch.randn(2, 3, 32, 32), None, None, None), [0, 1])], 1)
    after = model.encoder.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    if fine_tune == "none":
        assert all(p.grad is None for p in model.encoder.parameters())
        assert not moved
    else:
        assert moved
        assert not moved & statistics  # batch norm stays as it will be when images are captioned


@pytest.mark.parametrize("kind", DECODERS)
def test_finished_captions_leave_the_batch_without_changing_the_others(kind):
    model = toy_model(kind)
    grid = torch.randn(7, 2, 3)
    captions, states = rollout(model.decoder, grid, randoms(7, 4, 10), temperature=1.0)
    assert captions.shape[0] == 28
    assert states.shape[:2] == (28, captions.shape[1] - 1)
    lengths = (captions != PAD).sum(dim=1)
    assert lengths.min() < lengths.max()
    for caption, length in zip(captions.tolist(), lengths.tolist(), strict=True):
        assert caption[0] == SOS
        assert caption[length:] == [PAD] * (len(caption) - length)
        assert EOS not in caption[: length - 1]
        assert caption[length - 1] == EOS or length == 9 + 2
        assert set(caption[1:length]) <= {EOS, 4, 5}
    # The states are those in which each word was chosen: nothing of that word is in them.
    rows = torch.arange(7).repeat_interleave(4)
    state = model.decoder.start(grid[rows])
    for t in range(captions.shape[1] - 1):
        _, state, _ = model.decoder.step(captions[:, t], state)
        is_token = captions[:, t + 1] != PAD
        torch.testing.assert_close(states[is_token, t], model.decoder.critic_input(state)[is_token])


@pytest.mark.parametrize("kind", [SelfCritical, ActorCritic])
def test_what_is_sampled_for_an_image_depends_on_the_seed_and_the_epoch_alone(tmp_path, kind):
    made = objective(kind, toy_model(), tmp_path, samples=3)
    grid = torch.randn(9, 2, 3)

    def sampled(places: list[int], epoch: int = 1) -> list:
        captions = made.sample(grid[places], places, epoch).captions.unflatten(0, (-1, 3))
        return F.pad(captions, (0, LONGEST + 2 - captions.shape[2])).tolist()

    whole = sampled([*range(9)])
    assert whole == [*sampled([0, 1, 2, 3]), *sampled([4, 5, 6, 7, 8])]
    assert whole != sampled([*range(9)], epoch=2)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_greedy_caption_is_the_search_s_and_comes_first(kind):
    model = toy_model(kind)
    grid = torch.randn(7, 2, 3)
    captions, _ = rollout(model.decoder, grid, randoms(7, 3, 31), temperature=1.0, greedy=True)
    expected = search(model.decoder, grid, SearchOptions(beam=1, max_length=30)).tokens[:, 0]
    greedy = captions.view(7, 4, -1)[:, 0, 1:]
    for mine, theirs in zip(greedy.tolist(), expected.tolist(), strict=True):
        assert [token for token in mine if token][:30] == [token for token in theirs if token][:30]


@pytest.mark.parametrize("kind", DECODERS)
def test_probabilities_and_entropy_are_those_of_the_words_that_were_drawn(kind):
    model, captions = toy_model(kind), every_caption()
    grid = toy_batch(1).images
    rows = packed(captions, torch.zeros(len(captions), dtype=torch.int64), 1)
    log_probs, entropy = log_probabilities(model.decoder, grid, rows, temperature=0.5)
    total = unpacked(log_probs, rows, captions).sum(dim=1)
    torch.testing.assert_close(total.exp(), probabilities(model, captions, 0.5))
    logits, _, _ = model.decoder.step(torch.tensor([SOS]), model.decoder.start(grid))
    first = (logits[0, [EOS, 4, 5]] / 0.5).softmax(dim=0)
    expected = -(first * first.log()).sum()
    torch.testing.assert_close(entropy[0], expected)


def test_a_model_that_is_not_finite_is_sampled_without_an_error_and_its_loss_is_nan():
    model, grid = toy_model(), toy_batch(3).images
    with torch.no_grad():
        model.decoder.output.score.bias.fill_(torch.nan)
    captions, _ = rollout(model.decoder, grid, randoms(3, 2, 5), temperature=1.0)
    rows = packed(captions, torch.arange(3).repeat_interleave(2), 3)
    log_probs, _ = log_probabilities(model.decoder, grid, rows, temperature=1.0)
    assert log_probs.isnan().all()


def test_rewards_are_centred_clipped_discounted_as_worked_out_by_hand():
    rl = SimpleNamespace(batch_mean=True, reward_clip=1.5)
    rewards = torch.tensor([0.0, 1.0, 5.0])
    torch.testing.assert_close(prepare(rewards, torch.tensor(2.0), rl), torch.tensor([-1.5, -1.0, 1.5]))
    rl = SimpleNamespace(batch_mean=False, reward_clip=0.0)
    torch.testing.assert_close(prepare(rewards, torch.tensor(2.0), rl), rewards)
    captions = torch.tensor([[SOS, EOS, PAD, PAD], [SOS, 4, 4, EOS]])
    rows = packed(captions, torch.tensor([0, 0]), 1)
    returns = unpacked(discounted(torch.tensor([3.0, 8.0]), rows, gamma=0.5), rows, captions)
    assert returns.tolist() == [[3.0, 0.0, 0.0], [2.0, 4.0, 8.0]]


def test_the_entropy_bonus_falls_over_the_epochs_unless_told_not_to():
    annealed = SimpleNamespace(entropy_weight=0.4, anneal_entropy=True)
    constant = SimpleNamespace(entropy_weight=0.4, anneal_entropy=False)
    assert [entropy_weight(annealed, epoch, 4) for epoch in (1, 2, 3, 4)] == pytest.approx(
        [0.4, 0.3, 0.2, 0.1]
    )
    assert entropy_weight(constant, 4, 4) == 0.4


def test_the_entropy_bonus_keeps_the_policy_open(tmp_path):
    entropies = []
    for weight in (0.0, 3.0):
        model = toy_model()
        trained = objective(ActorCritic, model, tmp_path, entropy_weight=weight, anneal_entropy=False)
        trainer = Trainer(trained, steps_per_epoch=100)
        losses = [trainer.step([Part(toy_batch(16), range(16))], epoch) for epoch in range(1, 61)]
        entropies.append(float(losses[-1]["entropy"] / losses[-1]["tokens"]))
    assert entropies[1] > entropies[0] + 0.3
