"""A classification model as a backbone: traced (torch.fx) and cut after the stages that are its output."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from compute import is_out_of_memory
from config import EncoderConfig
from data.transforms import transform_for
from models.grid import grid_of
from utils import UserError

_NEARLY_ALL = 0.75  # share of the layers
_NAME = "name of the layer"  # key in the `meta` of a graph's nodes


class Network(NamedTuple):
    """A classification model as its library builds it, and what the library knows about it."""

    model: nn.Module
    tracer: NodePathTracer
    head: Sequence[str]  # names of the layers after the grid
    prefix_tokens: int  # of a transformer, before the tokens of the cells: class token, registers
    is_named: bool  # whether its weights are those that the library gives back by their name
    file: Path | None = None  # of weights to load into what is left after the cut


def belongs_to(name: str, part: str) -> bool:
    """Whether a module or parameter called `name` is `part` or lies inside it."""
    return name == part or name.startswith(f"{part}.")


def is_constant(name: str) -> bool:
    """Whether a node of a graph is a number or an index that tracing found in the code: no weight."""
    return "_tensor_constant" in name


def cut(
    network: Network, config: EncoderConfig, image: torch.Tensor
) -> tuple[fx.GraphModule, Sequence[torch.Tensor]]:
    """The network up to the last of the stages `config.layers`, and what it returns for the image.

    It returns the output of each of these stages, in the order in which they run. The stage `last` is the
    last layer that returns a grid.

    Raises:
        UserError: no such stage, its output is no grid, or the network cannot be traced or does not take
            images (1, 3, H, W) of this size.
    """
    traced, nodes = _trace(network, config)
    names = list(nodes)
    stages = stage_names(names[1:])
    for layer in config.layers:
        if layer != "last" and not any(belongs_to(name, layer) for name in names):
            raise no_such_stage("encoder.layer", layer, stages)
    try:
        # `forward`, because a GraphModule that is called prints a traceback when it fails.
        with torch.no_grad():
            found = traced.forward(image) if "last" in config.layers else {}
            last = _last_grid(found, network) if found else ""
            ends = {
                layer: last if layer == "last" else [name for name in names if belongs_to(name, layer)][-1]
                for layer in sorted(config.layers)
            }
            layers = sorted(ends, key=lambda layer: names.index(ends[layer]))
            backbone = _cut_after(network, traced, [nodes[ends[layer]] for layer in layers])
            outputs = [found[ends[layer]] for layer in layers] if found else backbone.forward(image)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise wrong_size(config, image.shape[2]) from None  # nothing is left of a small image, for example
    for layer, x in zip(layers, outputs, strict=True):
        if not isinstance(x, torch.Tensor) or not grid_of(x.shape[1:], network.prefix_tokens):
            raise UserError(
                f"encoder.layer={layer}: its output is no grid of cells; take one of {', '.join(stages)}"
            )
    return backbone, outputs


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
    """The model's outermost parts, in the order they run.

    The largest is opened if it has nearly all layers, or if there are fewer than four.
    """
    stages = {layer: layer.split(".")[0] for layer in layers}
    while True:
        stage, count = Counter(stages.values()).most_common(1)[0]
        inside = [layer for layer in layers if belongs_to(layer, stage) and layer != stage]
        found = list(dict.fromkeys(stages.values()))
        if not inside or (count <= _NEARLY_ALL * len(layers) and len(found) >= 4):
            return found
        depth = stage.count(".") + 2
        stages |= {layer: ".".join(layer.split(".")[:depth]) for layer in inside}


def no_such_stage(key: str, stage: str, stages: Sequence[str]) -> UserError:
    return UserError(
        f"{key}={stage}: the encoder has no such stage; it has {', '.join(stages)}, and their parts"
    )


def wrong_size(config: EncoderConfig, size: int) -> UserError:
    own = transform_for(config.model_copy(update={"image_size": None})).size
    return UserError(
        f"encoder.image_size={size}: {config.name} takes no images of this size; its own is {own}"
    )


def _trace(network: Network, config: EncoderConfig) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """The model as a graph that returns {name: output} of every node, and its nodes by name, the input first.

    The graph is that of evaluation. Its layers still behave as in training when they are in training mode,
    but what a model has for training alone (Inception's second classifier) is left out.
    """
    try:
        graph = network.tracer.trace(network.model.eval())
    except Exception as error:  # whatever the model's code does with a number that is not there yet
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"encoder.name={config.name}: torch.fx cannot trace this model ({reason}); take another one"
        ) from None
    traced = fx.GraphModule(network.model, graph)
    nodes = {name: node for node, name in network.tracer.node_to_qualname.items() if not is_constant(name)}
    for name, node in nodes.items():
        node.meta[_NAME] = name
    _return(traced, nodes)
    return traced, nodes


def _cut_after(network: Network, traced: fx.GraphModule, ends: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph up to the nodes `ends`, with the layers that lead there."""
    _return(traced, tuple(ends))
    backbone = fx.GraphModule(traced, traced.graph)
    weights = network.model.state_dict().keys()
    for name, buffer in list(backbone.named_buffers()):
        if name not in weights:  # an index or a constant, part of the code
            parent, _, attribute = name.rpartition(".")
            module = backbone.get_submodule(parent)
            delattr(module, attribute)
            module.register_buffer(attribute, buffer, persistent=False)
    return backbone


def _return(traced: fx.GraphModule, result: tuple[fx.Node, ...] | dict[str, fx.Node]) -> None:
    """Make this the result of the graph, and drop the nodes that do not lead there."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args, output.type = (result,), None
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _last_grid(outputs: dict[str, torch.Tensor], network: Network) -> str:
    """The last node before the head whose output is a grid of several cells."""
    found = next(iter(outputs))  # the image itself
    for name, x in outputs.items():
        if name.split(".")[0] in network.head:
            break
        grid = grid_of(x.shape[1:], network.prefix_tokens) if isinstance(x, torch.Tensor) else None
        if grid and grid.side > 1:
            found = name
    return found
