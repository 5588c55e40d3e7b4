"""What a graph for one size of picture computes can be said with less work than in the file.

The file's graphs serve every size, whole pictures and tiles. OpenVINO makes none of these changes
by itself. What a model computes is changed by rounding alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

VECTOR = 16  # numbers that a processor's vector holds


def settle_means(ops: Any, made: Mapping[str, Any], count: int, known: int | None) -> None:
    """Take each of ``count`` whole-picture means from where it comes, and compute it there only.

    The file's graphs blend a mean that is given with one that is taken over a window (see
    :class:`llenhance.networks.means.Means`). ``made``: the graph's outputs by name. ``known``: how
    many are given; None for a whole picture, whose means are all taken over all of it.
    """
    for number in range(count):
        taken = made[f"mean{number}"]
        (weighed,) = (user for user in _users(taken) if user.get_type_name() == "Multiply")
        (blend,) = _users(weighed.output(0))
        if known is None:
            product = taken.get_node().input_value(0).get_node()  # features @ weights
            features = product.input_value(0).get_node().input_value(0)
            source = ops.reduce_mean(features, np.array([2, 3]), True).output(0)
        elif number < known:
            (other,) = (
                value.get_node()
                for value in blend.input_values()
                if value.get_node().get_name() != weighed.get_name()
            )
            (source,) = (v for v in other.input_values() if len(v.get_partial_shape()) == 4)
        else:
            source = taken
        _replace(blend.output(0), source)


def take_apart(ops: Any, model: Any) -> None:
    """A convolution of a concatenation becomes a sum of convolutions of its parts.

    The concatenation, a copy of all that it joins, need then not be made. One that is multiplied
    by a number for each channel, or added to one that is, is taken apart as well. ``model``: of
    fixed shapes, constants folded.
    """
    known: dict[str, list[Any] | None] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or node.get_input_size() != 2:
            continue
        parts = _parts(ops, node.input_value(0), known)
        if not parts or sum(map(_channels, parts)) <= VECTOR:
            continue
        kernel = np.array(node.input_value(1).get_node().data, np.float32)
        pieces = np.split(kernel, np.cumsum([_channels(part) for part in parts])[:-1], axis=1)
        how = node.get_attributes()
        spans = (how["strides"], how["pads_begin"], how["pads_end"], how["dilations"])
        first, *rest = (
            ops.convolution(part, np.ascontiguousarray(piece), *spans)
            for part, piece in zip(parts, pieces, strict=True)
        )
        total = functools.reduce(lambda total, made: ops.add(made, total), rest, first)
        _replace(node.output(0), total.output(0))
    model.validate_nodes_and_infer_types()


def with_pixels(openvino: Any, model: Any, packed: bool, columns: int = 1) -> Any:
    """The same graph with (N, H, W, 3) as ``x`` and for ``enhanced``, bytes where ``packed``.

    ``columns``: how many of them the graph has as channels. In memory nothing moves for it. The
    arithmetic of bytes is that of ``to_planes`` and ``from_planes``, on all threads.
    """
    ops = openvino.opset13
    parameters, results = [], []
    for parameter in model.get_parameters():
        if parameter.output(0).any_name == "x":
            users = parameter.output(0).get_target_inputs()
            folded, unfolded = _lengths(parameter.output(0), columns)
            shape = openvino.PartialShape(unfolded)
            parameter = ops.parameter(shape, np.uint8 if packed else np.float32, "x")
            parameter.output(0).set_names({"x"})
            pixels = parameter
            if columns > 1:
                pixels = ops.reshape(pixels, np.array(folded), False)
            planes = transposed = ops.transpose(pixels, np.array([0, 3, 1, 2]))
            if packed:
                pixels = ops.multiply(ops.convert(pixels, "f32"), np.float32(1 / 255))
                planes = ops.transpose(pixels, np.array([0, 3, 1, 2]))
                transposed = ops.multiply(ops.convert(transposed, "f32"), np.float32(1 / 255))
            for place in users:
                # OpenVINO lays planes out once for all who use them. Convolutions want another
                # layout than the rest, so that each of the two kinds gets planes of its own.
                beside = columns > 1 and place.get_node().get_type_name() != "Convolution"
                place.replace_source_output((transposed if beside else planes).output(0))
        parameters.append(parameter)
    for result in model.get_results():
        name, value = result.output(0).any_name, result.input_value(0)
        if name == "enhanced":
            _, unfolded = _lengths(value, columns)
            if packed:
                value = ops.round(ops.multiply(value, np.float32(255)), "half_to_even")
            value = ops.transpose(value, np.array([0, 2, 3, 1]))
            if packed:
                value = ops.convert(value, "u8")
            if columns > 1:
                value = ops.reshape(value, np.array(unfolded), False)
            result = ops.result(value)
            result.output(0).set_names({name})
        results.append(result)
    return openvino.Model(results, parameters, "pixels")


def _users(value: Any) -> list[Any]:
    return [place.get_node() for place in value.get_target_inputs()]


def _replace(old: Any, new: Any) -> None:
    for place in old.get_target_inputs():
        place.replace_source_output(new)


def _channels(value: Any) -> int:
    return int(value.get_shape()[1])


def _lengths(planes: Any, columns: int) -> tuple[list[int], list[int]]:
    """The shape of planes as pixels, with columns folded and without; -1 for any length."""
    count, channels, height, width = (
        length.get_length() if length.is_static else -1 for length in planes.get_partial_shape()
    )
    folded = [count, height, width, channels]
    if columns == 1:
        return folded, folded
    return folded, [count, height, width * columns, channels // columns]


def _parts(ops: Any, value: Any, known: dict[str, list[Any] | None]) -> list[Any] | None:
    """What a tensor joins along its channels; None where it joins nothing."""
    node = value.get_node()
    name, kind = node.get_name(), node.get_type_name()
    if name not in known:
        parts: list[Any] | None = None
        if kind == "Concat" and node.get_attributes()["axis"] == 1:
            parts = []
            for one in node.input_values():
                parts += _parts(ops, one, known) or [one]
        elif kind in ("Add", "Multiply"):
            parts = _parts_of_pairs(ops, node, known)
        known[name] = parts
    return known[name]


def _parts_of_pairs(ops: Any, node: Any, known: dict[str, list[Any] | None]) -> list[Any] | None:
    """The parts of a sum or product, of which one operand joins something."""
    operands = node.input_values()
    joined = [_parts(ops, operand, known) for operand in operands]
    if not any(joined):
        return None
    sizes = [_channels(part) for part in joined[0] or joined[1] or []]
    sides = []
    for operand, parts in zip(operands, joined, strict=True):
        if parts is None and operand.get_shape() == [node.get_output_shape(0)[0], sum(sizes), 1, 1]:
            cut = ops.variadic_split(operand, np.int64(1), np.array(sizes))
            parts = [cut.output(number) for number in range(len(sizes))]
        if parts is None or [_channels(part) for part in parts] != sizes:
            return None
        sides.append(parts)
    combine = ops.add if node.get_type_name() == "Add" else ops.multiply
    return [combine(*pair).output(0) for pair in zip(*sides, strict=True)]
