"""Augmentation of training streams."""

import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.data.affine import uniform, warp
from keras_capsvit.data.streams import LARGEST_SEED, check_stream


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

    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(keys, stream).map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
