"""Convolutions in groups, one group after the other: kernels for all at once exist on some machines only.

Where every channel is a group, of which there may be hundreds, the depthwise convolution does the same at once.
"""

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


def is_depthwise(node, weight):
    """Whether every channel is a group, and the depthwise op can do them; ``weight`` is a tf.TensorShape."""
    strides, dilations = (list(node.attr[name].list.i) for name in ("strides", "dilations"))
    plain = channel_axis(node) == -1 and strides[1] == strides[2] and set(dilations) <= {1}
    return node.op == "Conv2D" and weight[-2] == 1 and plain


def depthwise(node, x, weight):
    """The convolution of every channel of ``x`` with its own kernels, in the form of ``Conv2D``'s weight."""
    return tf.raw_ops.DepthwiseConv2dNative(input=x, filter=_by_channel(weight, x), **_settings(node))


def depthwise_gradient(node, x, weight, gradient):
    """Gradient with respect to ``x``, of which only the shape is read."""
    sizes = tf.concat([tf.shape(gradient)[:1], tf.shape(x)[1:]], 0)
    return tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=sizes, filter=_by_channel(weight, x), out_backprop=gradient, **_settings(node)
    )


def _by_channel(weight, x):
    return tf.reshape(weight, (*weight.shape[:2], x.shape[-1], weight.shape[-1] // x.shape[-1]))


def _settings(node):
    return {
        "strides": list(node.attr["strides"].list.i),
        "padding": node.attr["padding"].s.decode(),
        "explicit_paddings": list(node.attr["explicit_paddings"].list.i),
    }
