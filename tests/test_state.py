"""What a decoder keeps between two words: sequences are reordered, images only looked at."""

from typing import NamedTuple

import torch

from models.state import DecoderState


class Image(NamedTuple):
    cells: torch.Tensor


class Sequence(NamedTuple):
    hidden: torch.Tensor
    memory: torch.Tensor


def first_state() -> DecoderState:
    """Of three images: 10, 20, 30."""
    numbers = torch.tensor([10, 20, 30])
    return DecoderState.first(Image(numbers), Sequence(numbers, -numbers))


def test_the_sequences_of_an_image_share_its_tensors():
    state = first_state().repeat(2)
    assert state.image_tensors() is state.image
    assert state.sequence.hidden.tolist() == [10, 10, 20, 20, 30, 30]
    assert state.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert state.repeat(2).sequence.memory.tolist() == [-10] * 4 + [-20] * 4 + [-30] * 4
    assert state.repeat(2).per_image == 4


def test_selecting_as_many_sequences_of_each_image_copies_nothing_of_the_image():
    state = first_state().repeat(2)
    state = state.with_sequence(Sequence(torch.arange(6), torch.arange(6)))
    selected = state.select(torch.tensor([[1, 1, 0], [2, 3, 3], [5, 4, 4]]))
    assert selected.image_tensors()[0] is state.image[0]
    assert selected.sequence.hidden.tolist() == [1, 1, 0, 2, 3, 3, 5, 4, 4]
    assert selected.image_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_any_sequences_in_any_order_have_the_tensors_of_their_own_image():
    state = first_state().select(torch.tensor([2, 0, 2, 1]))
    assert state.image_tensors()[0].tolist() == [30, 10, 30, 20]
    again = state.repeat(2).select(torch.tensor([7, 0]))
    assert again.image_tensors()[0].tolist() == again.sequence.hidden.tolist() == [20, 30]


def test_images_are_kept_with_all_their_sequences():
    state = first_state().repeat(2).with_sequence(Sequence(torch.arange(6), -torch.arange(6)))
    kept = state.select_images(torch.tensor([0, 2]))
    assert kept.image_tensors()[0].tolist() == [10, 30]
    assert kept.sequence.hidden.tolist() == [0, 1, 4, 5]
    assert kept.image_index.tolist() == [0, 0, 1, 1]
    assert kept.select_images(torch.tensor([1])).sequence.memory.tolist() == [-4, -5]
