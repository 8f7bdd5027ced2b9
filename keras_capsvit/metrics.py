"""Accuracy for images of one class or of several."""

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.ops import as_multi_hot


@keras.saving.register_keras_serializable(package="keras_capsvit")
class SubsetAccuracy(keras.metrics.Mean):
    """Share of images whose ``k`` classes are the ``k`` highest scores, all of them.

    For one class per image it is the usual accuracy; for overlapping digits both digits have to be right (thesis Tables
    5.4 and S.2), where Keras's ``"accuracy"`` would compare single maxima. Of a mixed image, whose classes have shares
    (``data.mix``), the largest one counts. A tie that decides counts as wrong. NaN among the scores, or of labels that
    are none (see ``as_multi_hot``), makes the metric NaN.

    Call arguments:
        y_true: integer class ids ``(b,)`` or ``(b, 1)``, or multi-hot ``(b, M)``, or shares ``(b, M)``.
        y_pred: scores ``(b, M)``, lengths or logits.

    Raises:
        ValueError: for labels of another shape.
    """

    def __init__(self, name="subset_accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_pred = ops.convert_to_tensor(checks.tensor("scores", y_pred, "(b, M)"))
        rows = as_multi_hot(y_true, y_pred.shape[1])
        checks.of_one_batch(type(self).__name__, [rows, y_pred])
        present = ops.logical_and(rows > 0, ops.equal(rows, ops.max(rows, axis=1, keepdims=True)))
        infinity = ops.cast(float("inf"), y_pred.dtype)
        lowest_present = ops.min(ops.where(present, y_pred, infinity), axis=1)
        highest_absent = ops.max(ops.where(present, -infinity, y_pred), axis=1)
        right = ops.cast(lowest_present > highest_absent, "float32")
        unknown = ops.any(ops.logical_or(ops.isnan(rows), ops.isnan(y_pred)), axis=1)  # NaN is neither above nor below
        return super().update_state(ops.where(unknown, float("nan"), right), sample_weight)
