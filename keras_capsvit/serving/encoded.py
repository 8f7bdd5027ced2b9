"""Encoded images, files of PNG or JPEG, as pixels: in the graph, and looked at before they are decoded."""

import numpy as np
import tensorflow as tf

MAX_PIXELS = 25_000_000
MAX_SIDE = 65_535  # the longest that JPEG knows; of a flat strip, resizing makes H rows as wide as it is
JPEG = b"\xff\xd8\xff"  # how such a file begins
HEADER = 24  # bytes of a PNG until the end of its width and height
PNG = np.frombuffer(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ">i4").astype("int32")  # what stands before them


def pixels(encoded, spec, input_range, max_pixels):
    """Images of files, resized and scaled; refused by their headers, before memory is taken for them.

    Args:
        encoded: strings ``(b,)``.
        spec: tf.TensorSpec of the images ``(b, H, W, C)``, C of 1 or 3.
        input_range: pair of floats, of black and white.
        max_pixels: int, height times width of the largest file.

    Returns:
        Tensor ``(b, H, W, C)`` of the spec's dtype.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, for none at all, for what is neither PNG nor JPEG, is larger, or
            cannot be decoded.
    """
    height, width, channels = spec.shape[1:]
    low, high = input_range
    encoded = tf.ensure_shape(encoded, (None,), name="encoded")
    header = tf.io.decode_raw(encoded, tf.int32, little_endian=False, fixed_length=HEADER)
    is_png = tf.reduce_all(header[:, : len(PNG)] == PNG, axis=1)
    known = is_png | (tf.strings.substr(encoded, 0, len(JPEG)) == JPEG)
    sizes = header[:, len(PNG) :]
    small = ~is_png | _fits(sizes, max_pixels)
    limits = f"at most {max_pixels} pixels, 1 to {MAX_SIDE} a side; received a header of width and height"
    checks = [
        _require(tf.size(encoded) > 0, "at least one image; received an empty batch"),
        _require(tf.reduce_all(known), "bytes of JPEG or PNG files; received others, at", tf.where(~known)[:, 0]),
        _require(tf.reduce_all(small), limits, tf.boolean_mask(sizes, ~small)),
    ]
    with tf.control_dependencies(checks):
        encoded = tf.identity(encoded)

    def measured(jpeg):
        shape = tf.image.extract_jpeg_shape(jpeg)
        checks = [_require(_fits(shape[1::-1], max_pixels), limits, shape[1::-1])]
        if channels == 1:  # where the decoder calls it invalid
            checks.append(_require(shape[2] != 4, "a JPEG in grey, or red, green and blue; received one in CMYK"))
        with tf.control_dependencies(checks):
            return tf.identity(jpeg)

    def decode(image):
        file, is_png = image
        with tf.name_scope("encoded"):  # which errors of these operations tell
            file = tf.cond(is_png, lambda: file, lambda: measured(file))
            image = tf.io.decode_image(file, channels=channels, expand_animations=False)
        image.set_shape((None, None, channels))
        # Of integers, which a large image has a quarter of the bytes in; they come out as floats.
        image = tf.image.resize(image, (height, width), antialias=True)
        image = low + (high - low) * tf.clip_by_value(image / 255, 0, 1)
        return image if spec.dtype.is_floating else tf.cast(tf.round(image), spec.dtype)

    decoded = tf.TensorSpec(spec.shape[1:], spec.dtype)
    return tf.map_fn(decode, (encoded, is_png), fn_output_signature=decoded)


def _fits(size, max_pixels):
    sides = (size > 0) & (size <= MAX_SIDE)
    return tf.reduce_all(sides, axis=-1) & (tf.reduce_prod(tf.cast(size, "int64"), axis=-1) <= max_pixels)


def _require(condition, expected, *received):
    return tf.debugging.Assert(condition, [f"encoded: expected {expected}", *received], summarize=8)
