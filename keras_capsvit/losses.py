"""The losses of capsule networks, and cross-entropies that take no label for another."""

from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.ops import as_multi_hot, check_labels

_SHORTEST = 1e-7  # length that has a logarithm


class _OfLabels:
    """Losses whose labels are class ids or multi-hot: refused by type and value, or, in compiled steps, NaN.

    Keras's own losses take -1 for no class or an error of the backend, 1.7 for class 1, and ids of one class for
    multi-hot rows.
    """

    shares: ClassVar = False  # see check_labels

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_pred = checks.tensor("scores", y_pred, "(b, M)")
        y_true = y_true if hasattr(y_true, "shape") else checks.numbers(y_true, "labels")
        check_labels(
            y_true, y_pred.shape[-1], shares=self.shares
        )  # of their own type; next, Keras casts them to that of the scores
        checks.of_one_batch(type(self).__name__, [y_true, y_pred])
        if y_pred.shape[0] == 0:
            raise ValueError(f"{type(self).__name__} expects at least one example; received none.")
        return super().__call__(y_true, y_pred, sample_weight)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CrossEntropy(_OfLabels, keras.losses.CategoricalCrossentropy):
    """Cross-entropy of the softmax of logits.

    Args:
        **kwargs: those of ``keras.losses.CategoricalCrossentropy``; ``from_logits`` is True.

    Call arguments:
        y_true: class ids ``(b,)`` or ``(b, 1)``, or rows ``(b, M)`` that sum to 1: one-hot, or shares of mixed images.
        y_pred: logits ``(b, M)``.

    Raises:
        ValueError: for labels of another shape or type, or, where their values are known, out of range; in compiled
            steps the loss of these is NaN.
    """

    shares: ClassVar = True

    def __init__(self, *, from_logits=True, name="cross_entropy", **kwargs):
        super().__init__(from_logits=from_logits, name=name, **kwargs)

    def call(self, y_true, y_pred):
        return super().call(as_multi_hot(y_true, y_pred.shape[-1], shares=True), y_pred)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class BinaryCrossEntropy(_OfLabels, keras.losses.BinaryCrossentropy):
    """Cross-entropy of every class by itself, the mean over classes.

    Args:
        **kwargs: those of ``keras.losses.BinaryCrossentropy``.

    Call arguments:
        y_true: multi-hot ``(b, M)``, or class ids ``(b,)`` or ``(b, 1)``.
        y_pred: probabilities, or with ``from_logits`` logits, ``(b, M)``.

    Raises:
        ValueError: see ``CrossEntropy``.
    """

    def __init__(self, *, name="binary_cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        y_pred = ops.where(ops.isfinite(y_pred), y_pred, float("nan"))  # Keras clips what is infinite
        return super().call(as_multi_hot(y_true, y_pred.shape[-1]), y_pred)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MarginLoss(_OfLabels, keras.losses.Loss):
    """Margin loss on capsule lengths (thesis Eq. 3.6; Sabour et al. 2017, Eq. 4), summed over the classes ``k``::

        L_k = T_k max(0, m_plus - ||v_k||)^2 + lam (1 - T_k) max(0, ||v_k|| - m_minus)^2

    Args:
        m_plus: float in [0, 1], length above which a present class costs nothing.
        m_minus: float in [0, 1], below ``m_plus``, length below which an absent class costs nothing.
        lam: float >= 0, weight of the absent classes.

    Call arguments:
        y_true: integer class ids ``(b,)`` or ``(b, 1)``, or multi-hot ``(b, M)``.
        y_pred: lengths ``(b, M)`` in [0, 1], what a capsule network returns.

    Raises:
        ValueError: for labels that ``CrossEntropy`` refuses, lengths of another shape, settings out of range, and for
            options of cross-entropy losses such as ``from_logits``, because the margins are those of lengths and mean
            nothing on logits.
    """

    def __init__(
        self, m_plus=0.9, m_minus=0.1, lam=0.5, *, reduction="sum_over_batch_size", name="margin_loss", **kwargs
    ):
        dtype = kwargs.pop("dtype", None)
        if kwargs:
            raise ValueError(
                f"MarginLoss takes m_plus, m_minus and lam; received {sorted(kwargs)}. It works on capsule lengths "
                "in [0, 1]; for a model that returns logits use CrossEntropy of keras_capsvit.losses."
            )
        checks.number("lam", lam, 0)
        if not 0 <= checks.number("m_minus", m_minus) < checks.number("m_plus", m_plus) <= 1:
            raise ValueError(f"Expected 0 <= m_minus < m_plus <= 1; received m_minus={m_minus}, m_plus={m_plus}.")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.m_plus = m_plus
        self.m_minus = m_minus
        self.lam = lam

    def call(self, y_true, y_pred):
        present = ops.cast(as_multi_hot(y_true, y_pred.shape[1]), y_pred.dtype)
        too_short = ops.square(ops.relu(self.m_plus - y_pred))
        too_long = ops.square(ops.relu(y_pred - self.m_minus))
        return ops.sum(present * too_short + self.lam * (1.0 - present) * too_long, axis=-1)

    def get_config(self):
        return {**super().get_config(), "m_plus": self.m_plus, "m_minus": self.m_minus, "lam": self.lam}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class LogLengths(_OfLabels, keras.losses.Loss):
    """Negative log-likelihood of capsule lengths, taken as shares of their sum: the loss of thesis chapter 6::

        L = -sum_k T_k log(||v_k|| / sum_j ||v_j||)

    The softmax of lengths, which ``CrossEntropy`` would take, cannot be sure of any class: lengths lie in [0, 1), so
    that of ten classes none gets more than ``e / (e + 9)``, .23, and that loss stays above 1.46. Shares reach 1.

    Lengths below 1e-7 count as 1e-7, so a length of 0 costs 16, not infinity, and lengths that are all 0 are a tie.

    Args:
        name: str.
        reduction: str, Keras's.
        dtype: see ``keras.losses.Loss``; half precision is computed in float32.

    Call arguments:
        y_true: integer class ids ``(b,)`` or ``(b, 1)``, or multi-hot ``(b, M)``.
        y_pred: lengths ``(b, M)``, what a capsule network returns; also without a squash, above 1. The loss of
            negative ones, such as logits, is NaN.

    Raises:
        ValueError: for labels that ``CrossEntropy`` refuses, and lengths of another shape.
    """

    def __init__(self, *, reduction="sum_over_batch_size", name="log_lengths", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        lengths = ops.cast(y_pred, keras.backend.result_type(y_pred.dtype, "float32"))
        lengths = ops.where(lengths < 0, float("nan"), ops.where(lengths < _SHORTEST, _SHORTEST, lengths))
        shares = ops.log(lengths) - ops.log(ops.sum(lengths, axis=-1, keepdims=True))
        present = ops.cast(as_multi_hot(y_true, y_pred.shape[1]), shares.dtype)
        return -ops.sum(present * shares, axis=-1)
