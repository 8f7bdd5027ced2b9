"""Attacks that also deceive the detection of adversarial images by their reconstruction (thesis Eq. 6.5 and 6.6)."""

import collections.abc
import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, caches, checks, taps
from keras_capsvit.attacks.gradient import GradientAttack
from keras_capsvit.attacks.norms import NORMS
from keras_capsvit.ops import safe_norm

_EXAMINED = caches.Cache(64)


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
        others: those of GradientAttack, except ``decay``; ``keep`` is ``"last"``.
    """

    _: dataclasses.KW_ONLY
    error: collections.abc.Callable
    beta: float = 0.5
    steps: int = 40
    random_start: bool = True
    keep: str = "last"  # what fools most is not what hides best
    decay: None = dataclasses.field(default=None, init=False)

    numeric = (*GradientAttack.numeric, "beta", "error")

    def __post_init__(self):
        super().__post_init__()
        checks.number("beta", self.beta, 0, 1)
        checks.function("error", self.error, "x (b, H, W, C) → (b,)")

    @classmethod
    def of(cls, attack, *, error, beta=0.5):
        """The detection-aware form of an attack: its ball, start and restarts, and two of its steps for every one.

        Twice as many, because only the share ``beta`` of a step fools (thesis 6.5.3).

        Args:
            attack: GradientAttack without momentum: FGSM, BIM, PGD.
            error, beta: as above.

        Returns:
            DetectionAware.

        Raises:
            ValueError: for an attack with momentum, or one that is no GradientAttack.
        """
        if not isinstance(attack, GradientAttack) or attack.decay is not None:
            raise ValueError(f"Expected FGSM, BIM or PGD, without decay; received {attack!r}.")
        same = ("norm", "random_start", "restarts", "bounds", "seed")
        kept = {name: getattr(attack, name) for name in same}
        # The step itself, because the relative one of a single step is another.
        how = {"step_size": attack.step, "steps": 2 * attack.steps}
        return cls(attack.epsilon, error=error, beta=beta, **how, **kept)

    def prepare(self, objective, x, y, targeted=False, numbers=None):
        objective, x, y = super().prepare(objective, x, y, targeted, numbers)
        if len(x):
            _EXAMINED.get((self.error,), x.shape[1:], lambda: _check_error(self.error, x[:1]))
        return objective, x, y

    def weak(self):
        error = caches.weakly(self.error)
        return dataclasses.replace(self, error=lambda x: error()(x)), (self.error,)

    def check_result(self, objective, start, result, y, targeted):
        super().check_result(objective, result, result, y, targeted)  # hiding moves images that fooling cannot

    def _settings(self):
        return np.append(super()._settings(), np.float32(self.beta))

    def mover(self, objective):
        gradient = autodiff.gradient(objective.loss_and_scores, has_aux=True)
        slope, norm = autodiff.gradient(self.error), NORMS[self.norm]

        def move(y, images, momentum, sign, settings, back):
            size, beta = settings[1], settings[3]
            (losses, scores), towards = gradient(images, y)
            images = back(images + beta * size * norm.direction(sign * towards))
            images = back(images - (1 - beta) * size * norm.direction(slope(images)[1]))
            return images, momentum, losses, scores

        return move


def _check_error(error, x):
    """Refuse a reconstruction error that gives no finite number for each image; True for one that does."""
    with checks.running("error", x):
        values = error(ops.convert_to_tensor(x))
    checks.of_shape("error must return one value per image", (len(x),), values)
    checks.finite(ops.convert_to_numpy(values), "values of error")
    return True
