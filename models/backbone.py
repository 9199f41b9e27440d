"""torchvision's classification models as backbones: built by name, traced (torch.fx), cut after a stage."""

import inspect
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, NamedTuple
from urllib.error import URLError

import torch
import torchvision
from torch import fx, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import NodePathTracer

from compute import is_out_of_memory
from config import EncoderConfig
from data.transforms import transform_for
from utils import UserError

# What torchvision calls the layers after the grid, in every model that has them as layers.
_HEAD = ("avgpool", "classifier", "fc", "head", "heads")
# Layers that stay whole in the graph, besides those of torch.nn. Sequences of layers, such as the
# Conv2dNormActivation of a MobileNet, are opened, so that their batch norms can be folded.
_LEAVES = [
    layer
    for _, layer in inspect.getmembers(torchvision.ops, inspect.isclass)
    if not issubclass(layer, nn.Sequential)
]
_NAME = "torchvision's name"  # key in the `meta` of a graph's nodes


class Grid(NamedTuple):
    """A square grid of cells in the output of a layer."""

    layout: Literal["channels first", "channels last", "tokens"]  # (C, H, W), (H, W, C), (L, C) or (1 + L, C)
    channels: int
    side: int  # cells a side: H = W = side, L = side * side


def grid_of(shape: Sequence[int]) -> Grid | None:
    """The grid in the shape of a layer's output for one image, without the batch; None if it is not square.

    A cube, with as many channels as cells a side, is read as channels first. Tokens may have one more than
    a square number: the class token, which is no cell.
    """
    if len(shape) == 2:
        side = math.isqrt(shape[0])
        return Grid("tokens", shape[1], side) if shape[0] - side * side in (0, 1) else None
    if len(shape) == 3 and shape[1] == shape[2]:
        return Grid("channels first", shape[0], shape[1])
    if len(shape) == 3 and shape[0] == shape[1]:
        return Grid("channels last", shape[2], shape[0])
    return None


def as_map(x: torch.Tensor) -> torch.Tensor:
    """The output of a backbone, in any layout of `Grid`, as a map (N, C, H, W)."""
    grid = grid_of(x.shape[1:])
    assert grid is not None  # `cut` has checked it
    if grid.layout == "channels first":
        return x
    if grid.layout == "tokens":
        x = x[:, x.shape[1] - grid.side**2 :].unflatten(1, (grid.side, grid.side))
    return x.permute(0, 3, 1, 2)


def belongs_to(name: str, part: str) -> bool:
    """Whether a module or parameter called `name` is `part` or lies inside it."""
    return name == part or name.startswith(f"{part}.")


def is_constant(name: str) -> bool:
    """Whether a node of a graph is a number or an index that tracing found in the code: no weight."""
    return "_tensor_constant" in name


def build(config: EncoderConfig, weights: str, size: int) -> nn.Module:
    """torchvision's model for images of `size` pixels a side.

    It has `weights` if that is a name of torchvision's, else random weights.

    Raises:
        UserError: `weights` is neither `none`, a name nor a file; the download fails; the model does not
            take images of this size.
    """
    names = get_model_weights(config.name).__members__
    if weights != "none" and weights not in names and not os.path.isfile(weights):
        raise UserError(
            f"encoder.weights={weights}: torchvision has no such weights for {config.name} (it has "
            f"{', '.join(names)} and DEFAULT), and there is no file at {Path(weights).absolute()}"
        )
    # A vision transformer has a position embedding for each cell, so its images have one size.
    sized = {"image_size": size} if config.name.startswith("vit") else {}
    try:
        with warnings.catch_warnings():  # Inception announces that its initialisation may change
            warnings.simplefilter("ignore", FutureWarning)
            model = get_model(config.name, weights=names.get(weights), progress=True, **sized)
    except (ValueError, AssertionError):
        raise _wrong_size(config, size) from None
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:  # the file may be damaged
        if weights not in names or is_out_of_memory(error):
            raise
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of {config.name} could not be downloaded or read ({error}); fetch "
            f"{names[weights].url} with a browser and put the file into {folder}, or set encoder.weights to "
            "its path"
        ) from None
    if hasattr(model, "transform_input"):
        # Inception and GoogLeNet were trained with other means and deviations than their transforms use.
        # The model itself converts them, but torchvision switches that on for its own weights only.
        model.transform_input = True
    return model


def cut(model: nn.Module, config: EncoderConfig, image: torch.Tensor) -> fx.GraphModule:
    """The model up to the output of the stage `config.layer`, or up to its last grid.

    Raises:
        UserError: no such stage, its output is no grid, or the model does not take images (1, 3, H, W) of
            this size.
    """
    traced, nodes = _trace(model)
    stages = stage_names(list(nodes)[1:])
    if config.layer != "last" and not any(belongs_to(name, config.layer) for name in nodes):
        raise no_such_stage("encoder.layer", config.layer, stages)
    try:
        # `forward`, because a GraphModule that is called prints a traceback when it fails.
        with torch.no_grad():
            if config.layer == "last":
                end = _last_grid(traced.forward(image))
            else:
                end = [name for name in nodes if belongs_to(name, config.layer)][-1]
            backbone = _cut_after(traced, nodes[end])
            x = backbone.forward(image)
    except RuntimeError as error:  # nothing is left of a small image before the last layers
        if is_out_of_memory(error):
            raise
        raise _wrong_size(config, image.shape[2]) from None
    if not isinstance(x, torch.Tensor) or not grid_of(x.shape[1:]):
        raise UserError(
            f"encoder.layer={config.layer}: its output is no grid of cells; take one of {', '.join(stages)}"
        )
    return backbone


def stage_shapes(
    backbone: fx.GraphModule, stages: Sequence[str], image: torch.Tensor
) -> dict[str, tuple[int, ...]]:
    """Stage -> shape of its output for `image` (1, 3, H, W), without the batch.

    The output is that of the whole stage, including the steps after its last layer, such as joining branches
    or putting windows together again. Stages that are single parameters are left out.
    """
    shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            x = super().run_node(node)
            if isinstance(x, torch.Tensor) and node.op != "get_attr":
                name = node.meta.get(_NAME, "")
                # A stage ends with its last step: later ones overwrite earlier ones.
                shapes.update({stage: tuple(x.shape[1:]) for stage in stages if belongs_to(name, stage)})
            return x

    with torch.no_grad():
        Recorder(backbone).run(image)
    return shapes


def stage_names(layers: Sequence[str]) -> list[str]:
    """The model's outermost parts, in the order they run; containers of nearly everything are opened."""
    for depth in range(1, 4):
        stages = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in layers))
        if len(stages) >= 4:
            break
    return stages


def no_such_stage(key: str, stage: str, stages: Sequence[str]) -> UserError:
    return UserError(
        f"{key}={stage}: the encoder has no such stage; it has {', '.join(stages)}, and their parts"
    )


def _wrong_size(config: EncoderConfig, size: int) -> UserError:
    own = transform_for(config.model_copy(update={"image_size": None})).size
    return UserError(
        f"encoder.image_size={size}: {config.name} takes no images of this size; its own is {own}"
    )


def _trace(model: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The model as a graph that returns {name: output} of every node, and its nodes by name, the input first.

    The graph is that of evaluation. Its layers still behave as in training when they are in training mode,
    but what torchvision has for training alone (Inception's second classifier) is left out.
    """
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_LEAVES)
    traced = fx.GraphModule(model, tracer.trace(model.eval()))
    nodes = {name: node for node, name in tracer.node_to_qualname.items() if not is_constant(name)}
    for name, node in nodes.items():
        node.meta[_NAME] = name
    _return(traced, nodes)
    return traced, nodes


def _cut_after(traced: fx.GraphModule, end: fx.Node) -> fx.GraphModule:
    """The graph up to the node `end`, with the layers that lead there."""
    _return(traced, end)
    backbone = fx.GraphModule(traced, traced.graph)
    for name, constant in list(backbone.named_buffers()):
        if is_constant(name):  # part of the code, not of the state dict
            delattr(backbone, name)
            backbone.register_buffer(name, constant, persistent=False)
    return backbone


def _return(traced: fx.GraphModule, result: fx.Node | dict[str, fx.Node]) -> None:
    """Make this the result of the graph, and drop the nodes that do not lead there."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args, output.type = (result,), None
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _last_grid(outputs: dict[str, torch.Tensor]) -> str:
    """The last node before the head whose output is a grid of several cells."""
    found = next(iter(outputs))  # the image itself
    for name, x in outputs.items():
        if name.split(".")[0] in _HEAD:
            break
        grid = grid_of(x.shape[1:]) if isinstance(x, torch.Tensor) else None
        if grid and grid.side > 1:
            found = name
    return found
