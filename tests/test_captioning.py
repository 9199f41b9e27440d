"""Captioner: any image in, typed results out, in order."""

import gc
import io
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioning import Caption, Captioner, ImageError
from compute import has_bfloat16_lstm
from data.transforms import ImageTransform, read_image
from data.vocab import SPECIAL, Vocabulary
from models.checkpoint import save_checkpoint
from models.model import build_model
from tests.helpers import CPU, tiny
from utils import SOS, UserError

WORDS = [*SPECIAL, "a", "dog", "cat", "runs"]


@pytest.fixture
def captioner(tmp_path: Path) -> Captioner:
    config = tiny(tmp_path, search={"beam": 3, "max_length": 5})
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Captioner(build_model(config, len(WORDS)).eval(), Vocabulary(WORDS), transform, config, CPU)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)


def told(result: Caption) -> tuple[str, float]:
    """The caption and its log-probability: that differs between any two images."""
    return result.caption, round(result.log_prob, 3)


def test_two_lines_caption_an_image(captioner, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "runs" / "mine" / "best.pth", captioner.checkpoint())
    monkeypatch.chdir(tmp_path)
    loaded = Captioner.load(compute=CPU)  # the newest under runs/
    [result] = loaded([noise(0)])
    [expected] = captioner([noise(0)])
    assert told(result) == told(expected)
    assert result.caption


def test_a_path_a_file_a_pil_image_and_an_array_give_the_same_caption(captioner, tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(noise(1)).save(file)
    sources = [str(file), file, io.BytesIO(file.read_bytes()), Image.fromarray(noise(1)), noise(1)]
    results = list(captioner(sources))
    assert len({(result.caption, result.log_prob) for result in results}) == 1
    assert [result.source for result in results[:4]] == sources[:4]
    assert all(np.array_equal(np.asarray(result.image), noise(1)) for result in results)


def test_a_result_is_consistent_in_itself(captioner):
    [result] = captioner([noise(2)])
    assert result.words
    assert result.caption == " ".join(word.text for word in result.words)
    found = captioner.search(captioner.transform(result.image).unsqueeze(0), captioner.options())
    length = len(result.words)
    np.testing.assert_allclose(
        np.log([word.probability for word in result.words]), found.log_probs[0, 0, :length], atol=1e-5
    )
    # <eos> has a probability, too.
    assert result.log_prob == pytest.approx(float(found.log_probs[0, 0, : length + 1].sum()))
    attention = found.attention[0, 0, :length].numpy()
    np.testing.assert_allclose(result.attention.reshape(length, -1), attention, atol=1e-6)
    assert len(result.others) == 2
    assert all(other.caption != result.caption for other in result.others)
    assert result.attention.shape[0] == len(result.words)
    assert result.attention.shape[1] == result.attention.shape[2]
    np.testing.assert_allclose(result.attention.sum(axis=(1, 2)), 1, rtol=1e-4)


def test_there_are_no_more_captions_than_sentences(captioner):
    [result] = captioner([noise(0)], beam=20, max_length=1)
    captions = {result.caption, *(other.caption for other in result.others)}
    assert captions == {"", "a", "dog", "cat", "runs"}
    assert len(result.others) == 4


def test_a_model_in_training_mode_captions_without_dropout(captioner):
    expected = told(next(captioner([noise(0)])))
    captioner.model.train()
    assert told(next(captioner([noise(0)]))) == expected


def test_sampling_has_the_seed_of_the_run_unless_it_is_given(captioner):
    assert captioner.options().seed == captioner.config.run.seed == 1
    assert captioner.options(seed=5).seed == 5


def test_the_size_of_the_batch_changes_nothing(captioner):
    images = [noise(i) for i in range(5)]
    together = [told(result) for result in captioner(images)]
    assert len(set(together)) == 5
    assert [told(result) for result in captioner(images, batch_size=2)] == together
    assert [told(next(captioner([image]))) for image in images] == together


def test_samples_depend_on_the_place_of_an_image_in_the_input_and_not_on_the_batch(captioner, tmp_path):
    images = [noise(0)] * 6
    samples = [told(result) for result in captioner(images, temperature=2.0)]
    assert len(set(samples)) > 1  # the images are equal, but do not share their random numbers
    assert [told(result) for result in captioner(images, temperature=2.0, batch_size=2)] == samples
    images[3] = tmp_path / "none.jpg"
    results = list(captioner(images, temperature=2.0, batch_size=2, errors="return"))
    del samples[3], results[3]
    assert list(map(told, results)) == samples


def test_images_are_read_as_a_stream(captioner):
    taken = []

    def images():
        for i in range(100):
            taken.append(i)
            yield noise(i)

    results = captioner(images(), batch_size=4)
    next(results)
    assert len(taken) == 4


def test_an_unreadable_image_raises_or_comes_back_in_its_place(captioner, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    sources = [noise(0), tmp_path / "broken.jpg", noise(1).astype(np.float32), noise(1)[:, :, :1], noise(2)]
    results = list(captioner(sources, errors="return", batch_size=2))
    kinds = [type(result) for result in results]
    assert kinds == [Caption, ImageError, ImageError, ImageError, Caption]
    assert results[1].source == sources[1]
    assert "broken.jpg cannot be read as an image" in str(results[1])
    assert "float32" in str(results[2])
    assert told(results[4]) == told(next(captioner([noise(2)])))
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        list(captioner(sources))


def test_only_one_image_is_in_memory_at_a_time(captioner, tmp_path, monkeypatch):
    alive = []

    def read(source):
        gc.collect()
        assert sum(image() is not None for image in alive) == 0
        image = read_image(source)
        alive.append(weakref.ref(image))
        return image

    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(i)).save(path)
    monkeypatch.setattr("data.image_source.read_image", read)
    results = list(captioner(paths))
    assert len(alive) == 4
    gc.collect()
    assert all(image() is None for image in alive)
    assert np.array_equal(np.asarray(results[2].image), noise(2))


def test_an_image_that_is_gone_when_it_is_wanted_again_is_an_image_error(captioner, tmp_path):
    Image.fromarray(noise(0)).save(tmp_path / "a.png")
    file = io.BytesIO((tmp_path / "a.png").read_bytes())
    results = list(captioner([tmp_path / "a.png", file]))
    (tmp_path / "a.png").unlink()
    file.close()
    for result in results:
        with pytest.raises(ImageError, match="cannot be read"):
            result.image  # noqa: B018 (it is a property)


@pytest.mark.parametrize(
    "source",
    [
        Image.new("RGB", (0, 5)),
        np.zeros((0, 5, 3), np.uint8),
        Image.new("F", (2, 2), float("nan")),
        io.BytesIO(b"no image"),
        Path("a\0b.png"),
        None,
    ],
)
def test_whatever_cannot_be_read_is_an_image_error(captioner, source):
    [result] = captioner([source], errors="return")
    assert isinstance(result, ImageError)
    assert "cannot be read as an image" in str(result)


def test_nothing_in_gives_nothing_out(captioner, tmp_path):
    assert list(captioner([])) == []
    assert len(list(captioner([tmp_path / "none.jpg"], errors="return"))) == 1


def test_search_options_are_checked(captioner):
    assert next(captioner([noise(0)], beam=1)).others == []
    with pytest.raises(ValueError, match="beam"):
        next(captioner([noise(0)], beam=0))
    with pytest.raises(ValueError, match="beams"):
        next(captioner([noise(0)], beams=3))
    with pytest.raises(TypeError, match="list"):
        next(captioner("dog.jpg"))


def test_threads_get_the_captions_of_their_own_images(captioner):
    expected = {i: told(next(captioner([noise(i)]))) for i in range(8)}
    assert len(set(expected.values())) == 8
    found = {}

    def work(i: int) -> None:
        for _ in range(3):
            found.setdefault(i, set()).update(told(result) for result in captioner([noise(i)]))

    threads = [threading.Thread(target=work, args=[i]) for i in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: {result} for i, result in expected.items()}


def test_the_caller_s_code_runs_outside_of_inference_mode(captioner):
    for _ in captioner([noise(0), noise(1)], batch_size=1):
        assert not torch.is_inference_mode_enabled()


def test_a_checkpoint_that_is_missing_is_an_error_for_people(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        Captioner.load(tmp_path / "best.pth")


def test_a_beam_beyond_the_memory_is_refused_before_it_is_tried(captioner, monkeypatch):
    monkeypatch.setattr("compute.total_memory", lambda device: 2**19)
    with pytest.raises(UserError, match=r"search\.beam=10000 for 1 images at once needs .*; lower it"):
        next(captioner([noise(0)], beam=10_000))


def test_outputs_that_are_no_numbers_are_no_captions(captioner):
    for weight in captioner.model.decoder.parameters():
        weight.data.fill_(1e38)  # finite, but what it computes overflows
    with pytest.raises(UserError, match="the model's outputs are not finite numbers"):
        next(captioner([noise(0)]))


@pytest.mark.parametrize("kind", ["lstm", "attention"])
@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_without_bfloat16_is_asked_only_for_what_it_can(captioner, monkeypatch, kind, supported):
    """oneDNN ends with "could not create a primitive descriptor" for an nn.LSTM on such a CPU."""
    monkeypatch.setattr("captioning.has_bfloat16_lstm", lambda: supported)
    config = captioner.config.model_copy(deep=True)
    config.decoder.kind = kind
    model = build_model(config, len(WORDS)).eval()
    halves = replace(captioner.compute, precision=torch.bfloat16)
    if kind == "lstm" and not supported:
        with pytest.raises(UserError, match=r"run\.precision=bfloat16: .*use run\.precision=float32"):
            replace(captioner, model=model, config=config, compute=halves)
    else:
        replace(captioner, model=model, config=config, compute=halves)


@pytest.mark.parametrize("kind", ["lstm", "attention"])
def test_bfloat16_captions_or_is_refused_on_this_cpu(captioner, kind):
    config = captioner.config.model_copy(deep=True)
    config.decoder.kind = kind
    model = build_model(config, len(WORDS)).eval()
    halves = replace(captioner.compute, precision=torch.bfloat16)
    if kind == "lstm" and not has_bfloat16_lstm():
        pytest.skip("this CPU has no LSTM in bfloat16")
    [result] = replace(captioner, model=model, config=config, compute=halves)([noise(0)])
    assert isinstance(result.caption, str)


def test_words_that_must_and_must_not_occur_are_given_as_words(captioner):
    [plain] = captioner([noise(0)], exclude=["dog"], include=["cat|runs", "a"])
    words = plain.caption.split()
    assert "dog" not in words
    assert "a" in words
    assert {"cat", "runs"} & set(words)
    assert captioner.options(exclude="dog").exclude == [5]
    assert captioner.options(include=["cat|runs", "a"]).include == [[6, 7], [4]]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"exclude": ["dgo"]}, r"search\.exclude=dgo: .* does not have this word; did you mean 'dog'\?"),
        ({"include": ["cat|zebra"]}, r"search\.include=zebra: .* does not have this word"),
        ({"include": ["<unk>"]}, r"search\.include=<unk>: .* does not have this word"),
        ({"include": ["cat|dog"], "exclude": ["dog"]}, "'dog' is in both"),
    ],
    ids=str,
)
def test_words_that_cannot_be_asked_for_are_an_error_for_people(captioner, search, message):
    with pytest.raises(UserError, match=message):
        next(captioner([noise(0)], **search))


def save(captioner: Captioner, path: Path) -> Path:
    save_checkpoint(path, captioner.checkpoint())
    return path


@torch.inference_mode()
def test_several_checkpoints_caption_together(captioner, tmp_path):
    config = captioner.config.model_copy(deep=True)
    config.encoder.layer, config.decoder.kind, config.encoder.image_size = "layer2", "lstm", 48
    transform = replace(captioner.transform, size=48)
    other = replace(
        captioner, model=build_model(config, len(WORDS)).eval(), config=config, transform=transform
    )
    a, b = save(captioner, tmp_path / "a.pth"), save(other, tmp_path / "b.pth")
    [together] = Captioner.load([b, a], compute=CPU)([noise(0)], beam=1)
    assert together.attention.shape[1:] == next(captioner([noise(0)])).attention.shape[1:]
    # The first word has the mean of both probabilities.
    first = WORDS.index(together.words[0].text)
    probabilities = []
    for member in (captioner, other):
        decoder = member.model.decoder
        grid = member.model.grid(torch.stack(member.prepare(noise(0))))
        logits, *_ = decoder.step(torch.tensor([SOS]), decoder.start(grid))
        probabilities.append(float(logits.softmax(dim=1)[0, first]))
    assert together.words[0].probability == pytest.approx(sum(probabilities) / 2, abs=1e-5)
    assert probabilities[0] != pytest.approx(probabilities[1], abs=1e-3)


def test_models_with_other_words_make_no_ensemble(captioner, tmp_path):
    other = replace(captioner, vocabulary=Vocabulary([*WORDS[:-1], "sits"]))
    a, b = save(captioner, tmp_path / "a.pth"), save(other, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth: its vocabulary is not that of .*a\.pth; use models"):
        Captioner.load([a, b], compute=CPU)


@pytest.mark.parametrize("search", [{"beam": 5}, {"beam": 5, "temperature": 2.0}], ids=str)
def test_reranked_captions_are_those_of_the_search_in_another_order(captioner, search):
    images = [noise(i) for i in range(8)]
    plain, reranked = (
        [{r.caption, *(o.caption for o in r.others)} for r in captioner(images, **search, rerank=rerank)]
        for rerank in ("none", "cider")
    )
    if "temperature" in search:
        assert all(one <= several for one, several in zip(plain, reranked, strict=True))
    else:
        assert plain == reranked
        best = [[r.caption for r in captioner(images, **search, rerank=r)] for r in ("none", "cider")]
        assert best[0] != best[1]
