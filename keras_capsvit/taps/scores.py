"""Class scores of any model before its softmax or sigmoid, and its intermediates along with them."""

import functools
import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.taps import declared
from keras_capsvit.taps.outputs import check_output
from keras_capsvit.taps.recording import eagerly
from keras_capsvit.taps.runners import first_called_with, runner_of

_SIZE = 64  # of images for a look, where any is taken
_NOISE = 8  # images that a model is asked what kind of scores it returns
_TINY = 1e-30  # probabilities below this count as this


class Scores:
    """Class scores of images, as a function ``x (b, H, W, C) → (b, M)``, float32, on either backend; see ``scores``.

    Attributes:
        model: what the scores are of.
        name: str.
        variables: list of keras.Variable, what the scores depend on besides the images.
        input_shape: tuple ``(H, W, C)``, None where the model leaves it open; None for a callable that tells none, and
            for a subclassed model.
        dtype: str, of the images that the model takes.
    """

    def __init__(self, model, output=None):
        check_output(output)
        self.model = model
        self.name = getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__)
        self.variables = list(getattr(model, "variables", ()))
        self._declared = next((name for name in declared.SCORES if name in declared.own_names(model)), None)
        if self._declared and output is not None:
            raise ValueError(f"{self.name} has one output, its {self._declared}; received output={output!r}.")
        self._runner = runner_of(model, output, self.name)
        self.input_shape, self.dtype = self._runner.input_shape, self._runner.dtype
        self._probabilities = None  # whether they are that, where no activation can be undone
        self._continues = None  # whether a model of integers can be run on floats
        self._opaque = False
        self._single = False  # whether the model has one output, as its last pass told
        self.seen, self.influences = {}, {}  # what ran, and what it means, by shape of the images; see ``seen``

    @property
    def sample_shape(self):
        """Shape ``(H, W, C)`` of images for a look: ``input_shape``, or that of the first ones of a subclass."""
        return self.input_shape or first_called_with(self.model)

    @functools.cached_property
    def kind(self):
        """``"lengths"`` of class capsules in [0, 1), or ``"logits"``."""
        if self._declared:
            return self._declared
        shape = self.sample_shape
        if declared.carrier(self.model) is None or shape is None or None in shape:
            return "logits"
        return "lengths" if eagerly(lambda: self._runner.returns_lengths(self.noise(shape))) else "logits"

    def __call__(self, x):
        """Scores ``(b, M)`` of images ``(b, H, W, C)``, a tensor or an array."""
        if self._declared:
            return ops.cast(self._tap(x), "float32")
        if autodiff.executes_eagerly() and not self._opaque:
            return self._compiled(ops.convert_to_tensor(x))
        return self.recorded(ops.convert_to_tensor(x))[0]

    def probabilities(self, x):
        """Probabilities ``(b, M)`` of images ``(b, H, W, C)``: the softmax of the scores; of a single output ``z``,
        whose scores are ``(-z, z)``, its sigmoid."""
        values = self(x)
        return ops.softmax(values / 2 if self._single else values)

    def recorded(self, x, layers=(), *, attention=False, offsets=None):
        """Scores, and what layers and attentions return on the way to them.

        Args:
            x: tensor ``(b, H, W, C)``.
            layers: names out of ``taps.layers(model)``.
            attention: bool, whether attentions are wanted.
            offsets: dict from names of layers, or positions of attentions, to tensors that are added to what they
                return, such as zeros: the gradient there is that with respect to the intermediate.

        Returns:
            ``(scores (b, M), list of the layers' tensors, list of attentions (b, heads, t, t))``.

        Raises:
            ValueError: for layers that the model does not run, a model without class scores, and one of integers that
                cannot be run on floats.
        """
        ran = self._forward(x, layers, attention, offsets)
        return self._as_scores(ran, x), ran.values, ran.attentions

    def intermediates(self, x, layers=(), *, attention=False):
        """What layers and attentions return, also of a model without class scores; see ``recorded``."""
        ran = self._forward(x, layers, attention)
        return ran.values, ran.attentions

    def answer(self, x):
        """What a live model returns, and its class scores, in one pass.

        Args:
            x: tensor ``(b, H, W, C)``.

        Returns:
            ``(output (b, N), scores (b, M))``: the output with its softmax or sigmoid, and the scores before it.
        """
        if self._declared:
            output = self.model(x, training=False)
            return output, ops.cast(output, "float32")
        ran = self._forward(x)
        return ran.returned, self._as_scores(ran, x)

    def _forward(self, x, layers=(), attention=False, offsets=None):
        return self._runner.forward(x, layers, attention, offsets, self._continues_on_floats(x))

    def look(self, shape):
        """What runs in the model on images of a shape ``(H, W, C)``: see ``runners.Seen``."""
        return eagerly(lambda: self._runner.look(self.noise(shape)[:1]))

    @functools.cached_property
    def _tap(self):
        function = declared.tap(self.model, self._declared)
        arguments = {"training": False} if isinstance(function, keras.Layer) else {}
        return lambda x: function(x, **arguments)

    @functools.cached_property
    def _compiled(self):
        function = autodiff.compiled(lambda x: self.recorded(x)[0], self.variables)

        def call(x):
            try:
                return function(x)
            except (TypeError, NotImplementedError, AttributeError, ValueError):
                # A callable that leaves TensorFlow cannot be traced; it can still be asked.
                if isinstance(self.model, keras.Layer):
                    raise
                values = self.recorded(x)[0]
                self._opaque = True
                return values

        return call

    def _as_scores(self, ran, x):
        output = ran.output
        if len(output.shape) != 2:
            raise ValueError(
                f"Expected a model with class scores of shape (batch, classes); {self.name} returns "
                f"{tuple(output.shape)}."
            )
        output = ops.cast(output, "float32")
        self._single = single = output.shape[-1] == 1
        if single and ran.activation == "softmax":
            raise ValueError(f"{self.name} ends in the softmax of one unit, which is 1 for every image; use a sigmoid.")
        if ran.activation is None and not ran.linear and self._are_probabilities(x):
            tail = ops.log(ops.maximum(1 - output, _TINY)) if single else 0.0
            output = ops.log(ops.maximum(output, _TINY)) - tail
        return ops.concatenate([-output, output], axis=-1) if single else output

    def _are_probabilities(self, x):
        if self._probabilities is None:
            # Where traces serve images of any size they leave it open.
            self._probabilities = eagerly(lambda: self._look(tuple(size or _SIZE for size in x.shape[1:])))
            if self._probabilities:
                warnings.warn(
                    f"{self.name} returns probabilities by a computation that cannot be undone, so their logarithm is "
                    "taken for the class scores. Return logits where gradients and attacks matter: those of "
                    "probabilities near 0 and 1 vanish.",
                    stacklevel=2,
                )
        return self._probabilities

    def _look(self, shape):
        values = np.concatenate(
            [ops.convert_to_numpy(self._runner.forward(images).output) for images in np.split(self.noise(shape), 2)]
        ).astype("float64")
        inside = np.all((values >= 0) & (values <= 1 + 1e-5))
        if values.shape[-1] == 1:
            return bool(inside and np.ptp(values) > 0)
        return bool(inside and np.allclose(values.sum(axis=-1), 1, atol=1e-3))

    def noise(self, shape):
        """Images for a look, an array, half of them with pixels in [0, 1] and half with pixels in [0, 255]."""
        if None in shape:
            raise ValueError(f"Expected images of a known size; {self.name} was called with {shape}.")
        noise = np.random.default_rng(0).uniform(size=(_NOISE, *shape))
        noise[_NOISE // 2 :] *= 255
        return noise.astype(self.dtype)

    def _continues_on_floats(self, x):
        """Whether the model takes integers, and ``x`` has to go round the cast to these; or an error."""
        if self._runner.integers is None or not keras.backend.is_float_dtype(x.dtype):
            return False
        if self._continues is None:
            self._continues = eagerly(lambda: self._same_on_floats(tuple(x.shape[1:])))
        if not self._continues:
            raise ValueError(
                f"{self.name} takes {self._runner.integers} images and does not compute the same from floats, so that "
                "no gradient reaches its pixels. Expected a model whose first step casts them to floats; pass the part "
                "of it that follows."
            )
        return True

    def _same_on_floats(self, shape):
        images = np.floor(250 * np.random.default_rng(0).uniform(size=(2, *shape))).astype(self.dtype)
        exact = ops.convert_to_numpy(self._runner.forward(images).output)
        try:
            floats, between = (
                ops.convert_to_numpy(self._runner.forward((images + more).astype("float32"), continued=True).output)
                for more in (0.0, 0.5)
            )
        except (TypeError, ValueError):
            return False
        # Between integers the scores change, unless the model rounds by itself.
        return bool(np.allclose(exact, floats, rtol=1e-4, atol=1e-5) and not np.array_equal(floats, between))


def scores(model, output=None):
    """Class scores of a model, before any softmax, sigmoid or log-softmax at its end.

    The end is looked for where the model runs: a layer's activation, a layer of its own, an op in a subclass's
    ``call``, in a nested model, in the graph of a SavedModel. One sigmoid output ``(b, 1)`` with the logit ``z`` is a
    model of two classes with the scores ``(-z, z)``, and so is a single output without a sigmoid. Of probabilities that
    are computed otherwise (a mean over models, say) the logarithm is taken, with a warning.

    Args:
        model: Keras model of any kind, what ``serving.load`` or ``tf.saved_model.load`` returned, or callable
            ``x (b, H, W, C) → scores (b, M)``; or Scores, which are returned as they are.
        output: str or int, of a model with several outputs.

    Returns:
        Scores, a callable ``x (b, H, W, C) → (b, M)``, float32: the tap ``lengths`` or ``logits`` of a model that
        declares it.

    Raises:
        ValueError: for several inputs or outputs, channels in front, and what is no model; when called, for what is no
            class scores.
    """
    return model if isinstance(model, Scores) and output is None else Scores(model, output)


def predictions(model, x):
    """Classes that a model predicts.

    Args:
        model: see ``scores``.
        x: images ``(b, H, W, C)``.

    Returns:
        int array ``(b,)``, the classes of the highest scores: of one sigmoid output 1 where it is above 1/2.

    Raises:
        ValueError: for images of another size, NaN or infinite ones, and such scores.
    """
    x, subject = checks.images(x, empty=False), scores(model)
    checks.of_size(x, subject.input_shape, subject.name)
    with checks.running(subject.name, x):
        values = checks.finite(checks.numbers(subject(ops.convert_to_tensor(x)), "scores"), f"scores of {subject.name}")
    if values.shape[:1] != x.shape[:1]:
        raise ValueError(f"Expected scores of {len(x)} images from {subject.name}; received {values.shape}.")
    return values.argmax(axis=-1)
