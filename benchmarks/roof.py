"""The machine's own roof: the best convolution rate in each native precision, and the copy rate.

A stack of 3x3 convolutions from 64 to 64 channels, in every engine and layout that is here; the
best of them is the roof. A network of such layers can come near it; one with fewer channels waits
for memory instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from . import machine
from .apart import Missing, apart, timed

CHANNELS, LAYERS = 64, 4
SHAPES = ((400, 600), (200, 300))  # height, width; the second fits into larger caches
COPIED = 1 << 28  # bytes

# Precision -> the engines and layouts that can run the stack in it.
WAYS = {
    "fp32": ("torch NCHW", "torch NHWC", "onnx", "openvino"),
    "bf16": ("torch NCHW", "torch NHWC", "openvino"),
    "fp16": ("torch NCHW", "torch NHWC", "openvino"),
    "int8": ("onnx", "openvino"),
}


def measure(threads: int, *, quick: bool = False) -> dict[str, Any]:
    """{"rates": rows, "roof": {precision: GFLOP/s}, "copy": GB/s}; a row a way and picture."""
    seconds, shapes = (0.2, SHAPES[1:]) if quick else (1.0, SHAPES)
    rows = []
    for precision in machine.native():
        for way in WAYS[precision]:
            for height, width in shapes:
                row: dict[str, Any] = {"precision": precision, "way": way, "size": [width, height]}
                try:
                    row["gflops"] = apart(
                        rate, way, precision, height, width, seconds, threads=threads
                    )
                except Missing as missing:
                    row["missing"] = str(missing)
                rows.append(row)
    return {"rates": rows, "roof": roof(rows), "copy": apart(copy, seconds, threads=threads)}


def roof(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The best rate of each precision that could be measured."""
    best: dict[str, float] = {}
    for row in rows:
        if "gflops" in row:
            best[row["precision"]] = max(row["gflops"], best.get(row["precision"], 0.0))
    return best


def rate(way: str, precision: str, height: int, width: int, seconds: float) -> float:
    """GFLOP/s of the stack, its best repetition; a multiplication and an addition are two."""
    engine, _, layout = way.partition(" ")
    make: dict[str, Callable[[], Callable[[], Any]]] = {
        "torch": partial(_torch, layout, precision, height, width),
        "onnx": partial(_onnx, precision, height, width),
        "openvino": partial(_openvino, precision, height, width),
    }
    operations = 2 * 9 * CHANNELS**2 * LAYERS * height * width
    return operations / min(timed(make[engine](), seconds)) / 1e9


def copy(seconds: float) -> float:
    """GB/s, reading and writing together, between two blocks larger than any cache."""
    import torch

    source, target = torch.ones(COPIED // 4), torch.zeros(COPIED // 4)
    return 2 * COPIED / min(timed(lambda: target.copy_(source), seconds)) / 1e9


def _torch(layout: str, precision: str, height: int, width: int) -> Callable[[], Any]:
    import torch
    from torch import nn

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    order = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    layers = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(LAYERS)]
    stack: Any = nn.Sequential(*layers).eval()
    stack = stack.to(dtype=dtype, memory_format=order)
    picture = torch.rand(1, CHANNELS, height, width).to(dtype=dtype, memory_format=order)

    def run() -> None:
        with torch.inference_mode():
            stack(picture)

    return run


def _kernels() -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    shape = (CHANNELS, CHANNELS, 3, 3)
    return [rng.uniform(-0.04, 0.04, shape).astype(np.float32) for _ in range(LAYERS)]


def _onnx(precision: str, height: int, width: int) -> Callable[[], Any]:
    try:
        import onnx
    except ImportError:
        raise Missing("needs the package onnx (extra: train)") from None
    import onnxruntime

    from llenhance.engines import available_threads

    shape = (1, CHANNELS, height, width)
    kind = onnx.TensorProto.UINT8 if precision == "int8" else onnx.TensorProto.FLOAT
    tensors, nodes = [], []
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}

    def constant(name: str, value: Any) -> str:
        tensors.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    name = "x"
    constant("scale", np.float32(0.02))
    constant("zero", np.uint8(128))
    constant("none", np.int8(0))
    for number, kernel in enumerate(_kernels()):
        out = "y" if number == LAYERS - 1 else f"layer{number}"
        if precision == "int8":
            whole = np.rint(kernel * (127 / 0.04)).astype(np.int8)
            inputs = [name, "scale", "zero", constant(f"w{number}", whole), "scale", "none"]
            nodes.append(
                onnx.helper.make_node("QLinearConv", [*inputs, "scale", "zero"], [out], **pads)
            )
        else:
            nodes.append(
                onnx.helper.make_node("Conv", [name, constant(f"w{number}", kernel)], [out], **pads)
            )
        name = out
    first, last = (onnx.helper.make_tensor_value_info(end, kind, shape) for end in ("x", "y"))
    graph = onnx.helper.make_graph(nodes, "stack", [first], [last], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    picture = np.random.default_rng(1).random(shape, np.float32)
    given = (picture * 255).astype(np.uint8) if precision == "int8" else picture
    return lambda: session.run(["y"], {"x": given})


def _openvino(precision: str, height: int, width: int) -> Callable[[], Any]:
    try:
        from llenhance.engines.openvino import module

        openvino = module()  # which sends nothing
    except ImportError:
        raise Missing("not installed") from None
    from llenhance.engines import available_threads

    ops = openvino.opset13
    shape = [1, CHANNELS, height, width]
    picture = ops.parameter(shape, np.float32, name="x")
    node: Any = picture
    for kernel in _kernels():
        weights = ops.constant(kernel)
        if precision == "int8":
            node = ops.fake_quantize(node, *map(np.float32, (0, 2.55, 0, 2.55)), 256)
            weights = ops.fake_quantize(weights, *map(np.float32, (-0.04, 0.04, -0.04, 0.04)), 255)
        node = ops.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
        if precision == "int8":
            node = ops.relu(node)
    model = openvino.Model([node], [picture], "stack")
    hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}[precision]
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": available_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    if (
        hint not in used
        and {"f32": "float", "bf16": "bfloat16", "f16": "float16"}[hint] not in used
    ):
        raise Missing(f"runs in {used}")
    request = compiled.create_infer_request()
    data = np.random.default_rng(1).random(shape, np.float32)
    request.set_input_tensor(openvino.Tensor(data))
    return lambda: request.infer()


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """For people."""
    table = Table(
        "precision",
        "engine and layout",
        "picture",
        "GFLOP/s",
        title="The roof: 3x3 convolutions from 64 to 64 channels",
    )
    table.columns[3].justify = "right"
    for row in result["rates"]:
        best = row.get("gflops") == result["roof"].get(row["precision"])
        told = f"{row['gflops']:.0f}" if "gflops" in row else row["missing"]
        size = "{}x{}".format(*row["size"])
        table.add_row(row["precision"], row["way"], size, told + (" <-" if best else ""))
    yield table
    copied = Table("copy bandwidth, read and written")
    copied.add_row(f"{result['copy']:.1f} GB/s")
    yield copied
