"""A network becomes an ONNX graph that holds no weights, only where they lie.

The graph's initializers point into the safetensors file (ONNX external data: location, offset,
length), so the numbers exist once. Kernels stored as fp16 get a Cast, which the engine folds when
it loads the graph. Needs the extra ``train``.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoints
from .checkpoints import Weights, graph_path
from .errors import LLEnhanceError, WeightsError
from .media import files
from .methods import Method

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPSET = 18
INLINE_LIMIT = 65_536  # bytes of constants that may stay inside the graph: shapes, kernels, slopes


def check_usable() -> None:
    """Raise LLEnhanceError when the extra is not installed.

    For callers that have other work to do first: nothing is to be half done for want of it.
    """
    for name in ("onnx", "onnxscript"):  # torch's exporter needs the second
        if importlib.util.find_spec(name) is None:
            raise LLEnhanceError(f"exporting a graph needs {name}: pip install 'llenhance[train]'")


def is_ours(path: Path) -> bool:
    """Whether a file is a graph that :func:`export` wrote."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # whatever the parser of protocol buffers raises
        return False
    return any(row.key == "weights_sha256" for row in model.metadata_props)


def export(method: Method, weights: Weights) -> list[Path]:
    """Write the graphs of every scale beside the weights; returns their paths.

    Raises LLEnhanceError when the extra is not installed, and WeightsError when a graph would not
    hold the very numbers of the weights, or would hold them twice.
    """
    check_usable()
    import onnx

    written = []
    for scale in method.scales:
        model = _trace(method, weights, scale)
        _rewrite_prelu(model.graph)
        _point_outside(model.graph, weights)
        onnx.helper.set_model_props(
            model, {"method": method.name, "scale": str(scale), "weights_sha256": weights.digest}
        )
        path = graph_path(weights.path, method, scale)
        with files.publish(path, overwrite=True) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        written.append(path)
    return written


def _trace(method: Method, weights: Weights, scale: int) -> onnx.ModelProto:
    import onnx_ir as ir
    import torch
    from onnx_ir.passes import common as passes
    from onnxscript.optimizer import fold_constants_ir
    from torch.export import Dim

    network = checkpoints.build(method, weights)
    size = 2 * max(32, method.multiple_of)
    arguments: dict[str, Any] = {"x": torch.rand(2, 3, size, size + method.multiple_of)}
    shapes: dict[str, Any] = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    for control in method.controls:
        arguments[control.name] = torch.tensor(control.default)
        shapes[control.name] = None
    names = ["x", *(control.name for control in method.controls)]
    outputs = ["enhanced", *method.maps]
    fixed = {"scale": scale} if len(method.scales) > 1 else {}
    if method.means:
        height, width = arguments["x"].shape[2:]
        arguments |= {
            "window": torch.rand(2, 1, height, width),
            "given": torch.rand(2, sum(method.means)),
            "known": torch.ones(len(method.means)),
        }
        shapes |= {"window": shapes["x"], "given": {0: Dim.DYNAMIC}, "known": None}
        names += ["window", "given", "known"]
        outputs += [f"mean{number}" for number in range(len(method.means))]
        network = _with_means(network, fixed)
    else:
        arguments |= fixed
        shapes |= dict.fromkeys(fixed)
    # The exporter talks: about torchvision, which nothing here uses, and its own deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            kwargs=arguments,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            # Its own optimizer folds batch normalisation into new kernels: a second copy.
            optimize=False,
            verbose=False,
        )
        # Not onnxscript's whole optimizer either, for the same reason: only what keeps the kernels.
        assert program is not None
        passes.InlinePass()(program.model)
        fold_constants_ir(program.model, onnx_shape_inference=True)
        tidy = ir.passes.Sequential(
            passes.RemoveUnusedNodesPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.DeduplicateInitializersPass(),
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedOpsetsPass(),
            passes.OutputFixPass(),
            passes.NameFixPass(),
        )
        model = ir.serde.serialize_model(tidy(program.model).model)
    for node in model.graph.node:
        # The exporter notes the source lines of every node, with paths of this machine.
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def _with_means(network: nn.Module, fixed: dict[str, int]) -> nn.Module:
    """The network with its whole-picture means as inputs and outputs."""
    from torch import Tensor, nn

    from .networks.means import Means

    class WithMeans(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, window: Tensor, given: Tensor, known: Tensor) -> Any:
            means = Means(window, given, known)
            return self.network(x, **fixed, means=means), *means.found

    return WithMeans()


def _rewrite_prelu(graph: onnx.GraphProto) -> None:
    """PRelu with one shared slope -> LeakyRelu, which the engines fuse into the convolution."""
    import onnx

    slopes = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if sum(tensor.dims) == max(1, len(tensor.dims))
    }
    for index, node in enumerate(graph.node):
        if node.op_type == "PRelu" and node.input[1] in slopes:
            slope = float(slopes[node.input[1]].reshape(()))
            graph.node[index].CopyFrom(
                onnx.helper.make_node("LeakyRelu", [node.input[0]], node.output, alpha=slope)
            )
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _point_outside(graph: onnx.GraphProto, weights: Weights) -> None:
    """Replace the numbers of every initializer that the weights hold by their place there."""
    import onnx
    from safetensors.numpy import load_file

    kinds = {"F32": onnx.TensorProto.FLOAT, "F16": onnx.TensorProto.FLOAT16}
    values = load_file(weights.path)
    casts, inline = [], 0
    for tensor in graph.initializer:
        entry = weights.tensors.get(tensor.name.removeprefix("network."))
        if entry is None:
            inline += len(tensor.raw_data)
            continue
        name = tensor.name
        key = name.removeprefix("network.")
        if not np.array_equal(onnx.numpy_helper.to_array(tensor), values[key]):
            raise WeightsError(f"{weights.path}: the exporter changed {name}")
        if entry.dtype == "F16":
            tensor.name = f"{name}.half"
            casts.append(
                onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
            )
        tensor.data_type = kinds[entry.dtype]
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        place = {
            "location": weights.path.name,
            "offset": str(entry.offset),
            "length": str(entry.length),
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    if inline > INLINE_LIMIT:
        raise WeightsError(f"{weights.path}: {inline} bytes of it would stay in the graph")
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
