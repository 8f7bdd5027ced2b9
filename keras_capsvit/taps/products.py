"""Counting the multiplications of the matrix products and convolutions that a live model runs (TensorFlow and JAX)."""

import math

import keras
import numpy as np

from keras_capsvit import autodiff, private
from keras_capsvit.taps.recording import Recorder


class ProductRecorder(Recorder):
    """Recorder that counts the multiply-accumulate operations of products; see ``recording.run``.

    Attributes:
        count: int, so far.
        layers_run: list of ``(layer, int)``: layers in the order in which their calls ended, and the operations inside.
    """

    def __init__(self):
        super().__init__(attention=True)  # fused attention as the two products that it is
        self.count, self.layers_run = 0, []
        self._in_product = False

    def layer(self, call, operation, args, kwargs):
        before = self.count
        output = super().layer(call, operation, args, kwargs)
        if isinstance(operation, keras.Layer):
            self.layers_run.append((operation, self.count - before))
        return output

    def function(self, call, name, args, kwargs):
        if self._in_product or name not in (*private.CONVOLUTIONS, *private.PRODUCTS):
            return super().function(call, name, args, kwargs)
        self._in_product = True  # some are made of others
        try:
            output = call(*args, **kwargs)
        finally:
            self._in_product = False
        if autodiff.is_traced(output):
            raise ValueError(
                "Expected a model whose products run one by one; received one that compiles a part of itself, or loops "
                "over it, where they can be seen only once for any number of times. Count its parts instead."
            )
        self.count += _multiplications(name, [*args, *kwargs.values()], output)
        return output


def _multiplications(name, arguments, output):
    if name == "einsum":
        subscripts, *operands = arguments
        return _of_einsum(subscripts, [_shape(each) for each in operands])
    left, right = (_shape(each) for each in arguments[:2])
    size = math.prod(output.shape)
    if name == "conv":
        return size * math.prod(right[:-1])
    if name == "depthwise_conv":
        return size * math.prod(right[:-2])
    if name == "separable_conv":
        pointwise = _shape(arguments[2])
        return size // pointwise[-1] * (math.prod(right) + math.prod(pointwise))
    if name == "conv_transpose":
        return math.prod(left) * math.prod(right[:-1])
    if name == "matmul":
        return size * left[-1]
    # Every axis, summed over or not, is one of exactly two among both factors and the result.
    return math.isqrt(math.prod(left) * math.prod(right) * size)


def _of_einsum(subscripts, shapes):
    if len(shapes) > 2:
        raise ValueError(
            f"Expected einsum of one or two tensors, whose number of operations is known; received {subscripts!r}. "
            "Write it as products of two."
        )
    sizes = {}
    for labels, shape in zip(subscripts.replace(" ", "").split("->")[0].split(","), shapes, strict=True):
        front, dots, back = labels.partition("...")
        between = range(len(shape) - len(front) - len(back), 0, -1) if dots else ()  # broadcast from the last axis
        for label, size in zip([*front, *between, *back], shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values()) if len(shapes) == 2 else 0


def _shape(x):
    return tuple(x.shape) if hasattr(x, "shape") else np.shape(x)
