"""Similar training images: how they are found, what checkpoints keep of them, and what captions gain."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from captioning import Captioner
from data.captions import read_table
from data.transforms import read_image
from metrics.consensus import by_neighbours
from metrics.rewards import Rewards
from models.checkpoint import load_checkpoint, save_checkpoint
from models.neighbours import Neighbours
from models.pack import packed
from tests.helpers import CPU, tiny, write_dataset
from tests.run_helpers import go_on, make_run
from tests.script_helpers import run, write_config
from tests.test_consensus import captions_of
from training.datasets import make_datasets
from training.neighbours import find_neighbours
from utils import EOS, UserError

# Three images with one caption, two, and one, of words 4 to 9.
CELLS = torch.tensor([[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
CAPTIONS = np.array([[4, 5, EOS, 0], [6, 7, 8, EOS], [6, 7, EOS, 0], [9, EOS, 0, 0]])
OWNERS = np.array([0, 1, 1, 2])
THREE = Neighbours.of(CELLS, CAPTIONS, OWNERS)


def test_the_image_whose_mean_cell_points_in_the_same_direction_comes_first():
    grids = torch.stack([torch.tensor([[9.0, 1.0, 0.0], [11.0, -1.0, 2.0]]), torch.zeros(2, 3)])
    assert THREE.nearest(grids, 1).tolist() == [[1], [0]]
    assert sorted(THREE.nearest(grids[:1], 20)[0].tolist()) == [0, 1, 2]  # there are no more


def test_an_image_is_its_own_nearest_neighbour():
    cells = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    many = Neighbours.of(cells, np.full((40, 1), EOS), np.arange(40))
    assert many.components.shape == (200, 128)
    assert many.nearest(cells.unsqueeze(1), 1)[:, 0].tolist() == list(range(40))


def test_captions_come_back_as_they_were():
    captions, owners = THREE.captions()
    assert captions.tolist() == CAPTIONS.tolist()
    assert owners.tolist() == OWNERS.tolist()


def test_the_caption_that_is_most_like_those_of_similar_images_is_chosen():
    found = by_neighbours(captions_of([[4, 5, EOS], [6, 7, EOS], []]), THREE, np.array([[1, 2]]))
    assert found.tokens[0].tolist() == [[6, 7, EOS], [4, 5, EOS], [0, 0, 0]]
    assert torch.equal(found.log_probs, found.tokens / 100)  # everything moves along
    cider = Rewards(CAPTIONS, OWNERS, 10)
    mean = cider(np.array([[6, 7, EOS]] * 2), np.array([1, 2])).mean()
    # It agrees with itself in n-grams of 1 to 3 words; with the other it shares <eos>, one of 3 words.
    consensus = 10 * (3 / 4 + 1 / 3 / 4) / 2
    log_probability = -1  # of the second of captions_of
    expected = mean + 0.1 * consensus + 0.2 * log_probability
    assert found.scores[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert found.scores[0, 2] == -torch.inf


def test_of_captions_that_are_equally_like_them_the_more_probable_one_is_chosen():
    captions = captions_of([[4, 5, EOS], [4, 5, EOS]])
    captions = captions._replace(scores=torch.tensor([[-3.0, -2.0]]), log_probs=captions.log_probs * 0)
    captions.log_probs[0, 1] = 1  # marks the second
    found = by_neighbours(captions, THREE, np.array([[1, 2]]))
    assert found.log_probs[0, 0, 0] == 1
    assert found.scores[0, 0] - found.scores[0, 1] == pytest.approx(0.2, rel=1e-4)


def test_images_do_not_mix():
    one, other = [[4, 5, EOS], [6, 7, EOS]], [[9, EOS], [6, 8, EOS]]
    both = by_neighbours(captions_of(one, other), THREE, np.array([[0, 1], [2, 0]]))
    alone = by_neighbours(captions_of(one), THREE, np.array([[0, 1]]))
    assert torch.equal(both.scores[0], alone.scores[0])
    assert both.tokens[1, 0].tolist() == [9, EOS, 0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mean", None, "it has components, counts"),
        ("mean", torch.zeros(3, dtype=torch.int64), "no real numbers"),
        ("mean", torch.zeros(1, 3), "dimensions"),
        ("mean", torch.zeros(4), "do not fit together"),
        ("vectors", torch.zeros(2, 3), "do not fit together"),
        ("vectors", torch.zeros(0, 3), "dimensions"),
        ("components", torch.zeros(3, 2), "do not fit together"),
        ("counts", torch.tensor([1, 2, 2], dtype=torch.int32), "do not fit its images"),
        ("counts", torch.tensor([4, 0, 0], dtype=torch.int32), "do not fit its images"),
        ("counts", torch.tensor([1, 2, 1]), "no list of int32"),
        ("lengths", torch.tensor([3, 4, 3, 3], dtype=torch.int32), "do not fit its captions"),
        ("lengths", torch.tensor([3, 4, 5, 0], dtype=torch.int32), "do not fit its captions"),
        ("tokens", THREE.tokens.clone().fill_(10), "not in the vocabulary"),
        ("tokens", THREE.tokens.clone().fill_(0), "not in the vocabulary"),
        ("tokens", THREE.tokens.view(3, 4), "no list of int32"),
    ],
)
def test_tensors_that_are_no_neighbours_are_refused(name, value, message):
    tensors = THREE.as_dict()
    assert Neighbours.from_dict(tensors, 10).as_dict().keys() == tensors.keys()
    tensors = {key: x for key, x in (tensors | {name: value}).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        Neighbours.from_dict(tensors, 10)


@pytest.mark.parametrize("counts", [[1, 1, 2 * 10**4], [2 * 10**4, 1, 1]])
def test_a_few_numbers_cannot_ask_for_tables_larger_than_the_memory(counts):
    count = sum(counts)
    long = torch.ones(count, dtype=torch.int32)
    long[0] = 10**5
    tensors = THREE.as_dict() | {
        "counts": torch.tensor(counts, dtype=torch.int32),
        "lengths": long,
        "tokens": torch.full((count - 1 + 10**5,), EOS, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match="too long, or too many"):
        Neighbours.from_dict(tensors, 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data, and a finished run whose model has neighbours."""
    folder = tmp_path_factory.mktemp("neighbours")
    write_dataset(folder / "data")
    make_run(folder / "data", train={"epochs": 1}, search={"beam": 3, "rerank": "neighbours"}).train()
    return folder


def best(folder: Path) -> Path:
    return folder / "runs" / "tiny" / "best.pth"


def test_a_training_ends_with_the_neighbours_of_its_best_model(trained):
    captioner = Captioner.load(best(trained), compute=CPU)
    found = captioner.neighbours
    assert found
    assert len(found.vectors) == 16  # training images
    assert found.counts.tolist() == [2] * 16
    words = [captioner.vocabulary.decode(tokens) for tokens in found.captions()[0].tolist()]
    assert words[:2] == ["a red half on the left".split(), "on the left there is red".split()]
    # An image of the split is found again.
    image = captioner.transform(read_image(trained / "data" / "images" / "05.png"))
    grid = captioner.model.grid(image.unsqueeze(0))
    assert found.nearest(grid, 1).tolist() == [[5]]


def test_captions_are_those_of_the_search_in_the_order_of_the_neighbours(trained):
    captioner = Captioner.load(best(trained), compute=CPU)
    images = sorted((trained / "data" / "images").iterdir())
    plain, reranked = (
        [{r.caption, *(other.caption for other in r.others)} for r in captioner(images, rerank=rerank)]
        for rerank in ("none", "neighbours")
    )
    assert plain == reranked
    assert [r.caption for r in captioner(images, batch_size=5)] == [r.caption for r in captioner(images)]


def test_in_an_ensemble_the_first_model_with_neighbours_has_them(trained, tmp_path):
    content = torch.load(best(trained), weights_only=True)
    del content["neighbours"]
    save_checkpoint(tmp_path / "without.pth", content)
    image = trained / "data" / "images" / "17.png"
    twice = Captioner.load([tmp_path / "without.pth", best(trained)], compute=CPU)
    once = Captioner.load(best(trained), compute=CPU)
    assert next(twice([image])).caption == next(once([image])).caption


def test_without_neighbours_a_line_says_how_to_get_them(trained, tmp_path):
    captioner = replace(Captioner.load(best(trained), compute=CPU), neighbours=None)
    with pytest.raises(UserError, match=r"^search\.rerank=neighbours: .*--resume RUN search\.rerank="):
        captioner.options()
    assert captioner.options(rerank="none").rerank == "none"


def test_a_finished_run_gets_them_by_resuming_it(tmp_path, capsys):
    write_dataset(tmp_path / "data")
    make_run(tmp_path / "data", train={"epochs": 1}).train()
    assert load_checkpoint(best(tmp_path)).neighbours is None
    resumed, _ = go_on(tmp_path / "runs" / "tiny", "search.rerank=neighbours", "search.beam=3")
    assert resumed.train() == 0
    assert "Validation scores with beam 3, reranked by neighbours:" in capsys.readouterr().out
    checkpoint = load_checkpoint(best(tmp_path))
    assert checkpoint.neighbours
    assert checkpoint.config.search.rerank == "neighbours"
    assert checkpoint.config.search.beam == 3


def test_augmentation_and_features_change_nothing_about_them(tmp_path):
    write_dataset(tmp_path / "data")
    plain = make_run(tmp_path / "data")
    expected = find_neighbours(plain.captioner, plain.train_set)
    grid = torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(0))
    for features, augment in (({"cache": "off"}, ["crop", "flip"]), ({"views": 2}, ["crop", "flip"])):
        config = tiny(tmp_path / "data", data={"augment": augment}, features=features)
        captioner = replace(plain.captioner, config=config)
        [train_set] = make_datasets(captioner, read_table(config.data), ["train"], training=True)
        found = find_neighbours(captioner, train_set)
        torch.testing.assert_close(found.mean, expected.mean, atol=1e-3, rtol=0)
        assert np.array_equal(found.nearest(grid, 16), expected.nearest(grid, 16))


def test_a_model_that_is_trained_further_begins_without_neighbours(trained):
    resumed, _ = go_on(trained / "runs" / "tiny")
    assert resumed.captioner.neighbours is None


def test_a_packed_model_keeps_them(trained):
    content = packed(load_checkpoint(best(trained)), [])
    expected = Captioner.load(best(trained), compute=CPU).neighbours
    assert all(torch.equal(x, content["neighbours"][key]) for key, x in expected.as_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", torch.tensor([99], dtype=torch.int32), "neighbours: its tokens do not fit"),
        ("mean", torch.full((64,), torch.nan), "neighbours: mean"),
        ("mean", torch.zeros(3), "neighbours: its vectors do not fit together"),
    ],
)
def test_a_checkpoint_with_damaged_neighbours_is_refused(trained, tmp_path, name, value, message):
    content = torch.load(best(trained), weights_only=True)
    content["neighbours"][name] = value
    save_checkpoint(tmp_path / "best.pth", content)
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "best.pth")


def test_neighbours_of_another_encoder_are_refused(trained, tmp_path):
    content = torch.load(best(trained), weights_only=True)
    content["neighbours"] |= {"mean": torch.zeros(3), "components": torch.zeros(3, 64)}
    save_checkpoint(tmp_path / "best.pth", content)
    with pytest.raises(UserError, match="not those of its encoder"):
        Captioner.load(tmp_path / "best.pth", compute=CPU)


def test_a_model_is_exported_without_them_and_a_line_says_so(trained, tmp_path):
    text = run(tmp_path, "export", "--format", "torch", "--checkpoint", best(trained))
    assert "search.rerank=neighbours is left out, and the default is search.beam=5" in text
    assert json.loads((tmp_path / "outputs/torch/model.json").read_text("utf-8"))["beam"] == 5


def test_shards_have_no_captions_of_all_images_at_once(tmp_path):
    write_dataset(tmp_path / "data")
    config = write_config(tmp_path)
    text = run(
        tmp_path, "train", "--config", config, "data.captions=shards/{train,val}.tar",
        "search.rerank=neighbours", status=2,
    )  # fmt: skip
    assert "error: search.rerank=neighbours needs the captions of all training images at once" in text
