"""SqueezeNet 1.0 in Keras, with weights from an ``.npz`` file of the Caffe model."""

import keras
import numpy as np

from keras_capsvit.files import arrays_of

layers = keras.layers
MEAN = np.array([104.0, 117.0, 123.0], "float32")  # of blue, green and red
SIZE = 227


def preprocess(images):
    """Images ``(b, 227, 227, 3)`` in RGB with values in [0, 1] as the network takes them: BGR, minus the mean."""
    return images[..., ::-1] * 255 - MEAN


def input_range():
    """Lowest and highest input, each ``(3,)``."""
    return -MEAN, 255 - MEAN


def squeezenet(path):
    """The network (Iandola et al. 2016), from images that ``preprocess`` made to logits ``(b, 1000)``.

    Args:
        path: ``.npz`` file with ``conv1/kernel``, ``conv1/bias``, ``fire2/conv1x1_1/kernel``, ..., ``conv_final/bias``;
            kernels are ``(height, width, in, out)``.

    Returns:
        keras.Model.

    Raises:
        ValueError: for a file that is damaged, lacks an array, or has one of another shape.
    """
    images = keras.Input((SIZE, SIZE, 3))
    x = _pool(_conv(images, 96, 7, "conv1", strides=2))
    for number, squeezed, expanded in ((2, 16, 64), (3, 16, 64), (4, 32, 128)):
        x = _fire(x, number, squeezed, expanded)
    x = _pool(x)
    for number, squeezed, expanded in ((5, 32, 128), (6, 48, 192), (7, 48, 192), (8, 64, 256)):
        x = _fire(x, number, squeezed, expanded)
    x = _fire(_pool(x), 9, 64, 256)
    x = _conv(layers.ZeroPadding2D(1)(x), 1000, 1, "conv_final")
    model = keras.Model(images, layers.GlobalAveragePooling2D()(x), name="squeezenet")
    with arrays_of(path) as arrays:
        for layer in model.layers:
            shapes = {f"{layer.name.replace('.', '/')}/{each.name}": tuple(each.shape) for each in layer.weights}
            others = [name for name, shape in shapes.items() if arrays.shapes.get(name) != shape]
            if others:
                raise ValueError(
                    f"Expected arrays {', '.join(f'{name} of shape {shapes[name]}' for name in others)} in {path}; it "
                    f"has {arrays.shapes}."
                )
            layer.set_weights([arrays.read(name) for name in shapes])
    return model


def _conv(x, filters, kernel_size, name, **settings):
    return layers.Conv2D(filters, kernel_size, activation="relu", name=name.replace("/", "."), **settings)(x)


def _fire(x, number, squeezed, expanded):
    x = _conv(x, squeezed, 1, f"fire{number}/conv1x1_1")
    narrow = _conv(x, expanded, 1, f"fire{number}/conv1x1_2")
    three = _conv(x, expanded, 3, f"fire{number}/conv3x3_2", padding="same")
    return layers.Concatenate()([narrow, three])


def _pool(x):
    # Caffe's last window may stick out; behind rectifiers zeros do no harm.
    beyond = [(0, (size - 3) % 2) for size in x.shape[1:3]]
    return layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(beyond)(x))
