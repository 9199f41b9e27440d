"""Words start from vectors of a file, or are one-hot; a checkpoint needs no file."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from captioning import Captioner
from config_reading import make_config
from data.dataset import Batch
from models.checkpoint import save_checkpoint
from models.decoders import DECODERS
from models.embedding import OneHotWords, WordEmbedding, read_vectors
from models.model import build_model, pack_model
from tests.helpers import CPU, IMAGES, small_decoder, teacher_forcing, tiny
from training.objective import Part
from training.objectives.cross_entropy import CrossEntropy
from training.trainer import Trainer
from utils import EOS, PAD, SOS, UNK, UserError

WORDS = ["<pad>", "<sos>", "<eos>", "<unk>", "at", "dog", "garçon", "unicorn"]
TRANSFORM = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
VECTORS = {"at": [1.0, -2, 3.5, 4], "dog": [0.25, -0.5, 1e-3, 8], "garçon": [-1, 1, 1, 1]}


def lines(end: str = "") -> list[str]:
    return [f"{word} {' '.join(map(str, vector))}{end}" for word, vector in VECTORS.items()]


def glove(tmp_path, extra=(), name="glove.txt"):
    path = tmp_path / name
    path.write_bytes("\n".join([*extra, *lines()]).encode() + b"\n")
    return path


def check(found: dict) -> None:
    assert set(found) == set(VECTORS)
    for word, vector in VECTORS.items():
        np.testing.assert_array_equal(found[word], np.float32(vector))


def test_glove_and_word2vec_text_give_the_same_vectors(tmp_path):
    check(read_vectors(glove(tmp_path, ["the 9 9 9 9"]), WORDS, 4))
    path = tmp_path / "word2vec.txt"
    # The original program ends its lines with a space; others write CRLF.
    path.write_bytes("\n".join(["3 4", *lines(" ")]).encode())
    check(read_vectors(path, WORDS, 4))
    path.write_bytes("\r\n".join(["3 4", *lines()]).encode())
    check(read_vectors(path, WORDS, 4))


def test_a_word_with_spaces_is_not_taken_for_its_first_part(tmp_path):
    check(read_vectors(glove(tmp_path, ["at name@domain.com 9 9 9 9", ". . . 9 9 9 9"]), WORDS, 4))
    # Nor are other alphabets' spaces and line ends: a line ends where the file says so.
    check(read_vectors(glove(tmp_path, ["dog\x85 9 9 9 9", "dog\xa0 9 9 9 9", "a\u2028b 9 9 9 9"]), WORDS, 4))


def test_only_lines_of_wanted_words_are_parsed(tmp_path):
    filler = [f"w{i} 1 2 3 4" for i in range(100)]
    check(read_vectors(glove(tmp_path, [*filler, "other this is no vector"]), WORDS, 4))


def test_the_first_vector_of_a_word_counts(tmp_path):
    path = glove(tmp_path)
    path.write_bytes(path.read_bytes() + b"dog 7 7 7 7\n")
    check(read_vectors(path, WORDS, 4))


def test_found_words_are_scaled_by_one_factor_to_the_size_of_the_others(tmp_path):
    embedding = WordEmbedding(len(WORDS), 4)
    random = embedding.weight.detach().clone()
    assert embedding.start_from(glove(tmp_path), WORDS) == 3
    weight = embedding.weight.detach()
    factors = weight[4:7] / torch.tensor(list(VECTORS.values()))
    torch.testing.assert_close(factors, factors[0, 0].expand_as(factors))
    assert float(weight[4:7].square().mean().sqrt()) == pytest.approx(4**-0.5)
    others = [0, 1, 2, 3, 7]
    assert torch.equal(weight[others], random[others])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dog 1 2 3\nat 1 2 3\n", r"decoder\.embed_dim=4: .* have 3 numbers; set decoder\.embed_dim=3"),
        (b"2 300\ndog 1 2 3\n", r"set decoder\.embed_dim=300"),
        (b"dog 1 2 3 4\nat 1 2 x 4\n", r"line 2: not 4 numbers"),
        (b"dog 1 2 3 4\nat 1 nan 3 4\n", r"line 2: not 4 numbers"),
        (b"1 4\ndog 1 2\n", r"line 2: not 4 numbers; is the file complete"),
        (b"PK\x03\x04 \x00\x01 glove.txt\nx y z\n", r"not a text file of vectors"),
        (b"", r"not a text file of vectors"),
        (b"chien 1 2 3 4\n", r"none of the 8 words is in it"),
        (b"dog 0 0 0 0\n", r"vectors are all zero"),
        (b"dog 1e38 1e38 1e38 1e38\n", r"too large"),
        (b"dog 1e39 1 1 1\n", r"line 1: not 4 numbers"),
        (b"2 " + b"9" * 5000 + b"\ndog 1 2 3 4\n", r"have 1 numbers"),
        (b"dog " + b"1 " * 200_000 + b"\n", r"a line has more than 262,144 bytes"),
        (b"dog 1 2 3 4\nat " + b"\0" * 300_000, r"a line has more than 262,144 bytes"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_the_fix(tmp_path, content, message):
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        WordEmbedding(len(WORDS), 4).start_from(tmp_path / "v.txt", WORDS)


def test_a_missing_file_is_named_with_what_else_there_is(tmp_path):
    with pytest.raises(UserError, match=r"decoder\.embeddings=.*onehot.*learned, one_hot, or the path"):
        read_vectors(tmp_path / "onehot", WORDS, 4)


def test_vectors_are_read_from_a_file_only(tmp_path):
    with pytest.raises(UserError, match="not a file"):
        read_vectors(tmp_path, WORDS, 4)
    with pytest.raises(UserError, match=r"decoder\.embeddings=nul"):
        read_vectors(Path("nul\0byte"), WORDS, 4)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="not a file"):
            read_vectors(tmp_path / "pipe", WORDS, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoder.embeddings=one_hot"], r"set decoder\.tie_embeddings=false"),
        (["decoder.freeze_embeddings=true"], r"freeze_embeddings: learned embeddings"),
        (
            ["decoder.freeze_embeddings=true", "decoder.embeddings=one_hot", "decoder.tie_embeddings=false"],
            r"freeze_embeddings: one_hot embeddings",
        ),
    ],
)
def test_what_cannot_be_tied_or_frozen_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        make_config({}, overrides)


def test_learned_words_have_unit_variance_and_small_weights():
    embedding = WordEmbedding(2000, 64)
    words = embedding(torch.arange(2000)).detach()
    assert float(words.square().mean()) == pytest.approx(1, rel=0.05)
    assert float(embedding.weight.detach().square().mean().sqrt()) == pytest.approx(1 / 8, rel=0.05)


def test_one_hot_words_have_unit_variance_and_one_entry():
    vectors = OneHotWords(9)(torch.tensor([[UNK, PAD], [8, UNK]]))
    assert vectors.shape == (2, 2, 9)
    assert torch.equal(vectors.argmax(dim=2), torch.tensor([[UNK, PAD], [8, UNK]]))
    torch.testing.assert_close(vectors.square().mean(dim=2), torch.ones(2, 2))
    assert (vectors != 0).sum() == 4


@pytest.mark.parametrize("kind", DECODERS)
def test_one_hot_decoders_step_as_they_are_taught(kind):
    decoder = small_decoder(kind, embeddings="one_hot", tie_embeddings=False)
    grid, captions = torch.randn(2, 9, 6), torch.tensor([[SOS, 4, 5, EOS], [SOS, 6, EOS, PAD]])
    logits, _ = teacher_forcing(decoder, grid, captions, torch.tensor([0, 1]))
    state = decoder.start(grid)
    for t in range(3):
        step_logits, state, _ = decoder.step(captions[:, t], state)
        is_token = captions[:, t + 1] != PAD
        torch.testing.assert_close(logits[is_token, t], step_logits[is_token])


CAPTIONS = torch.tensor([[SOS, 4, 5, EOS], [SOS, 6, EOS, PAD], [SOS, 7, 5, EOS]])
BATCH = Batch(IMAGES[:2], CAPTIONS, torch.tensor([4, 3, 4]), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("tie", [True, False])
def test_frozen_embeddings_stay_and_the_rest_learns(tmp_path, kind, tie):
    config = tiny(
        tmp_path,
        decoder={
            "kind": kind,
            "embed_dim": 4,
            "tie_embeddings": tie,
            "embeddings": str(glove(tmp_path)),
            "freeze_embeddings": True,
        },
        train={"weight_decay": 0.1, "warmup": 0},
    )
    model = build_model(config, len(WORDS))
    model.decoder.embedding.start_from(config.decoder.vectors, WORDS)
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    trainer = Trainer(CrossEntropy(model, config, CPU, train_set=None), steps_per_epoch=10)
    trainer.step([Part(BATCH, [0, 1])], 1)
    after = model.decoder.state_dict()
    unchanged = {key for key, value in after.items() if torch.equal(value, before[key])}
    # Tied, the words are scored by the same frozen weights.
    assert unchanged == ({"embedding.weight", "output.score.weight"} if tie else {"embedding.weight"})


def test_a_checkpoint_needs_no_vectors_file(tmp_path):
    path = glove(tmp_path)
    config = tiny(tmp_path, decoder={"embed_dim": 4, "embeddings": str(path), "freeze_embeddings": True})
    model = build_model(config, len(WORDS))
    model.decoder.embedding.start_from(path, WORDS)
    save_checkpoint(tmp_path / "best.pth", pack_model(model, config, WORDS, TRANSFORM))
    path.unlink()
    loaded = Captioner.load(tmp_path / "best.pth", compute=CPU).model
    assert torch.equal(loaded.decoder.embedding.weight, model.decoder.embedding.weight)
    assert not loaded.decoder.embedding.weight.requires_grad
