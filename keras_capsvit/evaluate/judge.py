"""Class scores and predictions of what is measured."""

import functools

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks, taps

MEASURES = ("probability", "score", "accuracy")


class Judge:
    """Class scores of a model before any softmax or sigmoid (see ``taps.scores``), so twins are judged alike.

    Args:
        model: model, live or served, which runs compiled; or callable ``x (b, H, W, C) → scores (b, M)``, as it is.

    Attributes:
        variables: list of keras.Variable, what the scores depend on besides images; empty where it is not known.

    Call: images ``(b, H, W, C)`` to finite scores, a float32 NumPy array ``(b, M)``.

    Raises:
        ValueError: for scores of another shape, NaN or infinite ones, and such variables.
    """

    def __init__(self, model):
        if isinstance(model, keras.Model):
            checks.finite_variables(model.variables, model.name)
        self.variables = list(getattr(model, "variables", ()))
        self._model, self._subject = model, taps.scores(model)

    @functools.cached_property
    def _scores(self):
        return self._function("scores", _themselves)

    @functools.cached_property
    def _probabilities(self):
        return self._function("probabilities", _probable)

    def _function(self, key, make):
        return taps.compiled(self._model, key, make) if taps.is_model(self._model) else make(self._subject)

    def __call__(self, x):
        return self._checked(self._scores, x)

    def probabilities(self, x):
        """Probabilities ``(b, M)`` of images, see ``taps.Scores.probabilities``."""
        return self._checked(self._probabilities, x)

    def measured(self, x, ids, measure):
        """What counts of images and their class ids ``(b,)``: a float64 array ``(b,)``.

        ``measure`` is one of MEASURES: the probability of the class; its score, before a softmax or sigmoid; or
        ``"accuracy"``, 1 where its score is the highest and else 0.
        """
        values = self.probabilities(x) if measure == "probability" else self(x)
        if measure == "accuracy":
            return (values.argmax(axis=1) == ids).astype("float64")
        return values[np.arange(len(ids)), ids].astype("float64")

    def _checked(self, function, x):
        checks.of_size(x, self._subject.input_shape, "the model")
        with checks.running("the model", x):
            scores = function(ops.convert_to_tensor(np.asarray(x, "float32")))
        scores = checks.numbers(scores, "scores of the model")
        if scores.ndim != 2 or len(scores) != len(x):
            raise ValueError(f"The model must return scores of shape ({len(x)}, classes); received {scores.shape}.")
        if not np.isfinite(scores).all():
            raise ValueError("The model returned NaN or infinite scores.")
        return scores

    def classes(self, x):
        """Class ids ``(b,)`` of the highest scores of images."""
        return self(x).argmax(axis=-1) if len(x) else np.zeros(0, "int64")

    def correct(self, x, y):
        """Bools ``(b,)``, whether images are classified as class ids ``y (b,)``, which have to be classes."""
        if not len(x):
            return np.zeros(0, bool)
        scores = self(x)
        return scores.argmax(axis=-1) == checks.class_ids(y, len(x), scores.shape[1])

    def of_targets(self, scores, target):
        """Ids ``(b,)`` of the classes that count, those of the highest scores for None, and their scores ``(b,)``."""
        ids = scores.argmax(axis=1) if target is None else target
        ids = checks.targets(ids, len(scores), scores.shape[1])
        return ids, scores[np.arange(len(scores)), ids].astype("float64")


def batched(function, x, batch_size):
    """Values of all images, of a callable ``x (k, H, W, C) → values (k, ...)``."""
    checks.batch_size(batch_size)
    return np.concatenate([function(x[start : start + batch_size]) for start in range(0, len(x), batch_size)])


def streamed(values_of, images_of, count, batch_size):
    """Values ``(count,)`` of images that are made batch by batch, all of one size so that one trace serves them.

    Args:
        values_of: callable ``(images (k, H, W, C), class ids (k,)) → values (k,)``.
        images_of: callable from indices ``(k,)`` to images and class ids; the last index may come several times.
        count: int.
        batch_size: int.
    """
    size = min(checks.batch_size(batch_size), count)
    indices = (np.arange(start, start + size).clip(max=count - 1) for start in range(0, count, size))
    return np.concatenate([values_of(*images_of(each)) for each in indices])[:count]


def _themselves(scores):
    return scores


def _probable(scores):
    return scores.probabilities
