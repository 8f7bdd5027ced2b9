"""Two overlapping digits in one image."""

import numpy as np
import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.data.affine import place, uniform
from keras_capsvit.data.affine_sets import length
from keras_capsvit.data.streams import check_reading, mapped

# Numbers of examples that are shuffled at once; more of them would fill the memory with numbers.
_WINDOW = 100_000


def multi_mnist(base, *, pairs=1, parts=True, batch_size, shuffle, seed):
    """Digits overlaid by digits of other classes (Sabour et al. 2017, section 6; thesis chapter 5, section 3.2).

    Each digit is shifted by up to 4 whole pixels along each axis, which makes 36x36 of 28x28. The two are added and
    clipped at 1, as in the code of Sabour et al.; the paper and the thesis say "overlaid". Every example is made when
    it is read, from the seed and its number, so the set is the same in every epoch and for every batch size, and only
    the base images are kept in memory.

    Args:
        base: unbatched ``tf.data.Dataset`` of 28x28 images and labels, its length known.
        pairs: int >= 1, images made per base image (1 to 1,000 in thesis Fig. 5.3): example ``k`` overlays base image
            ``k mod n`` with one drawn uniformly from those of other classes.
        parts: bool, whether the labels hold the image of each digit, for a decoder; otherwise they are multi-hot.
        batch_size: int.
        shuffle: bool, a new order in every epoch (in windows of 100,000 examples).
        seed: int, of partners, shifts and order.

    Returns:
        ``tf.data.Dataset`` of images ``(b, 36, 36, 1)``, float32, and of a dict of ``"classes" (b, 2)``, int64, and
        ``"parts" (b, 2, 36, 36, 1)``, float32, where ``parts[:, k]`` is the digit of ``classes[:, k]`` alone. Without
        parts the labels are ``(b, 10)`` float32, 1 for the two classes, which every model and loss takes.

    Raises:
        ValueError: for ``pairs`` below 1, a base of a single class, or one that is empty or of unknown length.
    """
    checks.positive_int("pairs", pairs)
    check_reading(batch_size, shuffle, seed)
    checks.booleans(parts=parts)
    n = length(base)
    images, labels = base.batch(n).get_single_element()
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"Overlapping digits need at least two classes to choose from; received {n} images, all of class "
            f"{classes[0]}. Use a larger part of the split."
        )
    # In the order of classes, the images of all other classes are one run: it starts where the own class ends and goes
    # round to where the own class starts.
    order = tf.constant(np.argsort(labels, kind="stable"))
    own_count = tf.constant(counts[np.searchsorted(classes, labels)])
    own_end = tf.constant(np.cumsum(counts)[np.searchsorted(classes, labels)])

    def overlay(keys):
        index = keys % n
        candidates = tf.cast(n - tf.gather(own_count, index), "float32")
        drawn = tf.cast(tf.floor(uniform(keys, seed, 1)[:, 0] * candidates), "int64")
        partner = tf.gather(order, (tf.gather(own_end, index) + drawn) % n)
        pair = tf.reshape(tf.stack([index, partner], axis=1), (-1,))
        classes = tf.reshape(tf.gather(labels, pair), (-1, 2))
        # Both digits of example k have keys of their own, on the other side of zero from those of the partners.
        shift_keys = tf.reshape(tf.stack([-2 * keys - 1, -2 * keys - 2], axis=1), (-1,))
        digits = tf.reshape(place(tf.gather(images, pair), 36, seed, keys=shift_keys), (-1, 2, 36, 36, 1))
        y = {"classes": classes, "parts": digits} if parts else tf.reduce_max(tf.one_hot(classes, 10), axis=1)
        return tf.minimum(digits[:, 0] + digits[:, 1], 1.0), y

    keys = tf.data.Dataset.range(n * pairs)
    if shuffle:
        keys = keys.shuffle(min(n * pairs, _WINDOW), seed=seed, reshuffle_each_iteration=True)
    return mapped(keys.batch(batch_size), overlay)
