"""Attacks that also deceive the detection of adversarial images by their reconstruction (thesis Eq. 6.5 and 6.6)."""

import collections.abc
import dataclasses

from keras import ops

from keras_capsvit import autodiff, taps
from keras_capsvit.attacks.gradient import GradientAttack
from keras_capsvit.attacks.norms import NORMS
from keras_capsvit.ops import safe_norm


def reconstruction_error(model):
    """Distance of images from their reconstruction by the winning capsule, ``||r(v_p) - x||_2``.

    Args:
        model: model with a decoder, live or served.

    Returns:
        Callable ``x (b, H, W, C) → (b,)``, for ``DetectionAware`` and ``evaluate.detection``.

    Raises:
        ValueError: for a model without the tap ``reconstruction``.
    """
    reconstruct = taps.tap(model, "reconstruction")

    def error(x):
        difference = ops.cast(reconstruct(x), "float32") - x
        return safe_norm(ops.reshape(difference, (-1, difference.shape[1] * difference.shape[2] * difference.shape[3])))

    return error


@dataclasses.dataclass(frozen=True)
class DetectionAware(GradientAttack):
    """Two steps at a time: one that fools the model, one that lowers the reconstruction error (Qin et al. 2020).

    The first has the size ``beta step_size`` (thesis Eq. 6.5), the second ``(1 - beta) step_size`` (Eq. 6.6).

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        error: callable ``x (b, H, W, C) → (b,)``, such as ``reconstruction_error(model)``.
        beta: float in [0, 1], share of the step that goes into fooling.
        others: those of GradientAttack, except ``decay``.
    """

    _: dataclasses.KW_ONLY
    error: collections.abc.Callable
    beta: float = 0.5
    steps: int = 40
    random_start: bool = True
    decay: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie between 0 and 1; received beta={self.beta}.")

    def mover(self, objective):
        gradient, slope = autodiff.gradient(objective.loss), autodiff.gradient(self.error)
        norm = NORMS[self.norm]
        fooling, hiding = self.beta * self.step_size, (1 - self.beta) * self.step_size

        def move(x, y, adversarial, momentum, sign):
            adversarial = self.within(x, adversarial + fooling * norm.direction(sign * gradient(adversarial, y)[1]))
            adversarial = self.within(x, adversarial - hiding * norm.direction(slope(adversarial)[1]))
            return adversarial, momentum

        return move
