"""Data sets of moved, turned and deformed images, made while they are read."""

import tensorflow as tf

from keras_capsvit.data.affine import check_ranges, place, transform
from keras_capsvit.data.streams import check_reading, check_stream, mapped


def affine_mnist(base, *, rotation=20.0, shear=45.0, scale=(0.8, 1.2), translation=8.0, **settings):
    """MNIST padded to 40x40 and transformed by the ranges published for AffNIST; it is not AffNIST.

    The default ranges are the thesis's (chapter 5, section 3.1); the list on AffNIST's own page could not be read when
    this was written. A shear of up to 45 degrees is strong; slopes within 0.2 are ``shear=11.3``. Shifts keep the
    digits inside the image; with the default ranges two of 1,000 MNIST digits are wider than the image and are centred.

    Args:
        base: unbatched ``tf.data.Dataset`` of 28x28 images and labels.
        rotation, shear, scale, translation: ranges, see ``transform``.
        **settings: see ``keyed_batches``.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, 40, 40, 1), labels (b,))``.

    Raises:
        ValueError: for a range that is none.
    """
    check_ranges(rotation, shear, scale, translation)

    def change(images, keys, seed):
        padded = tf.pad(images, [[0, 0], [6, 6], [6, 6], [0, 0]])
        ranges = {"rotation": rotation, "shear": shear, "scale": scale, "translation": translation}
        return transform(padded, seed, keys=keys, **ranges, keep_inside=True)

    return keyed_batches(base, change, **settings)


def affine_cifar10(base, *, rotation=15.0, translation=2.0, **settings):
    """CIFAR-10 rotated and translated (thesis Table 6.9: 2 pixels with 15, 30, 60 or 90 degrees).

    The thesis does not say what fills the corners; here they are black.

    Args:
        base: unbatched ``tf.data.Dataset`` of images and labels.
        rotation, translation: ranges, see ``transform``.
        **settings: see ``keyed_batches``.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, 32, 32, 3), labels (b,))``.

    Raises:
        ValueError: for a range that is none.
    """
    check_ranges(rotation, 0.0, (1.0, 1.0), translation)

    def change(images, keys, seed):
        return transform(images, seed, keys=keys, rotation=rotation, translation=translation)

    return keyed_batches(base, change, **settings)


def expanded_mnist(base, **settings):
    """MNIST digits at random positions on black 40x40 squares (thesis chapter 5, section 3.1).

    Args:
        base: unbatched ``tf.data.Dataset`` of 28x28 images and labels.
        **settings: see ``keyed_batches``.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, 40, 40, 1), labels (b,))``.
    """
    return keyed_batches(base, lambda images, keys, seed: place(images, 40, seed, keys=keys), **settings)


def keyed_batches(base, change, *, batch_size, shuffle, seed):
    """Batches of changed images: every example has a key, so what it undergoes does not depend on the batch size.

    Args:
        base: unbatched ``tf.data.Dataset`` of ``(image, label)``, its length known.
        change: callable from images ``(b, H, W, C)``, keys ``(b,)`` and the seed to the changed images.
        batch_size: int.
        shuffle: bool. If true, order and keys are new in every epoch; if false, the key is the example's number.
        seed: int.

    Returns:
        ``tf.data.Dataset`` of ``(images float32, labels int64)``.

    Raises:
        ValueError: for a base that is empty or whose length is not known.
    """
    check_reading(batch_size, shuffle, seed)
    n = length(base)
    if shuffle:
        base = base.shuffle(n, seed=seed, reshuffle_each_iteration=True)
        keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    else:
        keys = tf.data.Dataset.range(n)

    def prepare(keys, example):
        return change(example[0], keys, seed), example[1]

    return mapped(tf.data.Dataset.zip(keys, base).batch(batch_size), prepare)


def length(base):
    """Number of examples in an unbatched stream, int; ValueError where it is zero or not known."""
    check_stream("base", base, 3)
    n = int(base.cardinality())
    if n < 1:
        raise ValueError(
            f"The base stream must have at least one example and a known length; received cardinality {n}. Choose a "
            "split that is not empty, or state the length with tf.data.experimental.assert_cardinality."
        )
    return n
