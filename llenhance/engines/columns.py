"""Neighbouring columns as channels: how a network of few channels fills a processor's vectors.

A vector holds 16 numbers; a convolution to four channels leaves twelve of them empty. So four
columns of the picture become channels of one column, (N, C, H, W) -> (N, 4*C, H, W/4), and every
kernel becomes the one that does the same work on them. In memory (channels last) nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

VECTOR = 16
ELEMENTWISE = {
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Clamp"),
    *("Relu", "PRelu", "Sigmoid", "Tanh", "BatchNormInference"),
}


def foldable(model: Any, width: int) -> int:
    """How many columns of a picture can be folded into one; 1 where there is nothing to gain.

    ``model``: of fixed shapes, constants folded. Only networks of plain convolutions can be.
    """
    widest = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Convolution":
            widest = max(widest, node.get_output_shape(0)[1])
            if list(node.get_attributes()["strides"]) != [1, 1]:
                return 1
        elif kind == "Concat":
            if node.get_attributes()["axis"] != 1:
                return 1
        elif kind in ELEMENTWISE:
            if any(not _per_channel(node.input_value(n)) for n in range(1, node.get_input_size())):
                return 1
        elif kind not in ("Parameter", "Constant", "Result"):
            return 1
    columns = VECTOR // widest if widest else 1
    return columns if columns > 1 and width % columns == 0 else 1


def fold(ops: Any, model: Any, columns: int) -> None:
    """Fold columns of every four-dimensional parameter of a ``foldable`` model, and unfold every
    result; in place."""
    parts: dict[str, list[int]] = {}  # channels of what a tensor is a concatenation of, by node
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_name()
        if kind == "Result":
            source = node.input_value(0)
            channels = sum(parts[source.get_node().get_name()])
            node.input(0).replace_source_output(_unfolded(ops, source, channels, columns))
            continue
        if kind == "Parameter" and len(node.get_output_shape(0)) == 4:
            shape = node.get_output_shape(0)
            users = node.output(0).get_target_inputs()
            folded = _folded(ops, node, shape, columns)
            for user in users:
                user.replace_source_output(folded)
            parts[folded.get_node().get_name()] = [shape[1]]
            continue
        if kind in ("Parameter", "Constant"):
            continue
        sources = [node.input_value(n).get_node() for n in range(node.get_input_size())]
        if kind == "Concat":
            parts[name] = [count for source in sources for count in parts[source.get_name()]]
        elif kind == "Convolution":
            made = _convolution(ops, node, parts[sources[0].get_name()], columns)
            for user in node.output(0).get_target_inputs():
                user.replace_source_output(made.output(0))
            parts[made.get_name()] = [node.get_output_shape(0)[1]]
            continue  # nothing uses the old one any more
        else:
            counts = next(parts[s.get_name()] for s in sources if s.get_name() in parts)
            for number, source in enumerate(sources):
                if source.get_type_name() == "Constant" and np.size(source.data) > 1:
                    repeated = ops.constant(_per_column(source.data, counts, columns))
                    node.input(number).replace_source_output(repeated.output(0))
            parts[name] = counts
        node.validate_and_infer_types()
    model.validate_nodes_and_infer_types()


def _per_channel(operand: Any) -> bool:
    """Whether a constant is one number, or one for each channel; what is no constant may be."""
    if operand.get_node().get_type_name() != "Constant":
        return True
    shape = list(operand.get_shape())
    return (
        np.prod(shape) == 1 or len(shape) == 1 or (len(shape) == 4 and np.prod(shape) == shape[1])
    )


def _folded(ops: Any, planes: Any, shape: Any, columns: int) -> Any:
    count, channels, height, width = shape
    pixels = ops.transpose(planes, np.array([0, 2, 3, 1]))
    wide = np.array([count, height, width // columns, columns * channels])
    return ops.transpose(ops.reshape(pixels, wide, False), np.array([0, 3, 1, 2])).output(0)


def _unfolded(ops: Any, folded: Any, channels: int, columns: int) -> Any:
    count, _, height, width = folded.get_shape()
    pixels = ops.transpose(folded, np.array([0, 2, 3, 1]))
    narrow = np.array([count, height, width * columns, channels])
    return ops.transpose(ops.reshape(pixels, narrow, False), np.array([0, 3, 1, 2])).output(0)


def _per_column(data: NDArray[Any], counts: list[int], columns: int) -> NDArray[Any]:
    """A constant of (1, C, 1, 1) or (C,), once for each column of each part."""
    flat = np.reshape(data, -1)
    pieces = np.split(flat, np.cumsum(counts)[:-1])
    repeated = np.concatenate([np.tile(piece, columns) for piece in pieces])
    return repeated if data.ndim == 1 else repeated.reshape(1, -1, 1, 1)


def _convolution(ops: Any, node: Any, counts: list[int], columns: int) -> Any:
    """The same convolution of folded columns. Of a concatenation, a sum over its parts: so the
    concatenation need not be made."""
    kernel = np.array(node.input_value(1).get_node().data, np.float32)
    attributes = node.get_attributes()
    (down, across), (above, left) = attributes["dilations"], attributes["pads_begin"]
    total = None
    pieces = np.split(kernel, np.cumsum(counts)[:-1], axis=1)
    for given, part in zip(_joined(node.input_value(0)), pieces, strict=True):
        wide, before, after = _kernel(part, columns, across, left)
        made = ops.convolution(
            given, wide, [1, 1], [above, before], [attributes["pads_end"][0], after], [down, 1]
        )
        total = made if total is None else ops.add(made, total)
    return total


def _joined(source: Any) -> Iterator[Any]:
    """What a tensor is a concatenation of, itself where it is none."""
    node = source.get_node()
    if node.get_type_name() != "Concat":
        yield source
        return
    for number in range(node.get_input_size()):
        yield from _joined(node.input_value(number))


def _kernel(
    kernel: NDArray[np.float32], columns: int, dilation: int, left: int
) -> tuple[NDArray[np.float32], int, int]:
    """(O, I, h, w) -> (columns*O, columns*I, h, w') and the padding before and after a row."""
    outputs, inputs, height, width = kernel.shape
    before = -(-left // columns)
    after = ((width - 1) * dilation - left + columns - 1) // columns
    wide = np.zeros((columns * outputs, columns * inputs, height, before + 1 + after), np.float32)
    for column in range(columns):
        for tap in range(width):
            place, source = divmod(column + tap * dilation - left, columns)
            wide[
                column * outputs : (column + 1) * outputs,
                source * inputs : (source + 1) * inputs,
                :,
                place + before,
            ] += kernel[:, :, :, tap]
    return wide, before, after
