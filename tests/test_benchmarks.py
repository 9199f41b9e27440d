"""The benchmarks: their reference computes what the project computes, and each of them runs."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from benchmarks import export, report, scaling, search_options, start_up, stream
from benchmarks.__main__ import EVERY
from benchmarks.measure import Alternative, Row, compare, seconds_in_turn
from benchmarks.products import KINDS
from benchmarks.reference import TutorialDecoder, beam_search, loss, reference_of
from benchmarks.workload import (
    CAPTIONS_PER_IMAGE,
    Settings,
    batch,
    captions,
    config,
    decoder,
    num_tokens,
    trainer,
)
from models.decoder import Decoder
from models.search import SearchOptions
from models.search import search as real_search
from tests.helpers import CPU, loss_of, teacher_forcing
from tests.script_helpers import ended
from utils import EOS, PAD, UserError

TINY = Settings(
    CPU,
    seconds=0.0,
    rounds=2,
    num_images=3,
    vocab_size=40,
    dim=16,
    grids=((4, 24), (6, 32)),
    beam=2,
    words=3,
    split_sizes=(12, 4),
    num_cached=8,
    num_encoded=4,
    encoders=("mobilenet_v3_small",),
    image_size=32,
)
CELLS, CHANNELS = TINY.grids[0]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def clear_decoder(options: dict) -> Decoder:
    """A decoder whose weights are so large that its gates, alphas and words are no longer all alike."""
    model = decoder(TINY, CHANNELS, **options, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def padded() -> torch.Tensor:
    """The captions (M, T) of `batch`."""
    return pad_sequence(captions(TINY.num_images, TINY.vocab_size), batch_first=True)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal up to the rounding of float32: 1e-5 of the largest number."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))


@kinds
def test_the_reference_has_the_outputs_of_the_real_decoder(kind):
    model, texts = clear_decoder(kind.options), padded()
    image_index = torch.arange(TINY.num_images).repeat_interleave(CAPTIONS_PER_IMAGE)
    logits, alphas = teacher_forcing(model, batch(TINY, CELLS, CHANNELS).images, texts, image_index)
    plain_logits, plain_alphas, order = reference_of(model)(
        batch(TINY, CELLS, CHANNELS).images, texts, image_index
    )
    is_token = texts[order, 1:] != PAD
    assert len(order) == len(texts)
    same(plain_logits[is_token], logits[order][is_token])
    assert (alphas is None) == (not kind.attends) == (plain_alphas is None)
    if kind.attends:
        same(plain_alphas, alphas[order])


@kinds
def test_the_reference_has_the_loss_and_the_gradients_of_a_training_step(kind):
    model, texts = clear_decoder(kind.options), padded()
    objective = trainer(model, config(TINY, decoder=kind.options), CPU).objective
    total = loss_of(objective, batch(TINY, CELLS, CHANNELS), range(TINY.num_images)).total
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    image_index = torch.arange(TINY.num_images).repeat_interleave(CAPTIONS_PER_IMAGE)
    logits, alphas, order = reference_of(model)(batch(TINY, CELLS, CHANNELS).images, texts, image_index)
    train = objective.config.train
    plain = loss(logits, texts[order], alphas, train.label_smoothing, train.attention_weight)
    plain.backward()
    same(plain, total)
    for name, parameter in model.named_parameters():
        same(parameter.grad, gradients[name])


@kinds
@pytest.mark.parametrize(("beam", "length_penalty"), [(1, 0.7), (3, 0.7), (3, 1.0)])
def test_the_reference_finds_the_captions_of_the_real_search(kind, beam, length_penalty):
    model = clear_decoder(kind.options).eval()
    with torch.no_grad():
        model.output.score.bias[EOS] = 4.0  # captions of 1 to 8 words and <eos>
    grid = batch(replace(TINY, num_images=12), CELLS, CHANNELS).images
    options = SearchOptions(beam=beam, max_length=8, length_penalty=length_penalty)
    found = real_search(model, grid, options).tokens[:, 0]
    plain = [beam_search(reference_of(model), image, beam, 8, length_penalty) for image in grid]
    assert plain == [[token for token in row if token != PAD] for row in found.tolist()]
    assert len({len(words) for words in plain}) > 1


def test_the_tutorials_decoder_attends_and_learns():
    texts, grid = padded(), batch(TINY, CELLS, CHANNELS).images
    image_index = torch.arange(TINY.num_images).repeat_interleave(CAPTIONS_PER_IMAGE)
    model = TutorialDecoder(CHANNELS, TINY.vocab_size, TINY.dim)
    logits, alphas, order = model(grid, texts, image_index)
    is_token = texts[order, 1:] != PAD
    same(alphas.sum(dim=2), is_token.float())
    loss(logits, texts[order], alphas, 0.1, 1.0).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.numel() > 1)


def test_the_batch_is_as_large_as_one_of_flickr8k():
    texts = captions(Settings.num_images, Settings.vocab_size)
    assert (len(texts), num_tokens(texts)) == (160, 2019)
    assert max(map(len, texts)) - 1 == 24


def in_this_process(*arguments: str) -> float:
    """Run what a benchmark starts in a process of its own: importing torch again would take seconds."""
    if arguments[0] == "-c":
        exec(arguments[1], {})
    else:
        script, *rest = arguments
        status, out, err = ended(Path(script).parent, Path(script).stem, *rest)
        assert status == 0, out + err
    return 1.0


@pytest.mark.parametrize("module", EVERY, ids=lambda module: module.__name__.removeprefix("benchmarks."))
def test_every_benchmark_runs_and_compares_with_something_in_the_same_run(module, monkeypatch):
    monkeypatch.setattr(start_up, "cpu_seconds", in_this_process)
    rows = module.benchmark(TINY)
    assert len({row.key for row in rows}) == len(rows) > 0
    assert all(row.median > 0 and row.unit for row in rows)
    assert any(row.ratios for row in rows)
    assert all(ratio > 0 for row in rows for ratio in row.ratios.values())


def test_the_efficiency_of_many_gpus_is_the_number_worked_out_by_hand():
    link = scaling.Link("slow", 1e9)
    # Half of 8 GPUs' time: 2 * 7/8 * 100 MB at 300 GB/s are 0.583 ms.
    assert scaling.efficiency(0.1e9 * 1.75 / 300e9, 100e6, 8, link) == pytest.approx(0.5)
    # 16 GPUs are two machines: 2 * 15/16 * 100 MB at 1 GB/s, and three messages of 30 us, there and back.
    assert scaling.efficiency(0.1, 100e6, 16, link) == pytest.approx(0.1 / (0.1 + 0.1875 + 0.00018))
    assert scaling.efficiency(0.1, 100e6, 512, link) < scaling.efficiency(0.1, 100e6, 64, link)


def test_what_to_expect_of_many_gpus_has_a_row_for_8_64_and_512():
    names = ("gradients of a step", "step of a process", "features read by a process")
    rows = [Row("scaling", name, "", "", 32.0, 0.0, "", {}) for name in names]
    text = scaling.expected(rows, TINY, 100)
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| GPUs", "| ---:", "| 8", "| 64", "| 512"
    ]  # fmt: skip
    assert "in 0.9 ms" in text  # 3 images at 3,200 images/s


def test_alternatives_are_measured_in_turn_and_the_first_round_warms_up():
    calls = []
    runs = [lambda: calls.append("a") or 0.5, lambda: calls.append("b") or float(len(calls))]
    rounds = seconds_in_turn(runs, replace(TINY, seconds=60.0, rounds=2))
    assert calls[:4] == ["a", "b", "a", "b"]
    assert rounds[:2] == [[0.5, 4.0], [0.5, 6.0]]  # seconds that the functions returned, without [0.5, 2.0]


def test_medians_spreads_and_ratios_are_the_numbers_worked_out_by_hand():
    seconds = iter([1.0, 2.0, 4.0])
    bound = Alternative("products", lambda: 0.5, amount=8)
    own = Alternative("step", lambda: next(seconds), amount=8, precision="float32", against={"bound": bound})
    [found] = compare("training", "4 x 24", "tokens", [bound, own], replace(TINY, rounds=3))
    # 8, 4 and 2 tokens/s, whose quartiles are 3, 4 and 6; 1/2, 1/4 and 1/8 of the bound's speed.
    assert found == Row("training", "step", "4 x 24", "float32", 4.0, 3 / 4, "tokens/s", {"bound": 0.25})


ROW = Row(
    "training", "step", "4 x 24", "float32", 4321.0, 0.04, "tokens/s", {"reference": 6.04, "bound": 0.4}
)


def measured(capsys, *arguments: object, rows=(ROW,)) -> str:
    status = report.run_benchmarks([lambda settings: list(rows)], ["--device", "cpu", *map(str, arguments)])
    assert status is None  # what a script returns is its exit status
    return capsys.readouterr().out


def test_the_table_names_what_the_numbers_depend_on_but_no_path_and_no_machine(capsys):
    text = measured(capsys)
    first, titles, _, line = text.splitlines()
    assert first.startswith(f"torch {torch.__version__}, threads {torch.get_num_threads()}, instructions ")
    assert [cell.strip() for cell in titles.split("|")[2:-1]] == [
        "name", "shape", "precision", "median", "spread", "unit", "x reference", "of bound",
    ]  # fmt: skip
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "training", "step", "4 x 24", "float32", "4,321", "4%", "tokens/s", "6.0", "40%",
    ]  # fmt: skip
    assert str(Path.cwd()) not in text
    assert platform.node() not in text


def test_json_is_written_and_compare_shows_what_moved(tmp_path, capsys):
    file = tmp_path / "speed.json"
    other = replace(ROW, name="gone")
    measured(capsys, "--json", file, rows=(ROW, other))
    assert json.loads(file.read_text())["rows"][0]["median"] == 4321.0
    rows = (replace(ROW, median=4350.0), replace(ROW, name="new"))
    lines = measured(capsys, "--compare", file, rows=rows).splitlines()
    assert lines[-3:] == [
        "training, step, 4 x 24, float32: 4,321 -> 4,350 tokens/s, +1%",
        "training, new, 4 x 24, float32: new",
        "training, gone, 4 x 24, float32: not measured now",
    ]
    [line] = [
        each
        for each in measured(capsys, "--compare", file, rows=(replace(ROW, median=2000.0),)).splitlines()
        if "->" in each
    ]
    assert line.endswith("4,321 -> 2,000 tokens/s, -54% *")


def test_compare_names_a_difference_of_the_machines(tmp_path, capsys):
    file = tmp_path / "speed.json"
    measured(capsys, "--json", file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "header": {**content["header"], "threads": 77}}))
    assert f"threads: 77 before, {torch.get_num_threads()} now" in measured(capsys, "--compare", file)


def test_compare_of_another_file_is_one_error(tmp_path, capsys):
    (tmp_path / "notes.json").write_text("[]")
    for name in ("notes.json", "missing.json"):
        with pytest.raises(UserError, match=f"{name}: not a file that --json wrote"):
            measured(capsys, "--compare", tmp_path / name)


def test_the_table_of_search_options_has_a_row_for_each(trained, monkeypatch, capsys):
    rows = ["beam=1", "beam=2 no_repeat=1"]
    checkpoint = str(trained / "runs" / "tiny" / "best.pth")
    monkeypatch.setattr("sys.argv", ["search_options", checkpoint, checkpoint, "--options", *rows])
    monkeypatch.chdir(trained)
    search_options.main()
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [cells[0] for cells in table] == ["| `beam=1`", "| `beam=2 no_repeat=1`"]
    for _, bleu, cider, words, words_per_image, speed in table:
        assert 0 <= float(bleu) <= 1
        assert 0 <= float(cider) <= 10
        assert 1 <= float(words) <= 12
        assert float(words_per_image) >= 1
        assert float(speed.rstrip(" |")) > 0


def test_the_stream_of_shards_has_a_row_for_each_part_and_compares_the_numbers(monkeypatch, capsys):
    monkeypatch.setattr(stream, "in_own_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(stream, "IMAGES_PER_SHARD", 20)
    monkeypatch.setattr(stream, "BATCH", 16)
    stream.main(["--samples", "30", "50"])
    lines = capsys.readouterr().out.splitlines()
    for num_images in ("30", "50"):
        rows = [line.split() for line in lines if line.split()[:1] == [num_images]]
        assert [row[1] for row in rows] == list(stream.PARTS)
        assert all(float(row[2].replace(",", "")) > 0 and float(row[-1].replace(",", "")) > 0 for row in rows)
    for part, line in zip(stream.PARTS, lines[-5:], strict=True):
        assert line.startswith(f"{part}: memory ")


@pytest.mark.slow
def test_the_table_of_exported_models_compares_them_with_pytorch(trained, monkeypatch, capsys):
    pytest.importorskip("onnxscript", reason="the packages of requirements-extra.txt are not installed")
    monkeypatch.setattr(start_up, "cpu_seconds", in_this_process)
    monkeypatch.setattr("sys.argv", ["export", str(trained / "runs/tiny/best.pth"), "--images", "3"])
    monkeypatch.chdir(trained)
    export.main()
    lines = [line.strip("| ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    titles, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    assert titles == ["model", "size", "start-up", "images/s", "CIDEr", "same captions"]
    assert [row[0] for row in rows] == ["PyTorch", "ONNX", "ONNX with --int8"]
    for _, size, seconds, speed, cider, _ in rows:
        assert float(size.split()[0]) > 0
        assert seconds == "1.0 s"
        assert float(speed) > 0
        assert 0 <= float(cider) <= 10
    assert [row[-1] for row in rows[:2]] == ["100.0%", "100.0%"]
