"""What models with capsules share: scores as output, taps, and a decoder trained by the same ``fit(x, y)``."""

import contextlib
import itertools
import math

import keras
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.layers import CapsuleLength, CapsuleMask
from keras_capsvit.models.base import ConfiguredModel
from keras_capsvit.models.checks import check_sizes, check_weights
from keras_capsvit.ops import as_multi_hot, check_labels
from keras_capsvit.taps import tap

RECONSTRUCTIONS = ("conditional", "unconditional")


def build_decoder(capsules_shape, image_shape, units=(512, 1024)):
    """Decoder of Sabour et al. (2017): dense ReLU layers, then a sigmoid per pixel.

    Args:
        capsules_shape: pair of ints ``(j, e)``.
        image_shape: ints ``(H, W, C)``.
        units: ints, widths of the hidden layers.

    Returns:
        keras.Model from class capsules ``(b, j, e)`` to images ``(b, H, W, C)`` in [0, 1].

    Raises:
        ValueError: for shapes and widths that are none, and weights that do not fit into this machine's memory.
    """
    units = check_sizes("reconstruction_units", units)
    capsules_shape = check_sizes("capsules_shape", capsules_shape, 2)
    image_shape = check_sizes("image_shape", image_shape, 3)
    for inputs, outputs in itertools.pairwise((math.prod(capsules_shape), *units, math.prod(image_shape))):
        check_weights("The decoder", (inputs, outputs))
    hidden = [keras.layers.Dense(width, activation="relu") for width in units]
    return keras.Sequential(
        [
            keras.layers.InputLayer(shape=capsules_shape),
            keras.layers.Flatten(),
            *hidden,
            keras.layers.Dense(math.prod(image_shape), activation="sigmoid", dtype="float32"),
            keras.layers.Reshape(image_shape, dtype="float32"),
        ],
        name="decoder",
    )


class CapsuleModel(ConfiguredModel):
    """Functional model from images ``(b, H, W, C)`` to scores ``(b, M)``: the lengths of its class capsules, or logits.

    Args:
        inputs: KerasTensor ``(b, H, W, C)``.
        capsules: KerasTensor ``(b, M, e)``, the class capsules, or whatever the decoder decodes.
        taps: dict from names to KerasTensors, the intermediates besides ``capsules`` and the scores.
        logits: KerasTensor ``(b, M)``; None for a model whose scores are the capsules' lengths. The scores' tap is
            called ``logits`` or ``lengths``.
        reconstruction: None; ``"conditional"``, a decoder that sees only the capsule of the true class (in training)
            or of the highest score (else); or ``"unconditional"``, a decoder that sees all class capsules.
        reconstruction_weight: float >= 0, weight of the squared error, summed over an image's pixels, beside the loss.
            Settable at any time; a model that is compiled already has to be compiled again.
        reconstruction_units: ints, hidden widths of the decoder.
        name: str; None for the name of the class in lower case.
        trainable: bool.

    ``fit``, ``evaluate`` and ``predict`` are Keras's; labels are integers or multi-hot. The reconstruction error
    enters the loss in ``fit`` and ``evaluate`` and is reported as ``reconstruction_error``.

    For images made of several (``multi_mnist``) labels are a dict: ``classes (b, k)``, and ``parts (b, k, H, W, C)``,
    the image of each. Loss and metrics get the classes multi-hot; a conditional decoder makes each part from its class
    (thesis 5.3.2), an unconditional one the whole image.
    """

    def __init__(
        self,
        inputs,
        capsules,
        taps,
        logits=None,
        *,
        reconstruction=None,
        reconstruction_weight=0.0005,
        reconstruction_units=(512, 1024),
        **kwargs,
    ):
        if reconstruction is not None:
            checks.choice("reconstruction", reconstruction, RECONSTRUCTIONS)
        reconstruction_units = check_sizes("reconstruction_units", reconstruction_units)
        kind = "lengths" if logits is None else "logits"
        scores = CapsuleLength(name="lengths")(capsules) if logits is None else logits
        super().__init__(inputs, scores, **kwargs)
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.taps = {**taps, "capsules": capsules, kind: scores}
        self._returns_capsules = False
        if reconstruction is not None:
            self.decoder = build_decoder(capsules.shape[1:], inputs.shape[1:], reconstruction_units)
            self._mask = CapsuleMask(name="mask")
            self._reconstruction_error = keras.metrics.Mean(name="reconstruction_error")
            self.adopt(self.decoder)
            self._scores_and_capsules = keras.Function(inputs, {"scores": scores, "capsules": capsules})
            self.taps["reconstruction"] = self._decode(capsules, ops.argmax(scores, axis=-1))

    @property
    def reconstruction_weight(self):
        """Float >= 0, weight of the squared error beside the loss."""
        return self._reconstruction_weight

    @reconstruction_weight.setter
    def reconstruction_weight(self, value):
        self._reconstruction_weight = checks.number("reconstruction_weight", value, 0)

    def get_config(self):
        return {**super().get_config(), "reconstruction_weight": self.reconstruction_weight}

    def reconstruct(self, x, labels=None):
        """Decode images from their class capsules.

        Args:
            x: images ``(b, H, W, C)``.
            labels: class ids ``(b,)`` or multi-hot ``(b, M)`` that choose the capsule; None for the longest one.
                An unconditional decoder takes no labels.

        Returns:
            Tensor ``(b, H, W, C)`` in [0, 1].

        Raises:
            ValueError: if the model was built without a decoder, if labels are out of range, or if an unconditional
                decoder is given labels.
        """
        if self.reconstruction is None:
            raise ValueError(
                "This model has no decoder; build it with reconstruction='conditional' or 'unconditional'."
            )
        if labels is not None and self.reconstruction == "unconditional":
            raise ValueError("An unconditional decoder sees all capsules and takes no labels; pass labels=None.")
        if labels is None:
            return tap(self, "reconstruction")(x)
        return self._decode(tap(self, "capsules")(x), labels)

    def _decode(self, capsules, labels):
        return self.decoder(self._seen(capsules, labels))

    def _seen(self, capsules, labels):
        """What the decoder sees of class capsules."""
        return self._mask(capsules, labels) if self.reconstruction == "conditional" else capsules

    def _error(self, capsules, labels, images):
        """Squared error of decoded images, summed over pixels, ``(b,)``."""
        seen = self._seen(capsules, labels)
        decoded = self.decoder(seen)
        error = ops.sum(ops.square(decoded - ops.cast(images, decoded.dtype)), axis=(1, 2, 3))
        # On CPUs the decoder's ReLUs, fused with what is before them, make 0 of NaN.
        return ops.where(ops.any(ops.isnan(seen), axis=(1, 2)), float("nan"), error)

    def _check_labels(self, labels):
        several = isinstance(labels, dict)
        labels = labels["classes"] if several else labels
        if labels is not None:
            labels = labels if ops.is_tensor(labels) else checks.numbers(labels, "labels")
            check_labels(labels.reshape(-1) if several else labels, self.output_shape[-1])

    # Keras's own steps, with the capsules kept for the decoder. Everybody else, a plain call as well as the step of an
    # outer model that contains this one, gets lengths.

    def train_step(self, *args):
        with self._keep_capsules():
            return super().train_step(*args)

    def test_step(self, *args):
        with self._keep_capsules():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _keep_capsules(self):
        self._returns_capsules = self.reconstruction is not None
        try:
            yield
        finally:
            self._returns_capsules = False

    def call(self, inputs, training=None, mask=None):
        if self._returns_capsules:
            return self._scores_and_capsules(inputs)
        return super().call(inputs, training=training, mask=mask)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        labels, scores = self._labels(y), _scores(y_pred)
        loss = super().compute_loss(x=x, y=labels, y_pred=scores, sample_weight=sample_weight, training=training)
        if not isinstance(y_pred, dict):
            return loss
        if self.reconstruction == "conditional" and isinstance(y, dict):
            error = 0.0
            for k in range(y["classes"].shape[1]):
                error = error + self._error(y_pred["capsules"], y["classes"][:, k], y["parts"][:, k])
        else:
            error = self._error(y_pred["capsules"], labels, x)
        if sample_weight is not None:
            error = error * ops.cast(ops.reshape(sample_weight, (-1,)), error.dtype)
        error = ops.mean(error)
        self._reconstruction_error.update_state(error)
        # Keras has done so with the other loss: replicas add up what each has of its part of the batch.
        return loss + self.reconstruction_weight * ops.cast(error, loss.dtype) / autodiff.replicas()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, self._labels(y), _scores(y_pred), sample_weight)

    def _labels(self, y):
        if not isinstance(y, dict):
            return y
        num_classes, k = self.output_shape[-1], y["classes"].shape[1]
        rows = ops.reshape(as_multi_hot(ops.reshape(y["classes"], (-1,)), num_classes), (-1, k, num_classes))
        return 1 - ops.prod(1 - rows, axis=1)  # their maximum, and NaN where one is

    # Labels in arrays are checked before anything runs; in streams, what is no label makes the loss NaN.

    def fit(self, x=None, y=None, *args, **kwargs):
        self._check_labels(y)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        self._check_labels(y)
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check_labels(y)
        return super().train_on_batch(x, y, *args, **kwargs)


def _scores(y_pred):
    return y_pred["scores"] if isinstance(y_pred, dict) else y_pred
