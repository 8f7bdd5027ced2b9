"""Linear layers: linear ops with constant weights, and the biases and batch normalisations that become part of them."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_capsvit.explain.relevance.graph import node_of

LINEAR = ("Conv2D", "DepthwiseConv2dNative", "Conv3D", "Conv2DBackpropInput", "MatMul", "BatchMatMulV2", "Einsum")


@dataclasses.dataclass
class Linear:
    """A linear op with constant weight, and the biases and batch normalisations after it.

    Attributes:
        head: str, the linear op's node.
        position: int, which of its inputs is the activation; ``at``: which is the weight.
        weight: tensor, scaled by what follows.
        bias: tensor or None.
        reshaped: bool, whether the bias is added after a reshape.
        nonnegative: bool, whether the activation cannot be negative.
        first: bool, whether nothing but reshaping and affine ops lies between input and activation.
        cache: dict, of what rules derive from the weight.
    """

    head: str
    position: int
    at: int
    weight: tf.Tensor
    bias: tf.Tensor | None
    reshaped: bool
    nonnegative: bool = False
    first: bool = False
    cache: dict = dataclasses.field(default_factory=dict)


def linear_layers(graph, follow, borders):
    """All linear layers.

    Args:
        graph: Graph.
        follow: names of the nodes whose values follow that of the source of relevance.
        borders: names of nodes that no layer may extend beyond.

    Returns:
        dict from the last node of a layer to its Linear.
    """
    readers = graph.readers(follow)
    layers = {}
    for head in graph.order:
        if head not in follow or graph.nodes[head].op not in LINEAR:
            continue
        inputs = graph.inputs(head)
        active = [i for i, tensor in enumerate(inputs) if node_of(tensor) in follow]
        at = 1 if graph.nodes[head].op == "Conv2DBackpropInput" else len(inputs) - 1 - active[0]
        if len(active) != 1 or at == active[0] or inputs[at] not in graph.constants:
            continue
        axis = _channel_axis(graph.nodes[head], active[0])
        scale, shift, tail, reshaped = _tail(graph, readers, borders, head, axis is not None)
        weight = graph.constants[inputs[at]]
        if scale is not None:
            weight = weight * tf.cast(_along(graph.nodes[head].op, scale, weight.shape, axis), weight.dtype)
        bias = None if shift is None else tf.cast(shift, weight.dtype)
        layers[tail] = Linear(head, active[0], at, weight, bias, reshaped)
    return layers


def _along(op, scale, shape, axis):
    """A scale of the outputs in a shape that multiplies a weight."""
    if scale.size == 1:
        return scale.reshape(())
    wide = np.ones(shape.rank, int)
    wide[axis] = shape[axis]
    if op == "DepthwiseConv2dNative":  # outputs are channels times multipliers
        wide[-2:] = shape[-2:]
    return scale.reshape(wide)


def _tail(graph, readers, borders, head, scalable):
    """Scale and shift of the constant ops after a linear one, the last of these, and if it adds after a reshape."""
    scale = shift = None
    channels_first = _channels_first(graph.nodes[head])
    shape = graph.shapes[f"{head}:0"]
    tail = head
    while tail not in borders and len(readers[tail]) == 1:
        name = readers[tail][0]
        if graph.nodes[name].op == "Reshape" and name not in borders:
            added = _added_after(graph, readers, name, shape[-1] if shape.rank and not channels_first else None)
            if added is not None and scale is None and shift is None:
                return None, added[1], added[0], True
            break
        affine = _affine(graph, name, f"{tail}:0", shape, scalable, channels_first)
        if affine is None:
            break
        times, plus = affine
        if times is not None:
            scale = times if scale is None else scale * times
            shift = None if shift is None else shift * _of_channels(times, shape, channels_first)
        if plus is not None:
            shift = plus if shift is None else shift + plus
        tail = name
    return scale, shift, tail, False


def _added_after(graph, readers, reshape, channels):
    readers = readers[reshape]
    if len(readers) != 1 or channels is None or graph.nodes[readers[0]].op not in ("AddV2", "Add", "BiasAdd"):
        return None
    constants = [graph.constants.get(i) for i in graph.inputs(readers[0])]
    added = next((c for c in constants if c is not None), None)
    if added is None or added.shape.num_elements() != channels:
        return None
    return readers[0], added.numpy().reshape(-1)


def _channels_first(node):
    return "data_format" in node.attr and node.attr["data_format"].s.startswith(b"NC")


def _of_channels(values, shape, channels_first):
    """One value for all, or one for each channel, in a shape that broadcasts to what a layer writes."""
    return values.reshape((-1, *[1] * (shape.rank - 2))) if channels_first and values.size > 1 else values


def _affine(graph, name, tensor, shape, scalable, channels_first):
    """``(scale, shift)`` of a node that computes ``scale * tensor + shift``, or None for another node."""
    node, inputs = graph.nodes[name], graph.inputs(name)
    if node.op == "Identity":
        return None, None
    constants = [graph.constants.get(i) for i in inputs if i != tensor]
    if not constants or len(constants) != len(inputs) - 1 or any(c is None for c in constants):
        return None
    if graph.shapes[f"{name}:0"].as_list() != shape.as_list():
        return None
    if "data_format" in node.attr and _channels_first(node) != channels_first:
        return None
    if node.op.startswith("FusedBatchNorm") and scalable:
        gamma, beta, mean, variance = (c.numpy() for c in constants)
        scale = gamma / np.sqrt(variance + node.attr["epsilon"].f)
        return scale, _of_channels(beta - mean * scale, shape, channels_first)
    value = constants[0].numpy()
    is_left = inputs[0] == tensor
    if node.op == "BiasAdd":
        return None, _of_channels(value, shape, channels_first)
    if node.op in ("AddV2", "Add"):
        return None, value
    if node.op == "Sub":
        return None if not (is_left or scalable) else (None, -value) if is_left else (-np.ones(1, value.dtype), value)
    at = 1 - shape.rank if channels_first else -1
    per_channel = value.size == 1 or (value.ndim >= -at and value.size == value.shape[at] == shape[at])
    if not scalable or not per_channel or node.op not in ("Mul", "RealDiv") or (node.op == "RealDiv" and not is_left):
        return None
    return (value if node.op == "Mul" else 1 / value).reshape(-1), None


def _channel_axis(node, position):
    """Axis of the weight that numbers the channels of what the op writes, or None where these are no axis of it."""
    if node.op == "MatMul":
        return None if position else (0 if node.attr["transpose_b"].b else 1)
    if node.op == "BatchMatMulV2":
        return None if position else (-2 if node.attr["adj_y"].b else -1)
    if node.op == "Conv2DBackpropInput":
        return 2
    return None if node.op == "Einsum" else -1
