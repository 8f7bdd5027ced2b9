"""Class scores and predictions of what is measured."""

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks, taps


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
        self._subject = taps.scores(model)
        self._scores = taps.compiled(model, "scores", _themselves) if taps.is_model(model) else self._subject

    def __call__(self, x):
        checks.of_size(x, self._subject.input_shape, "the model")
        with checks.running("the model", x):
            scores = self._scores(ops.convert_to_tensor(np.asarray(x, "float32")))
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


def _themselves(scores):
    return scores
