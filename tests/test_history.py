"""What was chosen at each step, put together by sequence, while sequences are reordered and leave."""

import torch

from models.history import History, can_look, to_go_on_with


def test_sequences_follow_their_rows_and_end_with_padding():
    history, nothing = History(2, torch.device("cpu")), torch.tensor([False, False])
    history.add(nothing, torch.tensor([5, 6]), torch.tensor([[0.5], [0.6]]))
    history.select(torch.tensor([[1, 0]]))  # the beams change places
    history.add(nothing, torch.tensor([7, 8]), torch.tensor([[0.7], [0.8]]))
    history.leave(torch.tensor([0, 1]))
    history.select(torch.tensor([1]))  # the first one leaves
    history.add(torch.tensor([False]), torch.tensor([9]), torch.tensor([[0.9]]))
    history.add(torch.tensor([True]), torch.tensor([4]), torch.tensor([[0.4]]))
    tokens, numbers = history.sequences(torch.tensor([1]), 2)
    assert tokens.tolist() == [[6, 7, 0, 0], [5, 8, 9, 0]]
    torch.testing.assert_close(numbers[1].flatten(), torch.tensor([0.5, 0.8, 0.9, 0.0]))


def test_images_leave_when_a_tenth_of_the_batch_has_ended():
    is_open = torch.ones(30, dtype=torch.bool)
    is_open[:2] = False
    assert to_go_on_with(is_open) is None
    is_open[2] = False
    assert to_go_on_with(is_open).tolist() == list(range(3, 30))


def test_only_on_a_cpu_the_end_is_looked_for_after_each_word():
    assert all(can_look(t, torch.device("cpu")) for t in range(4))
    assert [can_look(t, torch.device("cuda")) for t in range(8)] == [False, False, False, True] * 2
