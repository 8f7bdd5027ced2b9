"""From images to primary capsules: two convolutions, or a backbone and one convolution."""

import keras

from keras_capsvit import checks
from keras_capsvit.layers import PrimaryCaps
from keras_capsvit.models.checks import check_positive, check_sizes, check_weights


def primary_capsules(
    images,
    *,
    num_types,
    primary_dim,
    filters,
    kernel_size,
    strides,
    backbone=None,
    squash=True,
    batch_norm=False,
):
    """Feature maps and primary capsules of symbolic images.

    Args:
        images: KerasTensor ``(b, H, W, C)``.
        num_types: int, capsule types ``l``.
        primary_dim: int, dimension ``d``.
        filters: int, channels of the first convolution.
        kernel_size: int, of both convolutions; with a backbone, of the one on its features ("same", stride 1), or None
            to group its channels as they are.
        strides: pair of ints, of the first and the second convolution; not used with a backbone.
        backbone: None or a model with a tap ``features``; or one from images to feature maps ``(b, h, w, c)``.
        squash: bool, of the primary capsules.
        batch_norm: bool, normalise the channels before they are grouped.

    Returns:
        KerasTensors: features ``(b, h', w', c)`` and primary capsules ``(b, h, w, l, d)``.

    Raises:
        ValueError: for a backbone without feature maps, other arguments out of range, and weights that do not fit into
            this machine's memory.
    """
    if backbone is not None:
        features = _extractor(backbone)(images)
        convolution = {"kernel_size": kernel_size, "strides": 1, "padding": "same"}
    else:
        check_positive(filters=filters)
        check_weights("the first convolution", (kernel_size, kernel_size, images.shape[-1], filters))
        features = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides[0],
            activation="relu",
            data_format="channels_last",
            kernel_initializer="he_normal",
            name="conv",
        )(images)
        convolution = {"kernel_size": kernel_size, "strides": strides[1], "padding": "valid"}
    primary = PrimaryCaps(
        num_types, primary_dim, squash=squash, batch_norm=batch_norm, **convolution, name="primary_capsules"
    )
    return features, primary(features)


def smallest_size(kernel_size, strides, backbone=None):
    """Side of the smallest image of which two convolutions leave a node; with a backbone, that is its business.

    Args:
        kernel_size: int, of both.
        strides: pair of ints.
        backbone: model or None.

    Returns:
        int, pixels.

    Raises:
        ValueError: for sizes and strides that are none.
    """
    if backbone is None or kernel_size is not None:
        checks.positive_int("kernel_size", kernel_size, checks.LARGEST)
    if not isinstance(strides, tuple | list) or len(strides) != 2:
        raise ValueError(f"strides must be a pair of ints, of the two convolutions; received {strides!r:.60}.")
    check_sizes("strides", strides)
    return 1 if backbone is not None else kernel_size + (kernel_size - 1) * strides[0]


def _extractor(backbone):
    if not isinstance(backbone, keras.Model) or not hasattr(backbone, "outputs"):
        raise ValueError(
            "backbone must be a functional model from images to feature maps, or None; received "
            f"{type(backbone).__name__}."
        )
    features = getattr(backbone, "taps", {}).get("features", backbone.outputs[0])
    if len(features.shape) != 4:
        raise ValueError(
            "A backbone needs a tap 'features', or an output, of shape (batch, height, width, channels); received "
            f"shape {tuple(features.shape)}."
        )
    return keras.Model(backbone.inputs[0], features, name="backbone")
