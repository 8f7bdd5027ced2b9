"""Augmentation of training streams."""

import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.data.affine import uniform, warp
from keras_capsvit.data.streams import LARGEST_SEED, check_stream, mapped


def augment(stream, *, shift=0, flip=False, seed=0):
    """Move and mirror every image of a stream, anew in every epoch.

    Args:
        stream: ``tf.data.Dataset`` of batches ``(images (b, H, W, C), labels)``.
        shift: int, largest shift in whole pixels along each axis, black coming in: what padding by so many pixels and
            cropping at random does (2 for MNIST in Sabour et al. 2017, 4 for CIFAR-10 in He et al. 2016).
        flip: bool, mirror every second image, on average, left to right.
        seed: int.

    Returns:
        ``tf.data.Dataset`` of the same form.

    Raises:
        ValueError: for arguments out of range.
    """
    checks.integer("shift", shift)
    checks.booleans(flip=flip)
    checks.integer("seed", seed, 0, LARGEST_SEED)
    check_stream("stream", stream)
    if not (shift or flip):
        return stream

    def change(key, batch):
        images, labels = batch
        n = tf.shape(images)[0]
        draws = uniform(key + tf.range(n, dtype="int64"), seed, 3)
        if shift:
            images = warp(images, tf.eye(2, batch_shape=[n]), tf.floor(draws[:, :2] * (2 * shift + 1)) - shift)
        if flip:
            images = tf.where(draws[:, 2, None, None, None] < 0.5, images[:, :, ::-1], images)
        return images, labels

    return _changed(stream, change, seed)


def mix(stream, num_classes, *, mixup=0.0, cutmix=0.0, seed=0):
    """Mix every image of a stream with the one before it in its batch, and their labels alike, anew in every epoch.

    Mixup (Zhang et al. 2018) takes a weighted mean of the two images, ``w x_i + (1 - w) x_j``; CutMix (Yun et al. 2019)
    puts a rectangle of the other image at its place, ``1 - w`` of the area less what lies outside the image. ``w`` is
    drawn from ``Beta(alpha, alpha)`` for every image. With both, each image undergoes either, with equal chances.
    Labels become rows of shares: of pixels and their weight that are the image's own, and the rest.

    Args:
        stream: ``tf.data.Dataset`` of batches ``(images (b, H, W, C), class ids (b,))``, shuffled.
        num_classes: int ``M >= 2``.
        mixup: float >= 0, the ``alpha`` of mixup; 0 for none.
        cutmix: float >= 0, the ``alpha`` of CutMix; 0 for none.
        seed: int.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, H, W, C) float32, labels (b, M) float32)``, rows that sum to 1, of NaN for
        ids that are none; with both 0 the stream as it is.

    Raises:
        ValueError: for arguments out of range, images of integers other than uint8, and labels that are no class ids.
    """
    checks.integer("num_classes", num_classes, 2, checks.LARGEST)
    checks.number("mixup", mixup, 0)
    checks.number("cutmix", cutmix, 0)
    checks.integer("seed", seed, 0, LARGEST_SEED)
    check_stream("stream", stream)
    _check_can_be_mixed(*stream.element_spec)
    if not (mixup or cutmix):
        return stream

    def change(key, batch):
        images, labels = batch
        images, labels = tf.image.convert_image_dtype(images, "float32"), _rows(labels, num_classes)
        weights = _weights_of_images(tf.shape(images), mixup, cutmix, tf.stack([key, seed]))
        shares = tf.reduce_mean(weights, axis=(1, 2, 3))[:, None]
        return _mixed(images, weights), _mixed(labels, shares)

    return _changed(stream, change, seed)


def _changed(stream, change, seed):
    """A stream whose batches ``change`` gets with a random key of each, another one in every epoch."""
    # Not Keras's layers, whose random numbers are a state that an interrupted training would not get back.
    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return mapped(tf.data.Dataset.zip(keys, stream), change)


def _check_can_be_mixed(images, labels):
    if not (images.dtype.is_floating or images.dtype == "uint8"):
        raise ValueError(f"Images to mix must be floats, or uint8; received {images.dtype.name}. Scale them first.")
    if not (isinstance(labels, tf.TensorSpec) and labels.shape.rank == 1 and labels.dtype.is_integer):
        raise ValueError(f"Labels of images to mix must be integer class ids of shape (b,); received {labels}.")


def _rows(labels, num_classes):
    labels = tf.cast(labels, "int64")
    legal = (labels >= 0) & (labels < num_classes)
    return tf.where(legal[:, None], tf.one_hot(labels, num_classes), float("nan"))


def _mixed(values, weights):
    return weights * values + (1 - weights) * tf.roll(values, 1, axis=0)


def _weights_of_images(shape, mixup, cutmix, seed):
    """What every pixel keeps of its own image, ``(b, H, W, 1)``: the same everywhere, or 0 in a rectangle, else 1."""
    n, height, width = shape[0], shape[1], shape[2]
    for_draws, for_mixup, for_cutmix = tf.unstack(tf.random.split(seed, 3))
    which, row, column = tf.unstack(tf.random.stateless_uniform([3, n], for_draws)[..., None, None, None])
    blended = cut = tf.ones([n, height, width, 1])
    if mixup:
        blended *= _beta(mixup, n, for_mixup)
    if cutmix:
        side = tf.sqrt(1 - _beta(cutmix, n, for_cutmix))
        beside = _beyond(row, height, side)[:, :, None, None] | _beyond(column, width, side)[:, None, :, None]
        cut = tf.cast(beside, "float32")
    return tf.where(which < bool(mixup) / (bool(mixup) + bool(cutmix)), blended, cut)


def _beyond(centre, size, side):
    """Which of the pixels along an axis, ``(b, size)``, lie outside of a part ``side`` long around a centre."""
    pixels = (tf.range(size, dtype="float32") + 0.5) / tf.cast(size, "float32")
    return tf.abs(pixels - centre[:, :, 0, 0]) >= side[:, :, 0, 0] / 2


def _beta(alpha, n, seed):
    """Numbers ``(n, 1, 1, 1)`` of the distribution Beta(alpha, alpha)."""
    # A gamma of alpha is one of alpha + 1 times a power of a uniform number: in logarithms, because those of a small
    # alpha are too small for floats.
    for_gammas, for_powers = tf.unstack(tf.random.split(seed))
    gammas = tf.random.stateless_gamma([2, n, 1, 1, 1], for_gammas, alpha + 1.0)
    draws = 1 - tf.random.stateless_uniform([2, n, 1, 1, 1], for_powers)
    first, second = tf.unstack(tf.math.log(gammas) + tf.math.log(draws) / alpha)
    return tf.sigmoid(first - second)
