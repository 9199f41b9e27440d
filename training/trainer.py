"""One training step for any objective, and the state that a resume restores."""

from collections.abc import Sequence
from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel

from data.dataset import Batch
from models.decoder import Decoder
from models.model import CaptionModel
from training.objective import Loss, Objective
from training.schedule import Schedule


class Trainer:
    """Objective, optimisers, schedule, gradient scaler and moving average; `step` is one complete update."""

    def __init__(self, objective: Objective, steps_per_epoch: int):
        self.objective, self.model, self.compute = objective, objective.model, objective.compute
        self.config = config = objective.config.train
        groups = [
            {"params": [p for p in part.parameters() if p.requires_grad], "peak": peak}
            for part, peak in ((self.model.decoder, config.lr), (self.model.encoder, config.encoder_lr))
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.optimizers = [self.optimizer, *objective.optimizers]
        self.schedule = Schedule(config, steps_per_epoch)
        # Only float16 overflows; for other types the scaler does nothing.
        is_float16 = self.compute.precision is torch.float16
        self.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=is_float16)
        # A frozen encoder equals its average, so only the decoder is averaged in that case.
        self.trained = self.model if self.model.encoder.trained else self.model.decoder
        self.average = None
        if config.average:
            self.average = AveragedModel(self.trained, multi_avg_fn=self.average_weights, use_buffers=True)
        self.steps = 0  # optimiser steps so far

    @property
    def evaluated(self) -> CaptionModel:
        """The model that is validated and saved as the best: the moving average if there is one."""
        if not self.average:
            return self.model
        average = self.average.module
        if isinstance(average, CaptionModel):
            return average
        return CaptionModel(self.model.encoder, cast(Decoder, average))

    def average_weights(
        self, averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], steps: torch.Tensor | int
    ) -> None:
        """Exponential moving average; the decay starts low, so that the first weights soon lose influence."""
        n = int(steps)
        decay = min(self.config.average, (1 + n) / (10 + n))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - decay)
            else:
                average.copy_(weight)

    def step(self, batch: Batch, indices: Sequence[int], epoch: int) -> Loss:
        """Forward, backward, clip, update; see Objective.forward for the arguments."""
        factor = self.schedule.factor(self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        loss = self.objective(batch, indices, epoch)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss.total(self.compute)).backward()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.trained)
        self.steps += 1
        return loss

    def parameters(self) -> list[torch.nn.Parameter]:
        """All trained parameters; their gradients are clipped together."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"]]

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict:
        """Everything but the model's weights, which the checkpoint contains under `model`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.training_state(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "steps": self.steps,
            "random": self.compute.random_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if "objective" in state:  # older checkpoints have none: cross entropy was the only one
            self.objective.load_training_state(state["objective"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average and state["average"]:
            self.average.load_state_dict(state["average"])
        self.steps = state["steps"]
        self.compute.restore_random_state(state["random"])
