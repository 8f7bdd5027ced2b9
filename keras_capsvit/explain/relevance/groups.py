"""Convolutions in groups, one group after the other: kernels for all at once exist on some machines only."""

import tensorflow as tf


def channel_axis(node):
    """Axis of the channels of what a convolution reads and writes."""
    return 1 if node.attr["data_format"].s.startswith(b"NC") else -1


def count(node, x, weight):
    """Number of groups of a convolution, a NodeDef, between a tensor and a weight of these tf.TensorShapes."""
    channels = None if x.rank is None or weight.rank is None else x[channel_axis(node)]
    return 1 if channels is None or weight[-2] is None else channels // weight[-2]


def separated(x, weight, groups, axis):
    """Pairs of tensors that belong to one group: the channels of ``x`` that it reads, and its weight."""
    return list(zip(tf.split(x, groups, axis), tf.split(weight, groups, -1), strict=True))
