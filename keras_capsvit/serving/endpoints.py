"""The functions that a SavedModel answers with, and what each of them refuses."""

import contextlib
import re

import keras
import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.ops import attention_rollout
from keras_capsvit.serving import encoded
from keras_capsvit.taps import centres, names, tap

DEFAULT, EXPLAIN, BYTES = "serving_default", "explain", "serve_bytes"
OWN = (DEFAULT, EXPLAIN, BYTES)  # names that no tap can have, and an explainer only that of an explanation


class Endpoints:
    """Builder of the endpoints of a model, tf.functions of declared inputs, which return dicts of named tensors.

    Args:
        subject: taps.Scores of a live Keras model.
        shape: tuple, of one image; None where any size is taken.
        output: str or int, which of several outputs the scores are.

    Attributes:
        images: tf.TensorSpec of the images: of float32, or of the integers that the model takes.
        classes: int, number of classes.
    """

    def __init__(self, subject, shape, output=None):
        self.subject, self.model, self._output = subject, subject.model, output
        dtype = subject.dtype if keras.backend.is_int_dtype(subject.dtype) else "float32"
        self.images = tf.TensorSpec((None, *shape), dtype, "images")
        # Traced once, for all endpoints that call it.
        self._answer = self._traced(self._outputs_and_class)
        traced = self._answer.get_concrete_function()
        self.classes = _number_of_classes(traced.structured_outputs["outputs"].shape, subject.name)
        self._own = {id(handle) for handle in _resources(traced)} | {id(v.value.handle) for v in self.model.variables}
        self._passes = {}

    @property
    def takes_bytes(self):
        """Whether there is an endpoint of encoded images."""
        shape = self.images.shape
        return shape.rank == 4 and None not in shape[1:] and shape[-1] in (1, 3)

    def signatures(self, taps, explainers, input_range, max_pixels):
        """Endpoints by name.

        Args:
            taps: list of str.
            explainers: dict from names to explainers or callables ``(images, ids (b,)) → maps`` of tensors.
            input_range: pair of floats, values of black and white for ``serve_bytes``; None for none.
            max_pixels: int, of the largest image that ``serve_bytes`` decodes.
        """
        endpoints = {DEFAULT: self._of_images(self._answer), **{name: self._tap(name) for name in taps}}
        built_in = self._built_in()
        if built_in is not None:
            endpoints[EXPLAIN] = self._of_images(built_in)
        endpoints.update((name, self._explainer(name, explainer)) for name, explainer in explainers.items())
        if self.takes_bytes and input_range is not None:
            endpoints[BYTES] = self._of_bytes(input_range, max_pixels)
        return endpoints

    def tapped(self, taps):
        """Endpoint of several taps in one pass; the gradient of one of them would pass all."""
        return self._of_images(self._pass(taps))

    def centres(self, taps):
        """Function from nothing to a dict of where the nodes of taps look, see ``taps.centres``."""
        images = self.subject.noise([size or 64 for size in self.images.shape[1:]])[:1]
        places = {name: [tf.constant(side) for side in centres(self.model, name, images)] for name in taps}
        return tf.function(lambda: {name: list(map(tf.identity, sides)) for name, sides in places.items()}, [])

    def _pass(self, taps):
        """Function from images to several taps by name, traced once for all endpoints that call it."""
        taps = tuple(taps)
        if taps not in self._passes:
            forward = _forward(self._tap_of(list(taps)))
            self._passes[taps] = self._traced(
                lambda images: dict(zip(taps, map(_widened, forward(images)), strict=True))
            )
        return self._passes[taps]

    def _tap_of(self, name):
        return tap(self.model, name, blank(self.images.shape[1:]), self._output)

    def _traced(self, function):
        return tf.function(function, [tf.TensorSpec(self.images.shape, self.images.dtype)], autograph=False)

    def _of_images(self, function):
        return tf.function(lambda images: function(_checked(images, self.images)), [self.images], autograph=False)

    def _outputs_and_class(self, images):
        output, scores = self.subject.answer(images)
        return {"outputs": _widened(output), "class": tf.argmax(scores, axis=-1)}

    def _tap(self, name):
        declared = getattr(self.model, "taps", {})
        if name in declared and declared[name] is self.model.outputs[0]:
            return self._of_images(lambda images: {"outputs": self._answer(images)["outputs"]})
        forward = _forward(self._tap_of(name))  # on its own, so that neither it nor its gradient computes the others
        return self._of_images(lambda images: {"outputs": _widened(forward(images))})

    def _built_in(self):
        """The explanation that the model computes anyway, a function of images; None for a model without one."""
        # Not the explainers of ``explain``, which are for arrays, in batches, and of one class at a time.
        known = set(names(self.model))
        if {"contributions", "lengths"} <= known and self.subject.kind == "lengths":
            return self._contributions
        if {"attention_0", "features"} <= known:
            return self._rollout
        return None

    def _contributions(self, images):
        taps = self._pass(names(self.model))(images)
        lengths = taps["lengths"]
        return {"outputs": lengths, "class": tf.argmax(lengths, axis=-1), "maps": taps["contributions"]}

    def _rollout(self, images):
        taps = self._pass(names(self.model))(images)
        height, width = taps["features"].shape[1:3]
        blocks = sorted(name for name in taps if re.fullmatch(r"attention_\d+", name))
        blocks = [taps[f"attention_{index}"] for index in range(len(blocks))]
        fused = [tf.reduce_mean(scores, axis=1) for scores in blocks]
        patches = attention_rollout(fused, blocks[0].shape[-1] - height * width)
        maps = tf.image.resize(tf.reshape(patches, (-1, height, width, 1)), self.images.shape[1:3])[..., 0]
        if getattr(self.model, "taps", None):
            answer = {"outputs": taps["logits"], "class": tf.argmax(taps["logits"], axis=-1)}
        else:  # the scores of a model around the one that has the attention are its own
            answer = self._answer(images)
        return {**answer, "maps": maps}

    def _explainer(self, name, explainer):
        function = getattr(explainer, "on_tensors", explainer)
        specs = [self.images, tf.TensorSpec((None,), "int64", "target")]

        def endpoint(images, target):
            images = _checked(images, self.images)
            answer = self._answer(images)
            target = _checked_target(target, tf.shape(images)[0], self.classes)
            ids = tf.cast(tf.where(target == checks.PREDICTED, answer["class"], target), "int32")
            try:
                maps = tf.convert_to_tensor(function(tf.cast(images, "float32"), ids))
            except (NotImplementedError, TypeError, AttributeError) as error:  # of symbolic tensors
                raise ValueError(
                    f"Explainer {name!r} cannot run inside an endpoint: expected one of keras_capsvit.explain with "
                    "on_tensors (LRP, CLRP, Saliency, GraphContribution, SmoothGrad of these, ...), or a callable "
                    f"(images, ids) → maps of tensors; received {type(explainer).__name__}: {error}"
                ) from error
            self._check_maps(name, maps.shape, None)
            return {**answer, "maps": maps}

        endpoint = tf.function(endpoint, specs, autograph=False)
        self._check_owner(name, explainer, endpoint.get_concrete_function())
        images = self.subject.noise([size or 64 for size in self.images.shape[1:]])[:2]
        with contextlib.suppress(tf.errors.InvalidArgumentError):  # what it refuses as an endpoint
            maps = endpoint(tf.cast(images, self.images.dtype), tf.zeros(2, "int64"))["maps"]
            self._check_maps(name, maps.shape, 2)  # which tells whether it keeps the batch
        return endpoint

    def _check_maps(self, name, shape, batch):
        sizes = tuple(self.images.shape[1:])
        allowed = [sizes[:-1], sizes] if len(sizes) == 3 else [sizes]
        fits = shape.rank is not None and any(
            len(shape) == 1 + len(each)
            and shape[0] == batch
            and all(size in (None, own) or own is None for size, own in zip(shape[1:], each, strict=True))
            for each in allowed
        )
        if not fits:
            expected = " or ".join(str((batch, *each)) for each in allowed)
            raise ValueError(
                f"Expected explainer {name!r} to return a map for each of b={batch} images, {expected}; received "
                f"{tuple(shape) if shape.rank is not None else 'an unknown shape'}."
            )

    def _check_owner(self, name, explainer, traced):
        """Refuse explainers that read other variables than the model: the SavedModel holds those of one model."""
        variables = getattr(explainer, "variables", ())
        read = [
            *_resources(traced),
            *(variable.value.handle if _of_keras(variable) else variable.handle for variable in variables),
        ]
        if any(id(handle) not in self._own for handle in read):
            raise ValueError(
                f"Expected explainer {name!r} to be made of {self.subject.name}, the model that is exported; it reads "
                f"variables of another. Make it anew: explain.{type(explainer).__name__}(model, ...)."
            )

    def _of_bytes(self, input_range, max_pixels):
        def endpoint(files):
            return self._answer(encoded.pixels(files, self.images, input_range, max_pixels))

        return tf.function(endpoint, [tf.TensorSpec((None,), tf.string, "encoded")], autograph=False)


def blank(shape):
    """One image of zeros, for a look at a model, of some size where the shape leaves it open."""
    return tf.zeros((1, *(size or 64 for size in shape)))


def _forward(function):
    """A model or callable as a function of images alone."""
    arguments = {"training": False} if isinstance(function, keras.Layer) else {}
    return lambda images: function(images, **arguments)


def _widened(tensor):
    """A tensor, of float32 if it is of half precision, which clients hardly know."""
    return tf.cast(tensor, "float32") if tensor.dtype in (tf.float16, tf.bfloat16) else tensor


def _number_of_classes(shape, name):
    if shape[-1] is None:
        raise ValueError(f"Expected a known number of classes; {name} returns {tuple(shape)}.")
    return max(2, shape[-1])  # a single score decides between two


def _of_keras(variable):
    return isinstance(variable, keras.Variable)


def _resources(traced):
    """Handles of the variables, and other resources, that a concrete function reads."""
    return [tensor for tensor in traced.captured_inputs if tensor.dtype == tf.resource]


def _checked(images, spec):
    """``images``, once they are known to be of a shape, at least one, and finite."""
    # The signature alone does not keep other shapes out where a graph is fed directly, as TF Serving and C do.
    seen = tf.ensure_shape(images, spec.shape, name="images")
    assertions = [_require(tf.shape(seen)[0] > 0, "images", "at least one image; received an empty batch")]
    if spec.dtype.is_floating:
        finite = tf.reduce_all(tf.math.is_finite(seen))
        assertions.append(_require(finite, "images", "finite pixels; received NaN or infinite ones"))
    # Only the order of execution depends on the checks: gradients and relevance pass the identity alone.
    with tf.control_dependencies(assertions):
        return tf.identity(images)


def _checked_target(target, batch, classes):
    seen = tf.ensure_shape(target, (None,), name="target")
    inside = tf.reduce_all((seen >= checks.PREDICTED) & (seen < classes))
    assertions = [
        _require(tf.shape(seen)[0] == batch, "target", "one class id per image; received another number of them"),
        _require(inside, "target", f"class ids from 0 to {classes - 1}, or -1 for the predicted; received others"),
    ]
    with tf.control_dependencies(assertions):
        return tf.identity(target)


def _require(condition, name, expected):
    return tf.debugging.Assert(condition, [f"{name}: expected {expected}."])
