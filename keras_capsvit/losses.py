"""The margin loss of capsule networks."""

import keras
from keras import ops

from keras_capsvit.ops import as_multi_hot


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MarginLoss(keras.losses.Loss):
    """Margin loss on capsule lengths (thesis Eq. 3.6; Sabour et al. 2017, Eq. 4), summed over the classes ``k``::

        L_k = T_k max(0, m_plus - ||v_k||)^2 + lam (1 - T_k) max(0, ||v_k|| - m_minus)^2

    Args:
        m_plus: float, length above which a present class costs nothing.
        m_minus: float, length below which an absent class costs nothing.
        lam: float, weight of the absent classes.

    Call arguments:
        y_true: integer class ids ``(b,)`` or ``(b, 1)``, or multi-hot ``(b, M)``.
        y_pred: lengths ``(b, M)`` in [0, 1], what a capsule network returns.

    Raises:
        ValueError: for labels or lengths of another shape, and for options of cross-entropy losses such as
            ``from_logits``, because the margins are those of lengths and mean nothing on logits.
    """

    def __init__(
        self, m_plus=0.9, m_minus=0.1, lam=0.5, *, reduction="sum_over_batch_size", name="margin_loss", **kwargs
    ):
        dtype = kwargs.pop("dtype", None)
        if kwargs:
            raise ValueError(
                f"MarginLoss takes m_plus, m_minus and lam; received {sorted(kwargs)}. It works on capsule lengths "
                "in [0, 1]; for a model that returns logits use keras.losses.SparseCategoricalCrossentropy."
            )
        if not 0 <= m_minus < m_plus <= 1:
            raise ValueError(f"Expected 0 <= m_minus < m_plus <= 1; received m_minus={m_minus}, m_plus={m_plus}.")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.m_plus = m_plus
        self.m_minus = m_minus
        self.lam = lam

    def call(self, y_true, y_pred):
        if len(y_pred.shape) != 2:
            raise ValueError(f"MarginLoss expects lengths of shape (batch, classes); received {tuple(y_pred.shape)}.")
        present = ops.cast(as_multi_hot(y_true, y_pred.shape[1]), y_pred.dtype)
        too_short = ops.square(ops.relu(self.m_plus - y_pred))
        too_long = ops.square(ops.relu(y_pred - self.m_minus))
        return ops.sum(present * too_short + self.lam * (1.0 - present) * too_long, axis=-1)

    def get_config(self):
        return {**super().get_config(), "m_plus": self.m_plus, "m_minus": self.m_minus, "lam": self.lam}
