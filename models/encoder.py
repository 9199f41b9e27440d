"""EncoderCNN: a torchvision classification model without its classifier, as a grid of features."""

import hashlib
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compute import require_memory
from config import EncoderConfig
from data.timm_names import is_timm
from data.transforms import transform_for
from models import timm_models, torchvision_models
from models.backbone import belongs_to, cut, is_constant, no_such_stage, stage_names, stage_shapes
from models.folding import FoldedBatchNorms, fold
from models.grid import as_map, join
from models.weights_file import load_weights

# Lower bounds of what building an encoder takes. For one image, torchvision's models keep 60 (AlexNet) to
# 3000 bytes for each pixel; the last map has 16 channels or more.
_BYTES_PER_PIXEL, _BYTES_PER_CELL = 50, 64


class EncoderCNN(nn.Module):
    """images (N, 3, H, W) -> grid (N, L, C), the L cells row by row.

    The backbone is torchvision's model, traced and cut after its last grid: the map of a convolution, or the
    tokens of a transformer. Its state dict has torchvision's names.

    Frozen layers stay in evaluation mode. So do all batch norms of a network that was trained before, trained
    further or not (`has_fixed_statistics`): they keep the mean and variance of the images that it was trained
    with, as in object detection. A batch of other images would shift them, and with them all that the later
    layers have learnt. Their weights and biases are trained like any others.
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
        library = timm_models if is_timm(config.name) else torchvision_models
        network = library.build(config, weights, size)
        self.prefix_tokens = network.prefix_tokens
        self.backbone, outputs = cut(network, config, image)
        self.num_cells, self.dim = self.encode(lambda _: outputs, image).shape[1:]
        self.stages = stage_names([name for name, _ in self.layers()])
        if network.file:
            load_weights(self.backbone, config.name, network.file)
        # Of weights that can be had again by their name; None for those of a file, and random ones.
        self.named_digest = self.digest() if network.is_named else None
        self.trained = self.layers_from(config.fine_tune)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(any(belongs_to(name, layer) for layer in self.trained))
        # A network with random weights has no statistics yet: it learns them, or nothing normalises.
        self.has_fixed_statistics = config.weights != "none"
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
        folds = self.training and self.trained and self.has_fixed_statistics
        return self.encode(FoldedBatchNorms(self.backbone).run if folds else self.backbone, images)

    def encode(self, backbone: Callable, images: torch.Tensor) -> torch.Tensor:
        """The grid (N, L, C) that `backbone` computes from the images (N, 3, H, W)."""
        outputs = backbone(images.contiguous(memory_format=torch.channels_last))
        x = join([as_map(output, self.prefix_tokens) for output in outputs])
        if self.config.grid:
            x = F.adaptive_avg_pool2d(x, self.config.grid)
        return x.flatten(2).transpose(1, 2)

    def for_inference(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """A faster function from images to the same grid, up to rounding.

        It has the weights that the encoder has at the first call, in evaluation mode.
        """
        folded = cache(self.fold_batch_norms)  # no copy of the backbone if it is never called
        return lambda images: self.encode(folded(), images)

    def fold_batch_norms(self) -> nn.Module:
        """A copy of the backbone with batch norms folded into the weights of the convolutions before them.

        It is for evaluation only. On a CPU ResNet-50 takes a tenth less time, and MobileNetV2 a fifth. Batch
        norms before a convolution, such as those of a DenseNet, stay as they are.
        """
        return fold(self.backbone).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "EncoderCNN":
        super().train(mode)
        for name, is_layer in self.layers():
            if is_layer and name not in self.trained:
                self.backbone.get_submodule(name).eval()
        if self.has_fixed_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def stage_shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Stage -> shape of its output for one image of `size` pixels a side, without the batch.

        models/grid.py reads such a shape (`grid_of`).
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
