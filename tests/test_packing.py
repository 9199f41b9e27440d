"""Captions in the rows of teacher forcing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from data.packing import pack
from tests.helpers import packed
from utils import EOS, PAD, SOS

CAPTIONS = torch.tensor([[SOS, 4, EOS, PAD, PAD], [SOS, 5, 6, 7, EOS], [SOS, 8, EOS, PAD, PAD]])
IMAGE_INDEX = torch.tensor([0, 1, 1])


def test_rows_are_those_worked_out_by_hand():
    rows = packed(CAPTIONS, IMAGE_INDEX, 2)
    # Step by step: the longest caption (1) first, then the two others in their own order.
    assert rows.inputs.tolist() == [SOS, SOS, SOS, 5, 4, 8, 6, 7]
    assert rows.targets.tolist() == [5, 4, 8, 6, EOS, EOS, 7, EOS]
    assert rows.captions.tolist() == [1, 0, 2, 1, 0, 2, 1, 1]
    assert rows.steps.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert rows.active == [3, 3, 1, 1]
    assert rows.images.tolist() == [1, 0, 1]
    assert rows.ranks.tolist() == [0, 0, 1]  # the caption of 4 tokens is the longest of image 1
    assert rows.row_images.tolist() == [1, 0, 1, 1, 0, 1, 1, 1]
    assert rows.largest == 6  # the captions of image 1 have 4 and 2 tokens to predict
    assert (len(rows), rows.num_captions, rows.num_images) == (8, 3, 2)


def test_rows_of_an_image_are_put_side_by_side_in_the_order_of_the_steps():
    rows = packed(CAPTIONS, IMAGE_INDEX, 2)
    assert rows.by_image(rows.targets).tolist() == [[4, EOS, 0, 0, 0, 0], [5, 8, 6, EOS, 7, EOS]]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=12))
def test_every_token_has_one_row_whatever_the_lengths_and_images(drawn):
    lengths = torch.tensor([words + 1 for words, _ in drawn])
    image_index = torch.tensor([image for _, image in drawn])
    captions = torch.arange(len(drawn) * 7).view(-1, 7) + 10
    rows = pack(captions, lengths, image_index, num_images=4)
    expected = {(m, t): int(captions[m, t]) for m, n in enumerate(lengths.tolist()) for t in range(n - 1)}
    at = zip(rows.captions.tolist(), rows.steps.tolist(), strict=True)
    assert dict(zip(at, rows.inputs.tolist(), strict=True)) == expected
    assert torch.equal(rows.targets, rows.inputs + 1)
    assert torch.equal(rows.row_images, image_index[rows.captions])
    values = torch.randn(len(rows), 2)
    assert torch.equal(rows.by_row(rows.by_image(values)), values)
