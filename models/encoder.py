"""EncoderCNN: a torchvision classification model without its classifier, as a grid of features."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import get_model_weights

from compute import require_memory
from config import EncoderConfig
from data.transforms import transform_for
from models.backbone import (
    as_map,
    belongs_to,
    build,
    cut,
    is_constant,
    no_such_stage,
    stage_names,
    stage_shapes,
)
from models.tensors import UnreadableError, damage, misfit, read_tensors
from utils import UserError

# Lower bounds of what building an encoder takes. For one image, torchvision's models keep 60 (AlexNet) to
# 3000 bytes for each pixel; the last map has 16 channels or more.
_BYTES_PER_PIXEL, _BYTES_PER_CELL = 50, 64


class EncoderCNN(nn.Module):
    """images (N, 3, H, W) -> grid (N, L, C), the L cells row by row.

    The backbone is torchvision's model, traced and cut after its last grid: the map of a convolution, or the
    tokens of a transformer. Its state dict has torchvision's names. Frozen layers stay in evaluation mode, so
    the statistics of their batch norms do not change.
    """

    def __init__(self, config: EncoderConfig, weights: str | None = None):
        """
        Args:
            config: the section `encoder` of the configuration.
            weights: used instead of `config.weights`, which still decide on the image size.

        Raises:
            UserError: no such stage or weights; the weights are of another model or cannot be downloaded;
                the model does not take images of this size, or the memory does not suffice for one.
        """
        super().__init__()
        self.config = config
        weights = weights or config.weights
        size = transform_for(config).size
        require_memory(
            _BYTES_PER_PIXEL * size**2, f"encoder.image_size={size}", "lower it; 224 to 512 are usual"
        )
        if config.grid:
            require_memory(_BYTES_PER_CELL * config.grid**2, f"encoder.grid={config.grid}", "lower it")
        image = torch.zeros(1, 3, size, size)
        self.backbone = cut(build(config, weights, size), config, image)
        self.stages = stage_names([name for name, _ in self.layers()])
        is_named = weights in get_model_weights(config.name).__members__
        if weights != "none" and not is_named:
            _load_weights(self.backbone, config.name, Path(weights))
        # Of the weights that torchvision gives back by name; None for those of a file, and random ones.
        self.named_digest = self.digest() if is_named else None
        self.trained = self.layers_from(config.fine_tune)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(any(belongs_to(name, layer) for layer in self.trained))
        self.train()
        with torch.no_grad():
            self.num_cells, self.dim = self.eval()(image).shape[1:]
        self.train()

    def layers(self) -> list[tuple[str, bool]]:
        """Layers, and parameters outside of any, in the order they run: name, and whether it is a layer."""
        return [
            (node.target, node.op == "call_module")
            for node in self.backbone.graph.nodes
            if node.op in ("call_module", "get_attr") and not is_constant(node.target)
        ]

    def layers_from(self, stage: str) -> list[str]:
        """The layers to train for encoder.fine_tune=`stage`: all from the first one of the stage on."""
        names = [name for name, _ in self.layers()]
        if stage == "none":
            return []
        if stage == "all":
            return names
        first = [i for i, name in enumerate(names) if belongs_to(name, stage)]
        if not first:
            raise no_such_stage("encoder.fine_tune", stage, self.stages)
        # A layer that runs twice, such as the ReLU in a block of a ResNet, has no weights.
        return names[first[0] :]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode(self.backbone, images)

    def encode(self, backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The grid (N, L, C) that `backbone` computes from the images (N, 3, H, W)."""
        x = as_map(backbone(images.contiguous(memory_format=torch.channels_last)))
        if self.config.grid:
            x = F.adaptive_avg_pool2d(x, self.config.grid)
        return x.flatten(2).transpose(1, 2)

    def for_inference(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """A faster function from images to the same grid, up to rounding.

        It has the weights that the encoder has at the first call, in evaluation mode.
        """
        fused = cache(self.fuse_batch_norms)  # no copy of the backbone if it is never called
        return lambda images: self.encode(fused(), images)

    def fuse_batch_norms(self) -> nn.Module:
        """A copy of the backbone with batch norms folded into the weights of the convolutions before them.

        It is for evaluation only. On a CPU ResNet-50 takes a tenth less time, and MobileNetV2 a fifth. Batch
        norms before a convolution, such as those of a DenseNet, stay as they are.
        """
        fused = fuse(self.backbone.eval(), no_trace=True).to(memory_format=torch.channels_last)
        self.train(self.training)
        return fused

    def train(self, mode: bool = True) -> "EncoderCNN":
        super().train(mode)
        for name, is_layer in self.layers():
            if is_layer and name not in self.trained:
                self.backbone.get_submodule(name).eval()
        return self

    def stage_shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Stage -> shape of its output for one image of `size` pixels a side, without the batch.

        models/backbone.py reads such a shape (`grid_of`).
        """
        image = torch.zeros(1, 3, size, size, device=next(self.parameters()).device)
        return stage_shapes(self.backbone, self.stages, image)

    def digest(self) -> str:
        """SHA-256 of the backbone's weights: equal digests mean equal features."""
        sha = hashlib.sha256()
        for key, value in sorted(self.backbone.state_dict().items()):
            sha.update(key.encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def _load_weights(backbone: nn.Module, name: str, path: Path) -> None:
    """Fill the backbone from a file; raises UserError if the file holds the weights of another model."""
    # The file also has the classifier, and the stages after the last one in use.
    state, own = _read_state(path), backbone.state_dict()
    if name.startswith("densenet"):  # torchvision's own files have the names of before 2018
        state = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key): value for key, value in state.items()}
    state = {key: state[key] for key in own if key in state}
    own = {key: own[key] for key in own if key in state or not key.endswith("num_batches_tracked")}
    if reason := misfit(state, own):
        raise UserError(
            f"encoder.weights={path}: not weights of {name} ({reason}); set encoder.name to their model"
        )
    if reason := damage(state):
        raise UserError(f"encoder.weights={path}: {reason}; download or export the file again")
    backbone.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file, without what training scripts wrap around it."""
    try:
        state = read_tensors(path)
    except UnreadableError as error:
        raise UserError(
            f"encoder.weights={path}: not a file that torch.load reads with weights_only=True ({error})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise UserError(f"encoder.weights={path}: not a state dict (names with tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}
