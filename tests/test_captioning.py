"""Captioner: any image in, typed results out, in order."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioning import Caption, Captioner, ImageError
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from files import save_checkpoint
from models.model import build_model
from tests.helpers import CPU, tiny
from utils import UserError

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
