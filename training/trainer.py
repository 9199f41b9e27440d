"""One training step for any objective, and the state that a resume restores."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from models.decoder import Decoder
from models.model import CaptionModel
from training.objective import Objective, Part
from training.schedule import Schedule
from training.state import Misfit, Tensors, TrainingState, load_moments, load_tensors


class Trainer:
    """Objective, optimisers, schedule, gradient scaler and moving average; `step` is one complete update."""

    def __init__(self, objective: Objective, steps_per_epoch: int, steps: int = 0):
        """`steps`: those of earlier phases of the training."""
        self.objective, self.model, self.compute = objective, objective.model, objective.compute
        self.parallel: Any = objective
        if self.compute.world_size > 1:
            self.parallel = DistributedDataParallel(objective)
        self.steps_per_epoch = steps_per_epoch
        self.config = config = objective.config.train
        # Parameters have names, by which a resumed run finds their moments when it trains more or fewer.
        groups = [
            {"params": [(name, p) for name, p in part if p.requires_grad], "peak": peak}
            for part, peak in (
                (self.model.decoder.named_parameters("decoder"), config.lr),
                (self.model.encoder.named_parameters("encoder"), config.encoder_lr),
            )
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.optimizers = [self.optimizer, *objective.optimizers]
        self.schedule = Schedule(config, steps_per_epoch, steps)
        # Only float16 overflows; for other types the scaler does nothing.
        is_float16 = self.compute.precision is torch.float16
        self.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=is_float16)
        # A frozen encoder equals its average, so only the decoder is averaged in that case.
        self.trained = self.model if self.model.encoder.trained else self.model.decoder
        self.average = None
        if config.average:
            self.average = AveragedModel(self.trained, multi_avg_fn=self.average_weights, use_buffers=True)
        self.steps = steps  # so far, with those that were skipped
        # Whether the loss and the gradient of the last step were finite, and how many steps until now had one
        # that was not. Both are on the device, so that the host can prepare the next step meanwhile.
        self.is_finite = torch.ones((), dtype=torch.bool, device=self.compute.device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=self.compute.device)

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
        n = int(steps)  # which torch keeps on the host
        share = self.is_finite * (1 - min(self.config.average, (1 + n) / (10 + n)))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, share.to(average.dtype))
            else:
                average.copy_(weight)

    def step(self, parts: Sequence[Part], epoch: int) -> dict[str, torch.Tensor]:
        """Forward, backward, clip, update; returns the sums that an Averages adds up.

        The parts of this process, together with those of the others, are the batch that the step learns from.
        Their gradients are added up, so they take no more memory than the largest of them.

        If the loss or its gradient is not finite, weights, the statistics of batch norms, the optimisers'
        state and the moving average do not change. `is_finite` says so.
        """
        factor = self.schedule.factor(self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        buffers = list(self.model.buffers()) if self.model.encoder.trained else []
        buffers_before = [buffer.clone() for buffer in buffers]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sums = self.backward(parts, epoch)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip)
        self.is_finite = self.compute.sum(sums.pop("total")).isfinite() & norm.isfinite()
        found_inf = (~self.is_finite).float()
        for optimizer in self.optimizers:
            # What torch's gradient scaler sets, too: a fused optimiser changes nothing where this is 1.
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            optimizer.step()
        for buffer, before in zip(buffers, buffers_before, strict=True):
            buffer.copy_(torch.where(self.is_finite, buffer, before))
        if self.average:
            self.average.update_parameters(self.trained)
        self.scaler.update()
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * ~self.is_finite
        self.steps += 1
        return sums

    def backward(self, parts: Sequence[Part], epoch: int) -> dict[str, torch.Tensor]:
        """Add up the gradients of all parts of all processes.

        Returns:
            The sums of the losses of this process, and their `total`.
        """
        with torch.no_grad():
            prepared = [self.objective.prepare(part, epoch) for part in parts]
        weights = [part.weight for part in parts]
        totals = self.compute.sums(_weighted([part.totals for part in prepared], weights))
        sums = []
        for i, part in enumerate(prepared):
            with contextlib.ExitStack() as stack:
                if self.compute.world_size > 1 and i + 1 < len(prepared):
                    stack.enter_context(self.parallel.no_sync())  # the last part exchanges all gradients
                loss = self.parallel(part, totals)
                # DistributedDataParallel takes the mean over the processes, not the sum.
                self.scaler.scale(loss.total * (weights[i] * self.compute.world_size)).backward()
            sums.append({**loss.sums, "total": loss.total.detach()})
        return _weighted(sums, weights)

    def parameters(self) -> list[torch.nn.Parameter]:
        """All trained parameters; their gradients are clipped together."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"]]

    @property
    def lr(self) -> float:
        """The decoder's learning rate in the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict:
        """Everything but the model's weights, which the checkpoint contains under `model`."""
        random = self.compute.gather(self.compute.random_state())
        return {
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.training_state(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "steps": self.steps,
            "random": random[0],
            "random_of_others": random[1:],
        }

    def load_state(self, state: TrainingState) -> None:
        """Restore what `state_dict` returned; raises Misfit if it is not that of such a training.

        Learning rates and other settings remain those of the configuration, and encoder.fine_tune,
        train.average and the precision may be others than before.
        """
        load_moments(self.optimizer, state.optimizer)
        self.optimizer.param_groups[0]["lr"] = state.optimizer.param_groups[0].lr
        if state.objective is not None:
            self.objective.load_training_state(state.objective)
        self.schedule.load_state_dict(state.schedule.model_dump())
        if self.scaler.is_enabled() and state.scaler:
            if state.scaler.keys() != self.scaler.state_dict().keys():
                raise Misfit("the gradient scaler has other values")
            self.scaler.load_state_dict(state.scaler)
        if self.average and state.average:
            self.load_average(state.average)
        self.steps = state.steps
        self.skipped_in_a_row.fill_(state.skipped.in_a_row)
        random = [state.random, *state.random_of_others]
        if self.compute.rank >= len(random):  # the run had fewer processes
            torch.manual_seed(self.objective.config.run.seed + self.compute.rank * 2**32 + state.steps)
            return
        try:
            self.compute.restore_random_state(random[self.compute.rank])
        except (RuntimeError, TypeError) as error:  # of the wrong size, for example
            raise Misfit(f"random: {error}") from None

    def load_average(self, saved: Tensors) -> None:
        """Restore the moving average, which may have been of the decoder alone, or of the whole model."""
        assert self.average
        whole, saved_whole = (
            any(name.startswith("module.decoder.") for name in names)
            for names in (self.average.state_dict(), saved)
        )
        if whole and not saved_whole:  # a frozen encoder equals its average
            encoder = {k: v for k, v in self.average.state_dict().items() if k.startswith("module.encoder.")}
            saved = encoder | {k.replace("module.", "module.decoder.", 1): v for k, v in saved.items()}
        elif saved_whole and not whole:
            saved = {
                name.replace("module.decoder.", "module.", 1): tensor
                for name, tensor in saved.items()
                if not name.startswith("module.encoder.")
            }
        load_tensors(self.average, saved)


def _weighted(
    sums: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The weighted sum of scalars by name."""
    pairs = list(zip(sums, weights, strict=True))
    return {name: torch.stack([part[name] * weight for part, weight in pairs]).sum() for name in sums[0]}
