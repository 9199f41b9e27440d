"""What was chosen at each step, and which of it makes up each sequence."""

from collections.abc import Sequence

import torch

_STEPS_AHEAD = 4  # steps that a GPU is given before Python waits to see which sequences have ended
_WORTH_LEAVING = 0.1  # share of the images


class History:
    """Tensors of each step, while sequences are reordered and finished ones leave the batch.

    At each step only `paths` changes: the numbers of the rows that make up each sequence, when the rows of
    all steps are counted from 1. Row 0 stands for padding and is zero. At the end, `sequences` puts each
    tensor together at once.
    """

    def __init__(self, num_sequences: int, device: torch.device):
        self.paths = torch.empty(num_sequences, 0, dtype=torch.int64, device=device)  # (B, t)
        self.num_rows = 1
        self.left: list[tuple[torch.Tensor, torch.Tensor]] = []  # places (B,) and paths (B, t)
        self.steps: list[tuple[torch.Tensor, ...]] = []

    def add(self, is_padding: torch.Tensor, *tensors: torch.Tensor) -> None:
        """Record a step: its tensors (B, ...), and which rows (B,) come after the end of their sequence."""
        rows = torch.arange(self.num_rows, self.num_rows + len(is_padding), device=is_padding.device)
        self.num_rows += len(is_padding)
        self.paths = torch.cat([self.paths, rows.masked_fill(is_padding, 0).unsqueeze(1)], dim=1)
        self.steps.append(tensors)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with the sequences in these rows (any shape), in this order; each may occur several times."""
        self.paths = self.paths.index_select(0, rows.flatten())

    def leave(self, places: torch.Tensor) -> None:
        """Before some sequences leave: the places of all (B,) in the result, each of them a different one."""
        self.left.append((places.flatten(), self.paths))

    def sequences(self, places: torch.Tensor, number: int) -> list[torch.Tensor]:
        """Each tensor of the steps by place, (number, T, ...), with zeros for padding."""
        self.leave(places)
        rows = self.paths.new_zeros(number, len(self.steps))
        for where, paths in self.left:  # a sequence that stayed longer replaces its own beginning
            rows[:, : paths.shape[1]].index_copy_(0, where, paths)
        return [_gathered(tensors, rows) for tensors in zip(*self.steps, strict=True)]

    def so_far(self) -> torch.Tensor:
        """The first tensor of each step, for the sequences in the batch: (B, t), with zeros for padding."""
        return _gathered([first for first, *_ in self.steps], self.paths)


def _gathered(tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """These rows (B, t) of the tensors of all steps, counted from 1; row 0 is zero."""
    padding = tensors[0].new_zeros(1, *tensors[0].shape[1:])
    return torch.cat([padding, *tensors]).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def can_look(t: int, device: torch.device) -> bool:
    """Whether to look after step t which sequences have ended; Python has to wait for a GPU to see that."""
    return device.type == "cpu" or (t + 1) % _STEPS_AHEAD == 0


def to_go_on_with(is_open: torch.Tensor) -> torch.Tensor | None:
    """The images that have not ended, of `is_open` (N,) on the host; None: all, because too few have ended.

    What belongs to the image is copied for those that go on, so the batch must become smaller by a tenth.
    """
    if int(is_open.sum()) > (1 - _WORTH_LEAVING) * len(is_open):
        return None
    return is_open.nonzero().squeeze(1)
