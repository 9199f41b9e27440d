"""EncoderCNN: a torchvision classification model without its classifier, as a grid of features."""

import hashlib
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from utils import UserError

# What torchvision calls the layers that follow the grid, in every model that has them as layers.
HEAD = ("avgpool", "classifier", "fc", "head", "heads")
# Tracing looks into all of torchvision's own layers but this one, which does another thing in training.
TRACER = {"autowrap_modules": (math, torchvision.ops), "leaf_modules": [torchvision.ops.StochasticDepth]}


class EncoderCNN(nn.Module):
    """images (N, 3, H, W) -> grid (N, L, C), L cells row by row.

    The backbone is torchvision's model, traced (torch.fx) and cut where its last grid leaves it: the map of
    a convolution, or the tokens of a transformer. Its state dict has torchvision's names. Frozen layers stay
    in evaluation mode: their batch-norm statistics do not move.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        layer: str = "last",
        grid: int | None = None,
        fine_tune: str = "none",
        image_size: int | None = None,
    ):
        """
        Args:
            name: a torchvision classification model, such as resnet50 (config.py knows them all).
            weights: a torchvision weight name (IMAGENET1K_V2, DEFAULT), the path of a state dict, or `none`.
            layer: the stage whose output is the grid, or `last`.
            grid: resample the grid to this many cells a side (adaptive average).
            fine_tune: `none`, `all`, or the first stage that is trained.
            image_size: pixels a side of the images it will see; the weights' own size if None.

        Raises:
            UserError: no such stage or weights; the weights are of another model or cannot be had;
                the model takes no images of this size.
        """
        super().__init__()
        self.grid = grid
        size = image_size or input_size(name, weights)
        image = torch.zeros(1, 3, size, size)
        self.backbone = cut(build(name, weights, size), name, layer, image)
        self.stages = stage_names([target for target, _ in self.layers()])
        if weights != "none" and weights not in get_model_weights(name).__members__:
            load_weights(self.backbone, name, Path(weights))
        self.trained = self.layers_from(fine_tune)
        for parameter, value in self.backbone.named_parameters():
            value.requires_grad_(any(belongs(parameter, layer) for layer in self.trained))
        self.train()
        with torch.no_grad():
            self.dim: int = self.eval()(image).shape[2]
        self.train()

    def layers(self) -> list[tuple[str, bool]]:
        """Layers, and parameters outside of any, in the order they run: name, and whether it is a layer."""
        nodes = [node for node in self.backbone.graph.nodes if node.op in ("call_module", "get_attr")]
        return [
            (node.target, node.op == "call_module")
            for node in nodes
            if not node.target.startswith("_tensor_constant")
        ]

    def layers_from(self, stage: str) -> list[str]:
        """The layers that are trained: those of `stage` and all that run after its first one."""
        names = [name for name, _ in self.layers()]
        if stage == "none":
            return []
        if stage == "all":
            return names
        first = [i for i, name in enumerate(names) if belongs(name, stage)]
        if not first:
            raise no_such_stage("encoder.fine_tune", stage, self.stages)
        # A layer that runs twice, as the ReLU of a ResNet's block, has no weights.
        return names[first[0] :]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.look(self.backbone, images)

    def folded(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The same function in evaluation mode as it is now, up to rounding, but faster.

        Each batch norm is folded into the weights of the convolution before it: on a CPU ResNet-50 takes a
        tenth less time.
        """
        backbone = self.fold()
        return lambda images: self.look(backbone, images)

    def fold(self) -> fx.GraphModule:
        folded = fuse(self.backbone.eval(), no_trace=True).to(memory_format=torch.channels_last)
        self.train(self.training)
        return folded

    def look(self, backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
        x = as_map(backbone(images.contiguous(memory_format=torch.channels_last)))
        if self.grid:
            x = F.adaptive_avg_pool2d(x, self.grid)
        return x.flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> "EncoderCNN":
        super().train(mode)
        for name, is_layer in self.layers():
            if is_layer and name not in self.trained:
                self.backbone.get_submodule(name).eval()
        return self

    def digest(self) -> str:
        """SHA-256 over the backbone's weights: the same for the same features."""
        sha = hashlib.sha256()
        for key, value in sorted(self.backbone.state_dict().items()):
            sha.update(key.encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def belongs(name: str, stage: str) -> bool:
    return name == stage or name.startswith(f"{stage}.")


def as_map(x: torch.Tensor) -> torch.Tensor:
    """What a backbone gives for square images -> (N, C, H, W)."""
    if x.dim() == 3:  # a transformer's tokens (N, 1 + L, C): the class token is no cell
        side = math.isqrt(x.shape[1])
        x = x[:, x.shape[1] - side * side :].unflatten(1, (side, side))
    channels_first = x.shape[2] == x.shape[3]
    return x if channels_first else x.permute(0, 3, 1, 2)


def input_size(name: str, weights: str) -> int:
    """Pixels a side of the images that the weights, or else the default ones, were trained with."""
    known = get_model_weights(name)
    return (known[weights] if weights in known.__members__ else known.DEFAULT).transforms().crop_size[0]


def build(name: str, weights: str, size: int) -> nn.Module:
    """torchvision's model, with its weights if they are meant by name; raises UserError, never falls back."""
    known = get_model_weights(name).__members__
    if weights != "none" and weights not in known and not Path(weights).is_file():
        raise UserError(
            f"encoder.weights={weights}: torchvision has no such weights of {name} ({', '.join(known)} "
            f"and DEFAULT are), and there is no file at {Path(weights).absolute()}"
        )
    # A vision transformer has a position embedding for each cell, and so one size of image.
    sized = {"image_size": size} if name.startswith("vit") else {}
    try:
        with warnings.catch_warnings():  # of a new initialisation that Inception may have one day
            warnings.simplefilter("ignore", FutureWarning)
            model = get_model(name, weights=known.get(weights), progress=True, **sized)
    except ValueError:
        raise wrong_size(name, weights, size) from None
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of {name} could not be downloaded ({error}); fetch {known[weights].url} with any "
            f"browser, put it into {folder}, or anywhere and set encoder.weights to its path"
        ) from None
    if hasattr(model, "transform_input"):
        # Inception and GoogLeNet were trained with another normalisation than the one their transforms do,
        # and make up for it inside; torchvision switches that on with its own weights only.
        model.transform_input = True
    return model


def cut(model: nn.Module, name: str, layer: str, image: torch.Tensor) -> fx.GraphModule:
    """The model up to the output of the stage `layer`, or up to its last grid."""
    model.eval()
    names = [
        node
        for node in get_graph_node_names(model, TRACER, suppress_diff_warning=True)[1]
        if "_tensor_constant" not in node  # numbers that tracing found in the code
    ]
    if layer != "last" and not any(belongs(node, layer) for node in names):
        raise no_such_stage("encoder.layer", layer, stage_names(names[1:]))
    try:
        with torch.no_grad():
            node = last_grid(extract(model, names), image) if layer == "last" else layer
            traced = extract(model, [node])
            traced(image)
    except RuntimeError:  # nothing is left of a small image before the last layers
        raise wrong_size(name, "none", image.shape[2]) from None
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args = tuple(output.args[0].values())
    traced.recompile()
    return traced


def wrong_size(name: str, weights: str, size: int) -> UserError:
    return UserError(
        f"encoder.image_size={size}: {name} takes no images of this size; its own is "
        f"{input_size(name, weights)}"
    )


def extract(model: nn.Module, nodes: list[str]) -> fx.GraphModule:
    """The model as a graph with these nodes as outputs, by name; layers that lead to none are left out.

    The graph is that of evaluation: in training its layers do what they do in training, but what torchvision
    has for training alone (Inception's second classifier) is not there.
    """
    extractor = create_feature_extractor(
        model, nodes, tracer_kwargs=TRACER, suppress_diff_warning=True
    ).eval()
    return fx.GraphModule(extractor, extractor.graph)


def last_grid(extractor: fx.GraphModule, image: torch.Tensor) -> str:
    """The last node before the head that has several cells."""
    found = None
    for name, x in extractor(image).items():
        if name.split(".")[0] in HEAD:
            break
        if isinstance(x, torch.Tensor) and x.dim() in (3, 4) and as_map(x).shape[2:].numel() > 1:
            found = name
    return found


def stage_names(layers: list[str]) -> list[str]:
    """The model's outermost parts, in the order they run; containers of nearly everything are opened."""
    for depth in range(1, 4):
        stages = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in layers))
        if len(stages) >= 4:
            break
    return stages


def no_such_stage(key: str, stage: str, stages: list[str]) -> UserError:
    return UserError(
        f"{key}={stage}: the encoder has no such stage; it has {', '.join(stages)}, and their parts"
    )


def load_weights(backbone: nn.Module, name: str, path: Path) -> None:
    """Fill the backbone from a file; raises UserError if it holds another model's weights."""
    # The classifier, and stages after the one in use, are in the file but not here.
    state, own = read_state(path), backbone.state_dict()
    if name.startswith("densenet"):  # torchvision's own files have names of before 2018
        state = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key): value for key, value in state.items()}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    other = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or other:
        what = f"{missing[0]} is missing" if missing else f"{other[0]} has another shape"
        raise UserError(
            f"encoder.weights={path}: not weights of {name} ({what}); set encoder.name to their model"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file, out of the wrappings that training scripts put around it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise UserError(
            f"encoder.weights={path}: not a file that torch.load reads with weights_only=True"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"encoder.weights={path}: not a state dict (names with tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}
