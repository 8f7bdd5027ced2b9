"""DeepFool: the shortest way out of a class, if the model were linear, again and again."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.borders import lead, margins, nearest, rivals
from keras_capsvit.attacks.losses import margin_and_scores
from keras_capsvit.attacks.norms import NORMS, per_image

# As in Foolbox, both for pixels between 0 and 1: how far beyond a border, on which two classes are equal; and the least
# slope that is divided by.
_BEYOND, _FLATTEST = 1e-4, 1e-8


@dataclasses.dataclass(frozen=True)
class DeepFool(Attack):
    """Small perturbations that leave the class (Moosavi-Dezfooli et al. 2016). Defaults are Foolbox's.

    In each step every image goes to the nearest of the borders to other classes, as they lie in the linear
    approximation there; targeted, to the border between the wanted class and the one of the highest score besides it.
    An image that left its class, or reached the wanted one, is not touched again.

    Args:
        epsilon: float or None, radius of the ball that perturbations are cut to; None for no limit.
        norm: ``"l2"`` or ``"linf"``, the distance that is kept small.
        steps: int >= 1, at most.
        candidates: int >= 2, classes that are looked at: the own one and those of the highest clean scores; untargeted
            only.
        overshoot: float >= 0, share by which perturbations are lengthened.
        bounds: pair, the range of pixels, see Attack.

    Call: see Attack.
    """

    epsilon: float | None = None
    _: dataclasses.KW_ONLY
    norm: str = "l2"
    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02
    bounds: tuple = (0.0, 1.0)

    numeric = (*Attack.numeric, "overshoot")
    raised = staticmethod(margin_and_scores)

    def __post_init__(self):
        self.check_settings(at_least_0=("overshoot", "epsilon"), counts=("steps",))
        checks.integer("candidates", self.candidates, 2)

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not len(x):
            return x
        run = self.compiled(objective, "_to_target" if targeted else "_away")
        settings = np.float32([np.inf if self.epsilon is None else self.epsilon, self.overshoot, self.unit(x)])
        result = ops.convert_to_numpy(run(x, y, np.int32(self.steps), settings, self.limits(x)))
        self.check_result(objective, x, result, y, targeted)
        return result

    def structure(self):
        return (*super().structure(), self.epsilon is None)

    def _away(self, objective):
        def borders(x, y):
            scores = objective(x)
            candidates = rivals(scores, y, min(self.candidates, scores.shape[1]) - 1)
            return lambda x: margins(objective(x), y, candidates)

        return self._loop(borders)

    def _to_target(self, objective):
        def borders(x, y):
            return lambda x: lead(objective(x), y)[:, None]

        return self._loop(borders)

    def _loop(self, borders):
        """Steps to the nearest border; ``borders(x, y)`` gives the margins ``(b, k)`` by which they are crossed."""
        norm = NORMS[self.norm]

        def run(x, y, steps, settings, limits):
            epsilon, overshoot, unit = (settings[k] for k in range(3))
            jacobian = autodiff.jacobian(borders(x, y))

            def step(i, adversarial, perturbation, fooled):
                margin, gradients = jacobian(adversarial)
                fooled = ops.any(margin > 0, axis=1)
                _, gradient, distance = nearest(margin, gradients, norm, _FLATTEST / unit)
                distance = distance + _BEYOND * unit
                step = per_image(distance) * norm.direction(gradient)
                perturbation = perturbation + step * per_image(1.0 - ops.cast(fooled, "float32"))
                moved = x + (1.0 + overshoot) * perturbation
                if self.epsilon is not None:
                    moved = x + norm.project(moved - x, epsilon)
                adversarial = ops.where(per_image(fooled), adversarial, ops.clip(moved, limits[0], limits[1]))
                return i + 1, adversarial, perturbation, fooled

            def unfinished(i, adversarial, perturbation, fooled):
                return ops.logical_and(i < steps, ops.logical_not(ops.all(fooled)))

            # Nobody is known to be fooled before the first look.
            return ops.while_loop(unfinished, step, (0 * steps, x, ops.zeros_like(x), y < 0))[1]

        return run
