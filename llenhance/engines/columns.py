"""Neighbouring columns as channels: how a network of few channels fills a processor's vectors.

A vector holds 16 numbers; a convolution to four channels leaves twelve of them empty. So four
columns of the picture become channels of one column, (N, C, H, W) -> (N, 4*C, H, W/4), and every
kernel becomes the one that does the same work on them. In memory (channels last) nothing moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rewrites import VECTOR

ELEMENTWISE = {
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Clamp"),
    *("Relu", "PRelu", "Sigmoid", "Tanh", "BatchNormInference"),
}


def foldable(model: Any, width: int) -> int:
    """How many columns of a picture can be folded into one; 1 where there is nothing to gain.

    ``model``: of fixed shapes, constants folded, concatenations taken apart. Only networks of plain
    convolutions with one input and one result can be.
    """
    widest = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Convolution":
            widest = max(widest, node.get_output_shape(0)[1])
            if list(node.get_attributes()["strides"]) != [1, 1]:
                return 1
        elif kind in ELEMENTWISE:
            if any(not _per_channel(node.input_value(n)) for n in range(1, node.get_input_size())):
                return 1
        elif kind not in ("Parameter", "Constant", "Result"):
            return 1
    if len(model.get_parameters()) != 1 or len(model.get_results()) != 1:
        return 1
    columns = VECTOR // widest if widest else 1
    return columns if columns > 1 and width % columns == 0 else 1


def fold(ops: Any, model: Any, columns: int) -> None:
    """Let a ``foldable`` model work on folded columns, in place: it takes (N, columns*C, H,
    W/columns) for (N, C, H, W), and so does its result come out."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Parameter":
            count, channels, height, width = node.get_output_shape(0)
            shape = [count, channels * columns, height, width // columns]
            node.set_partial_shape(type(node.get_partial_shape())(shape))
        elif kind == "Convolution":
            made = _convolution(ops, node, columns)
            for user in node.output(0).get_target_inputs():
                user.replace_source_output(made.output(0))
            continue  # nothing uses the old one any more
        elif kind == "Constant":
            continue
        for number in range(node.get_input_size()):
            source = node.input_value(number).get_node()
            if source.get_type_name() == "Constant" and np.size(source.data) > 1:
                repeated = ops.constant(_per_column(source.data, columns))
                node.input(number).replace_source_output(repeated.output(0))
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


def _per_column(data: NDArray[Any], columns: int) -> NDArray[Any]:
    """A constant of (1, C, 1, 1) or (C,), once for each column."""
    repeated = np.tile(np.reshape(data, -1), columns)
    return repeated if data.ndim == 1 else repeated.reshape(1, -1, 1, 1)


def _convolution(ops: Any, node: Any, columns: int) -> Any:
    """The same convolution of folded columns."""
    kernel = np.array(node.input_value(1).get_node().data, np.float32)
    how = node.get_attributes()
    (down, across), (above, left) = how["dilations"], how["pads_begin"]
    wide, before, after = _kernel(kernel, columns, across, left)
    return ops.convolution(
        node.input_value(0), wide, [1, 1], [above, before], [how["pads_end"][0], after], [down, 1]
    )


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
