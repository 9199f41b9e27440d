"""Several processes that train one model, on this machine and over Gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

import processes
from compute import Compute
from files import locked
from models.checkpoint import load_checkpoint
from tests.helpers import write_dataset
from tests.launched import Job, both, restarted
from tests.run_helpers import stopped_run
from tests.script_helpers import ENVIRONMENT, ROOT, run, weights, write_config
from utils import UserError

DECODER = {"dropout": 0.0}  # whose masks differ between the processes
DROPOUT = ("decoder.dropout=0.3", "train.checkpoint_every=1")
LEARNED = {"init_from": "runs/cross_entropy/best.pth", "lr": 0.001, "epochs": 1}
PHASES = {
    "words": {"train": {"epochs": 1}},
    "images": {"train": {"epochs": 1}, "encoder": {"fine_tune": "all"}},
    "scores": {"train": {"epochs": 1, "objective": "self_critical"}},
}
EVALUATION = ("--checkpoint", "runs/cross_entropy", "features.cache=false", "--output")
INFERENCE = ("data/images", *EVALUATION[:2], "--temperature", "2", "--draw", "3", "--output")
OUTPUTS = ("captions", "captions-of-one")
NAMES = ["cross_entropy", "self_critical", "actor_critic", "phases", "half"]
CHECKPOINTS = ("checkpoints.pth", "best.pth")


def configured(folder: Path, name: str, **sections) -> Path:
    """A configuration for a run of 4 steps an epoch, the last of them with 1 image; returns its name."""
    train = {"batch_size": 5, **sections.pop("train", {})}
    path = write_config(folder, run={"name": name}, decoder=DECODER, train=train, **sections)
    return path.rename(folder / f"{name}.yaml").name


def in_phases(folder: Path) -> str:
    """A configuration in phases, in one of which the encoder is trained; returns its name."""
    path = folder / configured(
        folder, "phases", encoder={"weights": "resnet18.pth"}, train={"lr": 0.001},
        search={"rerank": "neighbours"},
    )  # fmt: skip
    values = yaml.safe_load(path.read_text())
    del values["train"]["epochs"]
    path.write_text(yaml.safe_dump({**values, "phases": PHASES}, sort_keys=False))
    return path.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with runs/NAME of one process, and two/NAME of two, for each of NAMES.

    It is made once, for the tests in all processes. Of two processes are, too: stopped/cross_entropy, which
    one process goes on with, whole/cross_entropy with dropout, and the captions of an evaluation, in scores/.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "processes"
    with locked(shared / "processes.lock", "another process trains", wait=True):
        if not (folder / "done").exists():
            _train(folder)
    return folder


def _train(folder: Path) -> None:
    torch.manual_seed(0)
    write_dataset(folder / "data")
    stopped_run(folder / "data", run={"name": "half"}, decoder=DECODER, train={"batch_size": 5})
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    configs = [
        configured(
            folder, "cross_entropy", train={"average": 0.5, "scheduled_sampling": 0.5},
            features={"views": 3}, data={"augment": ["flip"]},  # features of 52 views, in 2 batches
        ),
        configured(folder, "self_critical", train={**LEARNED, "objective": "self_critical"}),
        configured(folder, "actor_critic", train={**LEARNED, "objective": "actor_critic"}),
        in_phases(folder),
    ]  # fmt: skip
    shutil.copytree(folder / "runs", folder / "two")
    for config in configs:
        run(folder, "train", "--config", config)
    run(folder, "train", "--resume", "runs/half")
    two = ("run.folder=two", "features.folder=cache-of-two")
    first = ("--config", "cross_entropy.yaml")
    jobs = [
        *(Job(["--config", config, *two]) for config in configs),
        Job(["--resume", "two/half", "features.folder=cache-of-two"]),
        Job([*first, "run.folder=stopped"], signal_at=(signal.SIGTERM, 7)),
        Job([*first, "run.folder=whole", *DROPOUT]),
        Job([*EVALUATION, "scores"], script="evaluate"),
        Job([*INFERENCE, "captions"], script="inference_visualize"),
    ]
    found = both(folder, *jobs)
    assert [[process.status for process in job] for job in found] == [
        *[[0, 0]] * 5, [143, 143], *[[0, 0]] * 3
    ], found  # fmt: skip
    for number, job in enumerate(found):
        (folder / f"{number}.txt").write_text(job[0].out)
        assert job[1].out == "", job  # the main process alone prints
    (folder / "done").touch()


def difference(one: Path, other: Path) -> float:
    """The largest difference between the weights in two checkpoints."""
    a, b = weights(one), weights(other)
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_reach_the_weights_of_one(folder, name):
    for file in CHECKPOINTS:
        assert difference(folder / "runs" / name / file, folder / "two" / name / file) < 1e-5
    logs = [(folder / runs / name / "loss_log.txt").read_text().splitlines() for runs in ("runs", "two")]
    assert len(logs[0]) == len(logs[1])


def test_two_processes_find_the_neighbours_of_one(folder):
    one, two = (load_checkpoint(folder / runs / "phases/best.pth").neighbours for runs in ("runs", "two"))
    torch.testing.assert_close(one.mean, two.mean, atol=1e-5, rtol=0)
    # The sign of a principal component is arbitrary, the angle between two images is not.
    cosines = [found.directions @ found.directions.T for found in (one, two)]
    torch.testing.assert_close(*cosines, atol=5e-3, rtol=0)
    assert all(torch.equal(getattr(one, key), getattr(two, key)) for key in ("tokens", "lengths", "counts"))


def test_two_processes_compute_the_features_of_one(folder):
    stores = [folder.glob(f"{cache}/*/grids.f16") for cache in ("cache", "cache-of-two")]
    one, two = ({store.parent.name: store.read_bytes() for store in found} for found in stores)
    assert one == two
    assert len(one) > 0


def test_two_processes_evaluate_like_one(folder, no_java):
    run(folder, "evaluate", *EVALUATION, "scores-of-one")
    for name in ("scores.json", "captions.json"):
        assert (folder / "scores" / name).read_text() == (folder / "scores-of-one" / name).read_text()


def test_two_processes_caption_images_like_one(folder):
    run(folder, "inference_visualize", *INFERENCE, "captions-of-one")
    two, one = (sorted(file.name for file in (folder / name).rglob("*")) for name in OUTPUTS)
    assert two == one
    two, one = (json.loads((folder / name / "captions.json").read_text()) for name in OUTPUTS)
    assert [(row["image"], row["caption"]) for row in two] == [(row["image"], row["caption"]) for row in one]
    assert len(two) == 24


def test_a_signal_to_one_of_two_stops_both_and_one_alone_goes_on(folder):
    assert (
        "stopped in epoch 2; continue with: python train.py --resume stopped/cross_entropy"
        in (folder / "5.txt").read_text()
    )
    run(folder, "train", "--resume", "stopped/cross_entropy")
    checkpoint = "cross_entropy/checkpoints.pth"
    assert difference(folder / "runs" / checkpoint, folder / "stopped" / checkpoint) < 1e-5


def test_torchrun_starts_a_training_again_that_has_lost_a_process(folder):
    """A training with dropout: its processes have random states of their own, which go on, too.

    The folder has an earlier run, which is set aside, and with which the training does not go on.
    """
    shutil.copytree(folder / "runs", folder / "lost")
    arguments = ["--config", "cross_entropy.yaml", "--overwrite", "run.folder=lost", *DROPOUT]
    first, second = restarted(folder, Job(arguments, signal_at=(signal.SIGKILL, 7)))
    assert first[0].status in (2, 143)  # it may see the connection close, or be ended by torchrun
    assert first[1] is None
    assert [process.status for process in second] == [0, 0]
    for file in CHECKPOINTS:
        assert difference(folder / "whole/cross_entropy" / file, folder / "lost/cross_entropy" / file) == 0
    assert [path.name for path in (folder / "lost/cross_entropy").glob("before-*")] == ["before-1"]


def test_a_process_that_has_lost_another_ends_with_one_line(folder):
    arguments = ["--config", "cross_entropy.yaml", "run.folder=killed"]
    [[found, killed]] = both(folder, Job(arguments, signal_at=(signal.SIGKILL, 7)))
    assert found.status == 2
    assert found.err.startswith("error: another process of this job has ended; continue with --resume")
    assert found.err.count("\n") == 1
    assert killed is None


def test_batch_norms_that_learn_their_statistics_need_gpus(folder):
    config = configured(folder, "statistics", encoder={"fine_tune": "all"})
    [found] = both(folder, Job(["--config", config]))
    assert [process.status for process in found] == [2, 2]
    [error] = {process.err for process in found if process.err}
    assert error.startswith("error: encoder.weights=none: batch norms learn")


@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical", "actor_critic"])
def test_a_batch_in_parts_gives_the_weights_of_the_whole_batch(folder, objective):
    name = f"parts-{objective}"
    run(folder, "train", "--config", f"{objective}.yaml", f"run.name={name}", "train.accumulate=3")
    for file in CHECKPOINTS:
        assert difference(folder / "runs" / objective / file, folder / "runs" / name / file) < 1e-5


@pytest.mark.slow
def test_torchrun_itself_trains(tmp_path):
    write_dataset(tmp_path / "data")
    config = configured(tmp_path, "tiny")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launch, str(ROOT / "train.py"), "--config", config],
        cwd=tmp_path,
        env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.count("Validation scores") == 1
    run(tmp_path, "train", "--config", config, "run.name=one")
    for file in CHECKPOINTS:
        assert difference(tmp_path / "runs/tiny" / file, tmp_path / "runs/one" / file) < 1e-5


def test_an_environment_that_is_not_torchruns_is_one_line(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_dataset(tmp_path / "data")
    text = run(tmp_path, "train", "--config", configured(tmp_path, "tiny"), status=2)
    assert "WORLD_SIZE is set in the environment, but not LOCAL_RANK" in text


def test_restarts_on_several_machines_need_a_new_store_for_each_start(monkeypatch):
    store = torch.distributed.HashStore()
    for rank, expected in ((0, UserError), (1, SystemExit)):
        monkeypatch.setattr(processes, "rendezvous", lambda *_, rank=rank, **__: iter([(store, rank, 16)]))
        for name, value in (("USE_AGENT_STORE", "True"), ("MAX_RESTARTS", "1")):
            monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
        monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
        with pytest.raises(expected, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" if not rank else "2"):
            processes.common_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert processes.common_store() == (store, 1, 16)


def test_a_process_on_its_own_gets_back_what_it_passes():
    alone = Compute(torch.device("cpu"))
    values = torch.tensor([1.0, 2.0])
    assert alone.sum(values) is values
    assert alone.sums({"a": values[0]}) == {"a": values[0]}
    assert (alone.largest(3), alone.gather("x"), alone.gather_in_main("x")) == (3, ["x"], ["x"])
    assert (alone.shard([1, 2, 3]), alone.is_main) == ([1, 2, 3], True)
