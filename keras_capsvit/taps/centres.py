"""Where the nodes of a feature map lie on the image: the centres of their receptive fields."""

import collections

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks, private
from keras_capsvit.taps import declared

OF_NODES = ("attention", "contributions")  # declared taps (b, h, w, ...) that explainers draw


class Places(collections.namedtuple("Places", "first step field")):
    """Nodes along one side of an image, in pixels: node ``r`` looks at ``field`` pixels around ``first + step r``.

    Attributes:
        first: float, the centre of the first receptive field; 0 is the first pixel.
        step: float, from a node to the next.
        field: float, how many pixels a node looks at.
    """

    def window(self, size, stride, before):
        """Places of windows of ``size`` nodes, ``stride`` apart, the first of which begins ``before`` these."""
        start = self.first + self.step * ((size - 1) / 2 - before)
        return Places(start, self.step * stride, self.field + self.step * (size - 1))


def centres(model, name, x):
    """Where the nodes of a declared tap lie, by the windows of all convolutions and poolings on the way.

    Of several ways to grids of one size that counts which looks at most pixels. Where the size of a grid changes by
    anything but windows, its nodes lie in the middle of equal tiles of the image.

    Args:
        model: live or served model.
        name: str, tap ``(b, h, w, ...)``.
        x: array or tensor, images ``(b, H, W, C)`` that the model takes.

    Returns:
        Pair of float arrays ``(h,)`` and ``(w,)``, centres in pixels, 0 for the middle of the first one; None of a
        SavedModel that does not tell.

    Raises:
        ValueError: for a model that declares no such tap, one that is no grid, and images that it does not take.
    """
    known = declared.names(model)
    if checks.text("The name of a tap", name) not in known:
        raise ValueError(f"Expected a tap that the model declares, which are {known}; received {name!r}.")
    images, shape = checks.images(x, empty=False), getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and len(shape) == 4:
        checks.of_size(images, shape[1:], model.name)
    if not isinstance(model, keras.Layer):
        return getattr(model, "centres", {}).get(name)
    x = ops.convert_to_tensor(x)
    windows = _Windows(x.shape)
    with private.watching(windows), checks.running(model.name, x):
        nodes = declared.tap(model, name)(x)
    if len(nodes.shape) < 4:
        raise ValueError(f"Expected a tap (b, h, w, ...); {name!r} of {model.name} is {tuple(nodes.shape)}.")
    counts = tuple(nodes.shape[1:3])
    if counts not in windows.places:
        return tiled(x.shape[1:3], counts)
    sides = windows.places[counts]
    return tuple(side.first + side.step * np.arange(count) for side, count in zip(sides, counts, strict=True))


def tiled(sizes, counts):
    """Centres of equal tiles: for each side of an image, of ``sizes`` pixels and ``counts`` tiles, an array."""
    each = [size / count for size, count in zip(sizes, counts, strict=True)]
    return tuple((size - 1) / 2 + size * np.arange(count) for size, count in zip(each, counts, strict=True))


class _Windows:
    """Watches a model run (see ``private.watching``) and follows the places of nodes from grid to grid."""

    keeps_floats = False

    def __init__(self, shape):
        self.places = {tuple(shape[1:3]): [Places(0.0, 1.0, 1.0)] * 2}

    def function(self, call, name, args, kwargs):
        return call(*args, **kwargs)

    def layer(self, call, operation, args, kwargs):
        output = call(*args, **kwargs)
        layer = getattr(operation, "conv", None) or operation  # of one that convolves by another one's kernel
        images, windows = args[0] if args else None, _windows(layer)
        if windows is None or len(getattr(images, "shape", ())) != 4:
            return output
        axis = 2 if getattr(layer, "data_format", None) == "channels_first" else 1
        before, after = (tuple(x.shape[axis : axis + 2]) for x in (images, output))
        if before in self.places:
            sides = [
                side.window(size, stride, _in_front(padding, size, stride, count))
                for side, (size, stride, padding), count in zip(self.places[before], windows, before, strict=True)
            ]
            known = self.places.get(after, ())
            if sum(side.field for side in sides) > sum(side.field for side in known):
                self.places[after] = sides
        return output


def _windows(layer):
    """Size, stride and padding of a layer's windows along rows and columns; None of a layer without."""
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return [(1, 1, before) for before, _ in layer.padding]
    if isinstance(layer, keras.layers.Cropping2D):
        return [(1, 1, -before) for before, _ in layer.cropping]
    size, strides = getattr(layer, "pool_size", getattr(layer, "kernel_size", None)), getattr(layer, "strides", None)
    pairs = all(isinstance(each, tuple) and len(each) == 2 for each in (size, strides))
    if not pairs or isinstance(layer, keras.layers.Conv2DTranspose):
        return None
    dilation = getattr(layer, "dilation_rate", (1, 1))
    sizes = [(count - 1) * apart + 1 for count, apart in zip(size, dilation, strict=True)]
    return [(size, stride, layer.padding) for size, stride in zip(sizes, strides, strict=True)]


def _in_front(padding, size, stride, count):
    """How many nodes of padding are in front of the first of ``count`` nodes."""
    if padding == "same":  # what ceil(count / stride) windows need, the smaller half of it in front
        return max((-(-count // stride) - 1) * stride + size - count, 0) // 2
    return 0 if padding == "valid" else padding
