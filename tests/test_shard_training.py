"""Training on shards: the same items as from files, in an order that a resume goes on with."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.captions import read_table
from data.dataset import Flickr8kDataset, collate, make_loader, ordered_batches
from data.loading import read_with_processes, read_with_threads
from data.shard_dataset import ShardDataset, shuffled
from data.shard_set import open_shards
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from tests.helpers import CPU, tiny
from tests.run_helpers import after_steps, go_on, make_run
from tests.script_helpers import weights
from tests.shard_helpers import PATTERN, sharded
from training.parts import read_parts
from training.policy import PolicyObjective
from utils import UserError

TRANSFORM = ImageTransform(32, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def section(dataset, tmp_path) -> dict:
    """The section `data` of a configuration for the tiny dataset in shards."""
    return sharded(tmp_path, dataset)


def dataset_of(dataset, section: dict, split: str = "train", **options) -> ShardDataset:
    data = tiny(dataset, data={**section, "shuffle": 2}).data
    vocabulary = Vocabulary.build(read_table(tiny(dataset).data)["caption"], 1)
    return ShardDataset(open_shards(data, [split]), vocabulary, TRANSFORM, **options)


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    window=st.integers(1, 4),
    skip=st.integers(0, 30),
)
def test_an_epoch_has_every_image_once_and_can_begin_anywhere(sizes, window, skip):
    starts = [sum(sizes[:s]) for s in range(len(sizes) + 1)]
    draws = list(shuffled(starts, window, 1, 1))
    assert sorted(i for i, _ in draws) == list(range(sum(sizes)))
    assert list(shuffled(starts, window, 1, 1, skip)) == draws[skip:]


def test_the_order_depends_on_the_seed_and_the_epoch_and_few_shards_are_open_at_once():
    starts = list(range(0, 101, 10))
    orders = [[i for i, _ in shuffled(starts, 3, *of)] for of in ((1, 1), (1, 2), (2, 1))]
    assert len(set(map(tuple, orders))) == 3
    for order in orders:
        for at in range(0, 100, 30):
            assert len({i // 10 for i in order[at : at + 30]}) <= 3
        assert len({i // 10 for i in order[:10]}) > 1


def test_items_are_those_of_the_same_images_in_files(dataset, section):
    options = {"captions_per_image": 1, "max_length": 4, "augment": ["crop", "flip"]}
    shards = dataset_of(dataset, section, **options)
    table = read_table(tiny(dataset).data)
    files = Flickr8kDataset(table, "train", shards.vocabulary, dataset / "images", TRANSFORM, **options)
    places = {name: i for i, name in enumerate(files.names)}
    assert sorted(shards.names) == sorted(places)
    for i, name in enumerate(shards.names):
        for seed in (0, 1):
            (image, [caption]), (other, [expected]) = shards[i, seed], files[places[name], seed]
            assert torch.equal(image, other)
            assert torch.equal(caption, expected)


def test_who_reads_changes_nothing_and_memory_holds_few_shards(dataset, section):
    shards = dataset_of(dataset, section)
    batches = list(shards.batches(5, seed=1, epoch=1))
    assert [len(batch) for batch in batches] == [5, 5, 5, 1]
    alone = [collate([shards[draw] for draw in batch]) for batch in batches]
    threads = read_with_threads(shards, batches, collate, 4)
    processes = read_with_processes(shards, batches, collate, 2)
    for one, *others in zip(alone, threads, processes, strict=True):
        assert all(all(map(torch.equal, one, other)) for other in others)
    assert len(shards.shards.open) == 2


def test_the_parts_of_two_processes_are_the_batches_of_one(dataset, section):
    shards = dataset_of(dataset, section)

    def images(rank: int, world_size: int) -> list[list[int]]:
        compute = replace(CPU, rank=rank, world_size=world_size)
        parts = read_parts(shards, shards.batches(5, 1, 1), 1, 0, compute)
        return [[i for part in step if part.weight for i in part.indices] for step in parts]

    whole, halves = images(0, 1), [images(rank, 2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == list(map(sorted, whole))


@pytest.mark.parametrize("cache", [True, False])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(cache, dataset, section, capsys):
    sections = {
        "data": {**section, "shuffle": 2, "augment": ["flip"]},
        "features": {"cache": cache, "views": 2},
    }
    state = torch.get_rng_state()
    whole = make_run(dataset, run={"name": "whole"}, **sections)
    assert whole.train() == 0
    torch.set_rng_state(state)
    stopped = make_run(dataset, run={"name": "stopped"}, **sections)
    stopped.open_folder()
    after_steps(stopped, 3)
    again, _ = go_on(stopped.folder)
    assert (again.epoch, again.batch) == (1, 3)
    assert again.train() == 0
    one, other = (weights(run.folder / "checkpoints.pth") for run in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_cached_features_are_those_of_the_images(dataset, section):
    cached = make_run(dataset, data=section)
    uncached = make_run(dataset, data=section, features={"cache": False}).train_set
    model = cached.captioner.model.eval()
    train_set = cached.train_set
    [*batches] = make_loader(train_set, ordered_batches(len(train_set), 5), 0, CPU)
    grids = torch.cat([batch.images for batch in batches])
    images = torch.stack([uncached.image(i) for i in range(len(uncached))])
    with torch.no_grad():
        torch.testing.assert_close(grids.float(), model.grid(images), rtol=1e-2, atol=1e-2)


def test_a_resume_with_other_captions_is_one_line(dataset, section):
    run = make_run(dataset, data=section)
    run.open_folder()
    run.finish_writing()
    _, resumption = go_on(run.folder)
    data = tiny(dataset, data={**section, "captions": section["captions"].replace("003", "002")}).data
    changed = replace(resumption, config=resumption.config.model_copy(update={"data": data}))
    with pytest.raises(UserError, match="are not those that the run began with"):
        changed.require_same_captions(read_table(data, in_memory=["val"]))


def test_shards_without_a_split_that_is_needed_are_one_line(dataset, section):
    only_train = {**section, "captions": section["captions"].replace(PATTERN, "train-{000..003}.tar")}
    with pytest.raises(UserError, match=r"no images in the split 'val'; add one, such as val-000\.tar"):
        make_run(dataset, data=only_train)


def test_learning_from_scores_is_refused_in_one_line(dataset, section):
    config = tiny(dataset, data=section, train={"objective": "self_critical", "init_from": "best.pth"})
    with pytest.raises(UserError, match="needs the captions of all training images at once"):
        PolicyObjective.check(config)
