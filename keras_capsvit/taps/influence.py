"""What of an intermediate the class scores depend on."""

import numpy as np
from keras import ops

from keras_capsvit import autodiff
from keras_capsvit.taps.recording import eagerly


def influence(subject, name, shape, size):
    """How strongly the class scores depend on every value that a layer returns.

    Args:
        subject: Scores.
        name: str, full name of the layer.
        shape: tuple, the layer's output shape without the batch.
        size: tuple ``(H, W, C)`` of images.

    Returns:
        float array of ``shape``: absolute gradients of a sum of the scores with weights of one sign, the largest over
        an image of noise in [0, 1] and one in [0, 255]. 0 where no score depends on the value.
    """
    key = name, size
    if key not in subject.influences:
        subject.influences[key] = eagerly(lambda: _gradient(subject, name, shape, size))
    return subject.influences[key]


def _gradient(subject, name, shape, size):
    images = ops.convert_to_tensor(subject.noise(size)[[0, -1]])

    def weighted(offset):
        scores = subject.recorded(images, offsets={name: offset})[0]
        # Not all the same, because a sum of scores of mean 0 depends on nothing.
        return ops.sum(scores * np.linspace(1, 2, scores.shape[-1], dtype="float32"), axis=-1)

    offset = ops.zeros((2, *shape), "float32")
    return np.abs(ops.convert_to_numpy(autodiff.gradient(weighted)(offset)[1])).max(axis=0)
