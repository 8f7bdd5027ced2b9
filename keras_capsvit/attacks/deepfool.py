"""DeepFool: the shortest way out of a class, if the model were linear, again and again."""

import dataclasses

from keras import ops

from keras_capsvit import autodiff
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.norms import NORMS, per_image

_BEYOND = 1e-4  # of a border, as in Foolbox: on it, two classes are equal


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
        bounds: pair of floats, the range of pixels.
    """

    epsilon: float | None = None
    _: dataclasses.KW_ONLY
    norm: str = "l2"
    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02
    bounds: tuple = (0.0, 1.0)

    def __post_init__(self):
        self.check_ranges(at_least_0=("overshoot", "epsilon"), at_least_1=("steps",))
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, the own class and another; received {self.candidates}.")

    def __call__(self, objective, x, y, targeted=False):
        objective, x, y = self.prepare(objective, x, y)
        run = self._to_target if targeted else self._away
        return ops.convert_to_numpy(self.compiled(objective, run)(x, y)) if len(x) else x

    def _away(self, objective):
        others = min(self.candidates, objective.num_classes) - 1

        def borders(x, y):
            own = ops.one_hot(y, objective.num_classes, dtype="float32")
            candidates = ops.top_k(objective(x) - 1e30 * own, others)[1]

            def margins(x):
                scores = objective(x)
                return ops.take_along_axis(scores, candidates, axis=1) - ops.sum(own * scores, axis=1, keepdims=True)

            return margins

        return self._loop(borders)

    def _to_target(self, objective):
        def borders(x, y):
            wanted = ops.one_hot(y, objective.num_classes, dtype="float32")

            def margins(x):
                scores = objective(x)
                highest = ops.max(scores - 1e30 * wanted, axis=1)
                return (ops.sum(wanted * scores, axis=1) - highest)[:, None]

            return margins

        return self._loop(borders)

    def _loop(self, borders):
        """Steps to the nearest border; ``borders(x, y)`` gives the margins ``(b, k)`` by which they are crossed."""
        norm = NORMS[self.norm]

        def run(x, y):
            margins = borders(x, y)
            jacobian = autodiff.jacobian(margins)

            def step(i, adversarial, perturbation, fooled):
                margin, gradients = jacobian(adversarial)
                fooled = ops.any(margin > 0, axis=1)
                distances = ops.abs(margin) / (norm.dual(gradients) + 1e-8)
                nearest = ops.one_hot(ops.argmin(distances, axis=1), margin.shape[1], dtype="float32")
                gradient = ops.einsum("bk,bk...->b...", nearest, gradients)
                distance = ops.sum(nearest * distances, axis=1) + _BEYOND
                step = per_image(distance) * norm.direction(gradient)
                perturbation = perturbation + step * per_image(1.0 - ops.cast(fooled, "float32"))
                moved = x + (1.0 + self.overshoot) * perturbation
                if self.epsilon is not None:
                    moved = x + norm.project(moved - x, self.epsilon)
                adversarial = ops.where(per_image(fooled), adversarial, ops.clip(moved, *self.bounds))
                return i + 1, adversarial, perturbation, fooled

            def unfinished(i, adversarial, perturbation, fooled):
                return ops.logical_and(i < self.steps, ops.logical_not(ops.all(fooled)))

            # Nobody is known to be fooled before the first look.
            start = (ops.convert_to_tensor(0, "int32"), x, ops.zeros_like(x), y < 0)
            return ops.while_loop(unfinished, step, start)[1]

        return run
