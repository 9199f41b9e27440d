"""The graphs of an exported model as ONNX, the format that onnxruntime runs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.exported import Graph, quietly
from utils import UserError

# Not convolutions: in 8 bits, MobileNetV2 is half as fast, and every second caption is another one.
_QUANTISED = ["MatMul", "Gemm", "Gather"]
_FEW = 256  # numbers; fewer are not worth a node


def require_onnx(option: str) -> None:
    """Raise a UserError if a package that `option` needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{option} needs the package {error.name}: pip install -r requirements-extra.txt"
        ) from None


def write_onnx(graph: Graph, path: Path, int8: bool = False) -> None:
    """Write the graph with its weights as one file.

    Weights that float16 represents exactly, those of a checkpoint in half precision, take two bytes each, and
    what is computed with them is the same. With `int8`, matrices have one byte for each weight and are
    multiplied in 8 bits, and all other weights take two bytes.
    """
    model = _to_onnx(graph)
    if int8:
        model = _quantised(model, path)
    _store_halves(model.graph, exact=not int8)
    path.write_bytes(model.SerializeToString())


def _to_onnx(graph: Graph) -> Any:
    """The graph as an onnx.ModelProto. Batch norms are folded into the convolutions before them."""
    with quietly():
        program = torch.onnx.export(
            graph.program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # where in the code of the model each operation comes from
    _name_dimensions(model)
    return model


def _quantised(model: Any, path: Path) -> Any:
    """The model with matrices in 8 bits, a scale for each column; their inputs are rounded as they come.

    `path`: a file for the time being.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quietly():
        quantize_dynamic(
            model, path, op_types_to_quantize=_QUANTISED, per_channel=True, weight_type=QuantType.QInt8
        )
    return onnx.load(path)


def _name_dimensions(model: Any) -> None:
    """Call the dimensions of inputs and outputs `images`, `beams` and `words`; the exporter says s6."""
    names: dict[str, str] = {}
    for value in [*model.graph.input, *model.graph.output]:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param.isidentifier():
                names.setdefault(dim.dim_param, ("images", "beams", "words")[min(i, 2)])
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)
    del model.graph.value_info[:]  # which has the old names, and which onnxruntime infers anew


def _store_halves(graph: Any, exact: bool) -> None:
    """Store weights in float16, with a node that makes float32 of them when the model is loaded.

    `exact`: only those that it represents exactly.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        fits = (halves == values).all() if exact else np.isfinite(halves).all()
        if values.size >= _FEW and fits:
            name, stored = weight.name, f"{weight.name}_half"
            weight.CopyFrom(numpy_helper.from_array(halves, stored))
            casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
