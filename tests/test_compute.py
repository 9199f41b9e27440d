"""Device, precision, random state, and what several processes share."""

import random
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from compute import (
    Compute,
    choose_device,
    choose_precision,
    explain_memory,
    has_bfloat16_lstm,
    require_memory,
    seed_everything,
    total_memory,
)
from tests.helpers import CPU
from utils import UserError


def test_auto_takes_the_accelerator_that_torch_finds(monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("xpu"))
    assert choose_device("auto") == torch.device("xpu")


def test_auto_without_an_accelerator_is_the_cpu_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    assert choose_device("auto") == torch.device("cpu")
    assert "running on the CPU" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "xpu", "meta"])
def test_a_device_that_is_not_there_is_an_error_for_people(name):
    with pytest.raises(UserError, match=f"run.device={name}: this machine has no such device"):
        choose_device(name)


def test_float16_needs_a_gpu():
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("float16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "native", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("xpu", True, torch.bfloat16),
        ("xpu", False, torch.float32),
        ("mps", None, torch.float32),  # torch does not say whether it computes in bfloat16
    ],
)
def test_auto_precision_follows_the_hardware(monkeypatch, kind, native, expected):
    class Module:
        pass

    if native is not None:
        Module.is_bf16_supported = staticmethod(lambda including_emulation: native)
    monkeypatch.setattr("torch.get_device_module", lambda device: Module)
    assert choose_precision("auto", torch.device(kind)) is expected


def test_autocast_computes_in_the_precision():
    x = torch.randn(2, 2)
    with Compute(torch.device("cpu"), torch.bfloat16).autocast():
        assert (x @ x).dtype is torch.bfloat16
    with CPU.autocast():
        assert (x @ x).dtype is torch.float32


def test_one_seed_is_that_of_python_numpy_and_torch():
    draws = []
    for seed in (5, 5, 2**32 + 5):  # NumPy takes seeds of 32 bits
        seed_everything(seed)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert draws[2][1] == draws[0][1]
    assert draws[2][0] != draws[0][0]


def test_memory_is_pinned_for_a_device_that_copies_from_it():
    pins = {kind: Compute(torch.device(kind)).pins_memory for kind in ("cpu", "mps", "cuda")}
    assert pins == {"cpu": False, "mps": False, "cuda": True}


def test_the_random_state_is_restored():
    seed_everything(5)
    state = CPU.random_state()
    first = torch.rand(3)
    assert not torch.equal(torch.rand(3), first)
    CPU.restore_random_state({**state, "cuda": torch.zeros(1)})  # of a device that is not in use here
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(("device", "argument"), [("cuda:1", [torch.device("cuda:1")]), ("mps", [])])
def test_the_random_state_is_that_of_the_device_in_use(monkeypatch, device, argument):
    calls = []
    module = SimpleNamespace(
        get_rng_state=lambda *device: calls.append(("get", *device)) or "state",
        set_rng_state=lambda *arguments: calls.append(("set", *arguments)),
    )
    monkeypatch.setattr("torch.get_device_module", lambda device: module)
    compute = Compute(torch.device(device))
    compute.restore_random_state(compute.random_state())
    assert calls == [("get", *argument), ("set", "state", *argument)]


def test_an_operation_without_a_deterministic_kernel_only_warns():
    try:
        seed_everything(1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("Storage size calculation overflowed with sizes=[4000000000, 1000000000]"),
        TypeError('empty(): argument size with error "Overflow when unpacking long long"'),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_an_error_for_people(error):
    message = "^cpu has run out of memory; use less$"
    with pytest.raises(UserError, match=message), CPU.explain_memory("use less"):
        raise error


def test_more_memory_than_there_is_is_refused_and_no_less(monkeypatch):
    monkeypatch.setattr("compute.total_memory", lambda device: 10**9)
    require_memory(10**9, "search.beam=5", "lower it")
    with pytest.raises(UserError, match=r"^search\.beam=5 needs 1\.0 GB .* and cpu has .*; lower it"):
        require_memory(10**9 + 1, "search.beam=5", "lower it")
    with pytest.raises(UserError, match=r"TB of memory"):
        require_memory(10**5000, "search.beam=5", "lower it")
    monkeypatch.setattr("compute.total_memory", lambda device: None)  # the system does not say
    require_memory(10**5000, "search.beam=5", "lower it")


def test_the_memory_of_the_machine_is_known():
    tensor = torch.zeros(1000)
    assert total_memory(torch.device("cpu")) > tensor.nbytes
    assert total_memory(torch.device("xpu")) is None


def test_what_really_does_not_fit_ends_in_one_line():
    with pytest.raises(UserError, match="cpu has run out of memory; use less"), explain_memory("use less"):
        torch.empty(2**60, dtype=torch.uint8)


def test_looking_for_bfloat16_draws_no_random_numbers():
    has_bfloat16_lstm.cache_clear()
    before = torch.get_rng_state()
    has_bfloat16_lstm()
    assert torch.equal(torch.get_rng_state(), before)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), CPU.explain_memory("lower train.batch_size"):
        raise RuntimeError("shapes do not match")


def test_one_process_does_everything():
    assert CPU.is_main
    assert CPU.shard([1, 2, 3]) == [1, 2, 3]
    assert CPU.sum(torch.tensor(3.0)) == 3


def test_several_processes_do_not_share_one_device(monkeypatch):
    monkeypatch.setattr("compute.group", lambda: (1, 2))
    assert Compute.choose("cpu", "float32").world_size == 2
    with pytest.raises(UserError, match=r"run\.device=cpu:0: each of several processes has"):
        Compute.choose("cpu:0", "float32")


def _process(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    compute = Compute.choose("cpu", "float32")
    assert (compute.rank, compute.world_size) == (rank, 2)
    assert compute.is_main == (rank == 0)
    assert compute.shard([10, 11, 12]) == ([10, 12] if rank == 0 else [11])
    own = torch.tensor([1.0 + rank], requires_grad=True)
    assert compute.sum(own).tolist() == [3.0]
    assert own.tolist() == [1.0 + rank]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_work_and_add_up_what_they_find(tmp_path):
    torch.multiprocessing.spawn(_process, [str(tmp_path / "store")], nprocs=2)


def test_the_cpu_s_memory_is_kept_for_the_next_tensors(monkeypatch):
    options = []
    library = SimpleNamespace(mallopt=lambda *option: options.append(option))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    choose_device("cpu")
    assert options == [(-4, 0), (-1, 2**31 - 1)]


def test_a_c_library_other_than_glibc_is_no_error(monkeypatch):
    def refuse(name):
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert choose_device("cpu") == torch.device("cpu")
