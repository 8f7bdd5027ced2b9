"""Moved, turned and deformed images."""

import numpy as np
import tensorflow as tf

from keras_capsvit import checks


def transform(
    images, seed, *, keys=None, rotation=0.0, shear=0.0, scale=(1.0, 1.0), translation=0.0, keep_inside=False
):
    """Transform every image by an affine map of its own, drawn within the given ranges.

    An image is rotated, then sheared horizontally, then scaled along each axis, all about its centre, then translated;
    bilinear, with black where nothing is known. What image ``k`` undergoes depends on ``seed`` and ``keys[k]`` only, so
    results agree to float32 rounding whatever the batch.

    Args:
        images: ``(b, H, W, C)``, float in [0, 1] or uint8.
        seed: int.
        keys: integers ``(b,)``, one per image; None for ``0 ... b - 1``. Pass running numbers for batches of a stream.
        rotation: float in [0, 180], largest angle in degrees, either way.
        shear: float in [0, 90), largest shear angle in degrees, either way: the drift of rows per row is its tangent.
        scale: pair of floats ``0 < low <= high``, factors of width and height, drawn independently.
        translation: float >= 0, largest shift in pixels along each axis, either way.
        keep_inside: bool, draw the shift from those that cut nothing off what is not black. What fits in no way is
            centred as well as ``translation`` allows.

    Returns:
        float32 tensor ``(b, H, W, C)``.

    Raises:
        ValueError: for images of another rank or dtype, or with NaN or infinite pixels; for keys that are not one per
            image; for a range that is none.

    Example::

        x, y = data.take(data.load("cifar10", split="test"), 1000)
        turned = data.affine.transform(x, seed=0, rotation=30, translation=2)
    """
    check_ranges(rotation, shear, scale, translation)
    checks.booleans(keep_inside=keep_inside)
    images = _as_float(images)
    keys = _check_keys(keys, images)
    draws = uniform(keys, seed, 6)
    matrices = _matrices(draws[:, :4], rotation, shear, scale)
    low, high = -float(translation), float(translation)
    if keep_inside:
        fits_from, fits_to = _fitting_shifts(images, matrices)
        low, high = tf.clip_by_value(fits_from, low, high), tf.clip_by_value(fits_to, low, high)
    return warp(images, matrices, low + draws[:, 4:] * (high - low))


def warp(images, matrices, shifts):
    """Apply given affine maps: the point ``p`` of an image, seen from its centre, moves to ``matrix p + shift``.

    Args:
        images: ``(b, H, W, C)``, float in [0, 1] or uint8.
        matrices: ``(b, 2, 2)``, invertible, acting on ``(x, y)``: columns to the right, rows downwards.
        shifts: ``(b, 2)``, pixels ``(x, y)``.

    Returns:
        float32 tensor ``(b, H, W, C)``, bilinear, black where nothing is known.

    Raises:
        ValueError: for images of another rank or dtype, or with NaN or infinite pixels; for matrices or shifts of
            another shape, or that cannot be inverted.
    """
    images = _as_float(images)
    matrices, shifts = (
        tf.cast(values if tf.is_tensor(values) else checks.numbers(values, name), "float32")
        for values, name in ((matrices, "matrices"), (shifts, "shifts"))
    )
    n = images.shape[:1]
    if not (matrices.shape.is_compatible_with([*n, 2, 2]) and shifts.shape.is_compatible_with([*n, 2])):
        raise ValueError(
            f"Matrices must have shape ({n[0]}, 2, 2) and shifts ({n[0]}, 2), one per image; "
            f"received {tuple(matrices.shape)} and {tuple(shifts.shape)}."
        )
    if tf.executing_eagerly():
        finite = all(tf.reduce_all(tf.math.is_finite(values)) for values in (matrices, shifts))
        if not (finite and tf.reduce_all(tf.abs(tf.linalg.det(matrices)) > 1e-6)):
            raise ValueError(
                "Matrices must be finite and invertible, and shifts finite; received NaN or infinite values, or a "
                "matrix that maps all points to a line."
            )
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], "float32"))
    centre = tf.stack([width - 1, height - 1]) / 2
    back = tf.linalg.inv(matrices)
    offset = centre - tf.linalg.matvec(back, centre + shifts)
    return _pull(images, back, offset, _size(images))


def place(images, size, seed, *, keys=None):
    """Put every image at a whole-pixel position of its own, drawn uniformly, on a larger black square.

    Args:
        images: ``(b, H, W, C)``, float in [0, 1] or uint8.
        size: int, at least ``H`` and ``W``.
        seed: int.
        keys: integers ``(b,)``, as in ``transform``.

    Returns:
        float32 tensor ``(b, size, size, C)``; pixels are copied, not interpolated.

    Raises:
        ValueError: if the square is smaller than the images, or for images that ``transform`` refuses.
    """
    images = _as_float(images)
    height, width = images.shape[1:3]
    size = checks.positive_int("size", size)
    if size < max(height, width):
        raise ValueError(f"The square must hold images of {height}x{width}; received size={size}.")
    keys = _check_keys(keys, images)
    corners = tf.floor(uniform(keys, seed, 2) * tf.constant([size - width + 1.0, size - height + 1.0]))
    return _pull(images, tf.eye(2, batch_shape=[tf.shape(images)[0]]), -corners, [size, size])


def uniform(keys, seed, n):
    """``n`` uniform numbers per key that depend on nothing but the seed and that key.

    They are SplitMix64's (Steele, Lea and Flood 2014), because TensorFlow's generators take one seed per call.

    Args:
        keys: integers ``(b,)``.
        seed: int.
        n: int.

    Returns:
        float32 tensor ``(b, n)`` in [0, 1), multiples of 2^-24.
    """
    keys = keys if tf.is_tensor(keys) else checks.integers("keys", keys, (None,), "(b,)", low=None)
    n = checks.positive_int("n", n)
    seed = seed if tf.is_tensor(seed) else checks.integer("seed", seed, -(2**63), 2**63 - 1)
    counters = tf.cast(keys, "int64")[:, None] * n + tf.range(n, dtype="int64")
    bits = _splitmix64(_splitmix64(tf.cast(seed, "int64")) + tf.cast(counters, "uint64"))
    return tf.cast(tf.bitwise.right_shift(bits, 40), "float32") / 2**24


def _splitmix64(state):
    z = (tf.cast(state, "uint64") + 1) * 0x9E3779B97F4A7C15
    z = (z ^ tf.bitwise.right_shift(z, 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ tf.bitwise.right_shift(z, 27)) * 0x94D049BB133111EB
    return z ^ tf.bitwise.right_shift(z, 31)


def _as_float(images):
    images = images if tf.is_tensor(images) else tf.convert_to_tensor(checks.numbers(images, "images"))
    if images.shape.rank != 4 or not (images.dtype == "uint8" or images.dtype.is_floating):
        raise ValueError(
            "Images must have shape (n, height, width, channels), float in [0, 1] or uint8; "
            f"received {tuple(images.shape)} of {images.dtype.name}."
        )
    images = tf.image.convert_image_dtype(images, "float32")
    if tf.executing_eagerly() and not tf.reduce_all(tf.math.is_finite(images)):
        raise ValueError("Pixels must be finite; received NaN or infinite values. Clean the images first.")
    return images


def _check_keys(keys, images):
    if keys is None:
        return tf.range(tf.shape(images)[0])
    keys = keys if tf.is_tensor(keys) else tf.convert_to_tensor(checks.numbers(keys, "keys"))
    if not (keys.dtype.is_integer and keys.shape.is_compatible_with(images.shape[:1])):
        raise ValueError(
            f"keys must be integers of shape ({images.shape[0]},), one per image; "
            f"received {tuple(keys.shape)} of {keys.dtype.name}."
        )
    return keys


def check_ranges(rotation, shear, scale, translation):
    """Refuse ranges of ``transform`` that are none."""
    checks.number("rotation", rotation, 0, 180)
    checks.number("shear", shear, 0, 90, without=(90,))
    try:
        low, high = (checks.number("scale", each, 0, without=(0,)) for each in scale)
        fits = low <= high
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"scale must be a pair of factors, 0 < low <= high; received {scale!r}.")
    checks.number("translation", translation, 0)


def _matrices(draws, rotation, shear, scale):
    """Scaling after shear after rotation, ``(b, 2, 2)``, from uniform numbers ``(b, 4)``."""
    angle = np.pi / 180 * rotation * (2 * draws[:, 0] - 1)
    slope = tf.tan(np.pi / 180 * shear * (2 * draws[:, 1] - 1))
    factors = scale[0] + (scale[1] - scale[0]) * draws[:, 2:]
    cos, sin = tf.cos(angle), tf.sin(angle)
    rows = [tf.stack([cos - slope * sin, sin + slope * cos], axis=1), tf.stack([-sin, cos], axis=1)]
    return tf.stack(rows, axis=1) * factors[:, :, None]


def _fitting_shifts(images, matrices):
    """Smallest and largest shift ``(b, 2)`` for which nothing but black is cut off."""
    height, width = images.shape[1:3]
    y, x = np.mgrid[:height, :width].astype("float32")
    points = np.stack([x.ravel() - (width - 1) / 2, y.ravel() - (height - 1) / 2]).astype("float32")
    moved = tf.matmul(matrices, points)  # (b, 2, H W)
    ink = tf.reshape(tf.reduce_any(images > 0, axis=-1), (-1, 1, height * width))
    far = tf.constant(1e6)
    lowest = tf.reduce_min(tf.where(ink, moved, far), axis=-1)
    highest = tf.reduce_max(tf.where(ink, moved, -far), axis=-1)
    # Interpolation spreads a pixel as far as its neighbours; nothing may reach the first row or column outside.
    reach = tf.reduce_sum(tf.abs(matrices), axis=-1)
    half = np.array([width + 1, height + 1], "float32") / 2
    fits_from, fits_to = reach - half - lowest, half - reach - highest
    middle = (fits_from + fits_to) / 2
    return tf.minimum(fits_from, middle), tf.maximum(fits_to, middle)


def _pull(images, back, offset, size):
    """Pixel ``q = (x, y)`` of the result is what lies at ``back q + offset`` of the image."""
    rows = tf.concat([back, offset[:, :, None]], axis=-1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.concat([tf.reshape(rows, (-1, 6)), tf.zeros((tf.shape(rows)[0], 2))], axis=-1),
        output_shape=size,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return moved if tf.is_tensor(size) else tf.ensure_shape(moved, [None, *size, images.shape[-1]])


def _size(images):
    size = images.shape[1:3]
    return list(size) if size.is_fully_defined() else tf.shape(images)[1:3]
