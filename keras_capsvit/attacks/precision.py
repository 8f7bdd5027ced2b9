"""Objectives whose gradients are computed in bfloat16, which some processors do faster, and judged in float32."""

import copy
import functools
import statistics
import time

import keras
import numpy as np

from keras_capsvit import autodiff, checks, taps
from keras_capsvit.attacks.base_objective import Objective
from keras_capsvit.attacks.objectives import combined, living, natural

PRECISIONS = ("float32", "bfloat16", "auto")
_ROUNDS, _IMAGES = 5, 32  # that "auto" measures


def in_precision(objective, precision="auto", *, images=None):
    """An objective that attacks work on in another precision.

    Scores, losses and gradients on the way of an attack are those of the model with every layer that computes in
    float32 computing in bfloat16; of a served model, with every convolution and matrix product doing so. Variables, and
    the model itself, stay as they are. What an attack returns is judged in the model's own precision: by ``AutoAttack``
    after each of its attacks, and by ``evaluate`` always.

    Args:
        objective: Objective, or a model, live or served, whose ``natural`` one is taken.
        precision: ``"bfloat16"``; ``"auto"``, bfloat16 if a gradient of 32 images takes less time so on this machine,
            which is measured at once; or ``"float32"``, the objective as it is.
        images: array ``(b, H, W, C)``, what ``"auto"`` measures with; None for noise of the model's size.

    Returns:
        Objective. Its ``precision`` says which it is, ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: for another precision; for what is no Keras model and no served one (save for ``"float32"``); for
            images of another size; and where ``"auto"`` knows no size of images.

    Example::

        fast = attacks.in_precision(model, "bfloat16")
        images = attacks.PGD(8 / 255)(fast, x, y)
        report = evaluate.auto_attack(model, attack, test, objective=attacks.in_precision)  # whichever is faster
    """
    checks.choice("precision", precision, PRECISIONS)
    objective = natural(objective)
    if images is not None:
        images = checks.images(images, empty=False)
        checks.of_size(images, objective.input_shape, getattr(objective.model, "name", "the model"))
    if precision == "float32":
        return objective
    lowered = living(("bfloat16", id(objective)), lambda: _kind_of(objective, precision)(objective))
    if precision == "bfloat16":
        return lowered
    seconds = _seconds([objective, lowered], _noise(objective) if images is None else images)
    return lowered if seconds[1] < seconds[0] else objective


class _Lowered(Objective):
    """An objective in bfloat16."""

    precision = "bfloat16"

    def __init__(self, objective):
        super().__init__(objective.scores, objective.model, normalized=objective.normalized)
        self._full = objective

    @property
    def subject(self):
        return self._full.subject

    @property
    def variables(self):
        return self._full.variables

    @property
    def input_shape(self):
        return self._full.input_shape

    def parts(self):
        owners, which, remake = self._full.parts()
        return owners, (self.precision, which), functools.partial(_lowered_of, remake)

    def scored(self, x):
        return self._full.scored(x)

    def __call__(self, x):
        with taps.computing_in_bfloat16(self.model):
            return keras.ops.cast(self._full(x), "float32")

    def loss_and_scores(self, x, y):
        with taps.computing_in_bfloat16(self.model):
            return self._full.loss_and_scores(x, y)

    def loss_and_attention(self, x, y):
        with taps.computing_in_bfloat16(self.model):
            return self._full.loss_and_attention(x, y)


class _LoweredGraph(_Lowered):
    """An objective of a served model, the graph of which is computed in bfloat16."""

    def __init__(self, objective):
        super().__init__(objective)
        self._graph = copy.copy(objective)  # whose loss is of these scores, whatever its kind
        self._graph.scores = lambda x: self._run(x)[0]

    @functools.cached_property
    def _run(self):
        return taps.in_bfloat16(self._full.scores, taps.served_function(self.model)[1].shape[1:])

    def __call__(self, x):
        return self._graph(x)

    def loss_and_scores(self, x, y):
        return self._graph.loss_and_scores(x, y)

    def loss_and_attention(self, x, y):
        scores, attention = self._run(x, attention=True)
        return self._graph.cross_entropy(scores, y), attention


def _combined_in_bfloat16(objective):
    return combined(*(in_precision(each, "bfloat16") for each in objective.objectives))


def _kind_of(objective, precision):
    """What makes an objective in bfloat16 of one."""
    if isinstance(objective.model, keras.Layer):
        return _Lowered
    if taps.served_function(objective.model) is None:
        raise ValueError(
            f"precision={precision!r} needs a Keras model, whose layers can compute in another precision, or a served "
            f"one; received {type(objective.model).__name__}. Pass the model that it calls, or attack in 'float32'."
        )
    return _combined_in_bfloat16 if hasattr(objective, "objectives") else _LoweredGraph


def _lowered_of(remake, *owners):
    return in_precision(remake(*owners), "bfloat16")


def _noise(objective):
    """Images ``(b, H, W, C)`` of the size and the range of pixels that an objective's model takes."""
    shape = objective.input_shape
    if shape is None or None in shape:
        raise ValueError(
            f"precision='auto' measures with images of the model's size, which {objective.model.name} does not tell; "
            "pass images=."
        )
    low, high = taps.input_range(objective.model) or (0, 1)
    return np.random.default_rng(0).uniform(low, high, size=(_IMAGES, *shape)).astype("float32")


def _seconds(objectives, x):
    """Median seconds of a gradient of each, in turns."""
    y = np.zeros(len(x), "int64")
    gradients = [objective.compiled("gradient", _gradient) for objective in objectives]
    times = [[] for _ in gradients]
    for turn in range(1 + _ROUNDS):
        for gradient, seconds in zip(gradients, times, strict=True):
            started = time.perf_counter()
            keras.ops.convert_to_numpy(gradient(x, y)[1])
            if turn:
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]


def _gradient(objective):
    return autodiff.gradient(objective.loss)
