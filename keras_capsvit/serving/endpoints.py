"""The functions that a SavedModel answers with, and what each of them refuses."""

import re

import tensorflow as tf

from keras_capsvit.ops import attention_rollout
from keras_capsvit.taps import names, tap

DEFAULT, EXPLAIN, BYTES = "serving_default", "explain", "serve_bytes"
PREDICTED = -1  # in the place of a class id
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # how such files begin


class Endpoints:
    """Builder of the endpoints of a model, tf.functions of declared inputs, which return dicts of named tensors.

    Args:
        model: functional Keras model with one input ``(b, ...)`` and one output ``(b, M)``.
    """

    def __init__(self, model):
        self.model = model
        self.shape = (None, *model.inputs[0].shape[1:])
        self.classes = model.outputs[0].shape[-1]
        # Traced once each, for all endpoints that call them.
        self._scores = self._traced(self._scores_and_class)
        self._every = self._traced(_all_taps(model)) if names(model) else None

    def signatures(self, wanted, explainers, input_range):
        """Endpoints by name.

        Args:
            wanted: list of str, taps.
            explainers: dict from names to explainers or callables ``(images, ids (b,)) → maps`` of tensors.
            input_range: pair of floats, values of black and white for ``serve_bytes``.
        """
        found = {DEFAULT: self._of_images(self._scores), **{name: self._tap(name) for name in wanted}}
        built_in = self._built_in()
        if built_in is not None:
            found[EXPLAIN] = self._of_images(built_in)
        found.update((name, self._explainer(name, explainer)) for name, explainer in explainers.items())
        if len(self.shape) == 4 and None not in self.shape[1:] and self.shape[-1] in (1, 3):
            found[BYTES] = self._of_bytes(*input_range)
        return found

    def tapped(self, wanted):
        """Endpoint of several taps in one pass; the gradient of one of them would pass all."""

        def several(images):
            found = self._every(images)
            return {name: found[name] for name in wanted}

        return self._of_images(several)

    def _traced(self, function):
        return tf.function(function, [tf.TensorSpec(self.shape, "float32")], autograph=False)

    def _of_images(self, function):
        def endpoint(images):
            return function(_checked(images, self.shape))

        return tf.function(endpoint, [tf.TensorSpec(self.shape, "float32", "images")], autograph=False)

    def _scores_and_class(self, images):
        outputs = self.model(images, training=False)
        return {"outputs": outputs, "class": tf.argmax(outputs, axis=-1)}

    def _tap(self, name):
        if self.model.taps[name] is self.model.outputs[0]:
            return self._of_images(lambda images: {"outputs": self._scores(images)["outputs"]})
        function = tap(self.model, name)  # on its own, so that neither it nor its gradient computes the others
        return self._of_images(lambda images: {"outputs": function(images, training=False)})

    def _built_in(self):
        """The explanation that the model computes anyway, a function of images; None for a model without one."""
        # Not the explainers of ``explain``, which are for arrays, in batches, and of one class at a time.
        taps = names(self.model)
        if {"attention", "lengths"} <= set(taps):
            return self._graph_attention
        if {"attention_0", "features", "logits"} <= set(taps):
            return self._rollout
        return None

    def _graph_attention(self, images):
        taps = self._every(images)
        lengths, maps = taps["lengths"], tf.reduce_mean(taps["attention"], axis=3)
        return {"outputs": lengths, "class": tf.argmax(lengths, axis=-1), "maps": maps}

    def _rollout(self, images):
        taps = self._every(images)
        height, width = taps["features"].shape[1:3]
        blocks = sorted(name for name in taps if re.fullmatch(r"attention_\d+", name))
        blocks = [taps[f"attention_{index}"] for index in range(len(blocks))]
        fused = [tf.reduce_mean(tf.cast(scores, "float32"), axis=1) for scores in blocks]
        patches = attention_rollout(fused, blocks[0].shape[-1] - height * width)
        maps = tf.image.resize(tf.reshape(patches, (-1, height, width, 1)), images.shape[1:3])[..., 0]
        return {"outputs": taps["logits"], "class": tf.argmax(taps["logits"], axis=-1), "maps": maps}

    def _explainer(self, name, explainer):
        function = getattr(explainer, "on_tensors", explainer)
        specs = [tf.TensorSpec(self.shape, "float32", "images"), tf.TensorSpec((None,), "int64", "target")]

        def endpoint(images, target):
            images = _checked(images, self.shape)
            found = self._scores(images)
            target = _checked_target(target, tf.shape(images)[0], self.classes)
            ids = tf.cast(tf.where(target == PREDICTED, found["class"], target), "int32")
            try:
                maps = tf.convert_to_tensor(function(images, ids))
            except (NotImplementedError, TypeError, AttributeError) as error:  # of symbolic tensors
                raise ValueError(
                    f"Explainer {name!r} cannot run inside an endpoint: expected one of keras_capsvit.explain with "
                    "on_tensors (LRP, CLRP, Saliency, GraphAttention, AttentionRollout, ...), or a callable "
                    f"(images, ids) → maps of tensors; received {type(explainer).__name__}: {error}"
                ) from error
            return {**found, "maps": maps}

        return tf.function(endpoint, specs, autograph=False)

    def _of_bytes(self, low, high):
        height, width, channels = self.shape[1:]

        def decode(one):
            with tf.name_scope("encoded"):  # which the decoder's error tells
                pixels = tf.io.decode_image(one, channels=channels, expand_animations=False)
            pixels.set_shape((None, None, channels))
            pixels = tf.image.resize(tf.cast(pixels, "float32"), (height, width), antialias=True)
            return low + (high - low) * tf.clip_by_value(pixels / 255, 0, 1)

        def endpoint(encoded):
            pixels = tf.TensorSpec(self.shape[1:], "float32")
            return self._scores(tf.map_fn(decode, _checked_bytes(encoded), fn_output_signature=pixels))

        return tf.function(endpoint, [tf.TensorSpec((None,), tf.string, "encoded")], autograph=False)


def _all_taps(model):
    wanted = names(model)
    forward = tap(model, wanted)
    return lambda images: dict(zip(wanted, forward(images, training=False), strict=True))


def _checked(images, shape):
    """``images``, once they are known to be of a shape, at least one, and finite."""
    # The signature alone does not keep other shapes out where a graph is fed directly, as TF Serving and C do.
    seen = tf.ensure_shape(images, shape, name="images")
    checks = [
        _require(tf.shape(seen)[0] > 0, "images", "at least one image; received an empty batch"),
        _require(tf.reduce_all(tf.math.is_finite(seen)), "images", "finite pixels; received NaN or infinite ones"),
    ]
    # Only the order of execution depends on the checks: gradients and relevance pass the identity alone.
    with tf.control_dependencies(checks):
        return tf.identity(images)


def _checked_target(target, batch, classes):
    seen = tf.ensure_shape(target, (None,), name="target")
    inside = tf.reduce_all((seen >= PREDICTED) & (seen < classes))
    checks = [
        _require(tf.shape(seen)[0] == batch, "target", "one class id per image; received another number of them"),
        _require(inside, "target", f"class ids from 0 to {classes - 1}, or -1 for the predicted; received others"),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(target)


def _checked_bytes(encoded):
    seen = tf.ensure_shape(encoded, (None,), name="encoded")
    begins = [tf.strings.substr(seen, 0, len(first)) == first for first in (JPEG, PNG)]
    checks = [
        _require(tf.shape(seen)[0] > 0, "encoded", "at least one image; received an empty batch"),
        _require(tf.reduce_all(begins[0] | begins[1]), "encoded", "bytes of JPEG or PNG files; received others"),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(encoded)


def _require(condition, name, expected):
    return tf.debugging.Assert(condition, [f"{name}: expected {expected}."])
