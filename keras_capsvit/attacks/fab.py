"""FAB: the smallest perturbation, by steps onto the border of the class that are drawn towards the image."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.borders import lead, margins, nearest, rivals
from keras_capsvit.attacks.examine import NOT_FINITE
from keras_capsvit.attacks.hyperplane import CLOSEST
from keras_capsvit.attacks.losses import margin_and_scores
from keras_capsvit.attacks.norms import NORMS, per_image
from keras_capsvit.batches import generators, numbered, padded

_LEAST = 1e-8  # change that shares are computed with, for pixels between 0 and 1
_FLATTEST = 1e-30  # slope that is divided by
_SEARCH = 3  # looks between the image and what was found
# Share of the largest score by which a class has to lead; other batch sizes round otherwise, and then it would not.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack (Croce and Hein 2020, Algorithm 1). Defaults are AutoAttack's.

    Each step linearises the scores, takes the nearest border, and the shortest ways onto it within the bounds, from
    where the step begins and from the clean image; it goes a little beyond the mean of the two (Eq. 7 to 9). From what
    fools, the next step begins ``beta`` of the way from the clean image. In the end three steps of linear interpolation
    between the two look for the border (the final search).

    Images that are fooled before are returned as they are. Without ``epsilon``, the others become the nearest ones that
    were found to fool. With ``epsilon``, so they do if these lie within it, and such images are not tried again by
    further restarts and targets; all others are returned as they were.

    Args:
        epsilon: float or None, radius of the ball that perturbations have to lie in; None for no limit.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``, the distance that is kept small.
        steps: int >= 1, of each start.
        restarts: int >= 1, starts: from the image, then from random points half as far from it as the nearest image
            that was found to fool, or as ``epsilon`` if this is less; without either, as far as the bounds are apart.
        targets: None, each step looks at the borders to all classes; or int >= 1, so many other classes of the highest
            clean scores, at most all, are tried one after the other, each looking at its border alone, which costs one
            gradient a step (AutoAttack's FAB-T). What fools may be of any class. Untargeted only.
        alpha_max: float in [0, 1], largest weight of the way from the clean image.
        eta: float >= 1, extrapolation beyond the border.
        beta: float in [0, 1], how far a step begins from the clean image, as a share, after one that fooled.
        bounds: pair, the range of pixels, see Attack.
        seed: int, of random starts.

    Call: see Attack. Targeted, the border is that between the wanted class and the one of the highest score besides it.
    """

    epsilon: float | None = None
    _: dataclasses.KW_ONLY
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    bounds: tuple = (0.0, 1.0)
    seed: int = 0

    numeric = (*Attack.numeric, "restarts", "targets", "alpha_max", "eta", "beta")
    norms = ("linf", "l2", "l1")
    raised = staticmethod(margin_and_scores)

    def __post_init__(self):
        self.check_settings(at_least_0=("epsilon",), counts=("steps", "restarts"))
        if self.targets is not None:
            checks.positive_int("targets", self.targets)
        checks.number("alpha_max", self.alpha_max, 0, 1)
        checks.number("eta", self.eta, 1)
        checks.number("beta", self.beta, 0, 1)

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not len(x):
            return x
        numbers = numbered(len(x), numbers)
        scores = objective.scored(x)
        left = np.flatnonzero((scores.argmax(axis=1) == y) != targeted)
        best, distance = x.copy(), np.full(len(x), np.inf, "float32")
        run = self.compiled(objective, "_towards" if targeted else "_away")
        epsilon, enough = (np.inf, -1.0) if self.epsilon is None else (self.epsilon, self.epsilon)
        for turn, targets in enumerate([y[:, None]] if targeted else self._turns(scores, x, y)):
            for restart in range(self.restarts):
                if not len(left):
                    break
                rows = left[padded(len(left), len(x))]
                start = self._start(x[rows], np.minimum(distance[rows], epsilon), numbers[rows], turn, restart)
                state = (*start, best[rows], distance[rows], np.int32(self.steps), self._settings(x), self.limits(x))
                nearer = run(x[rows], y[rows], targets[rows], *state)
                best[rows], distance[rows] = map(ops.convert_to_numpy, nearer)
                if np.isnan(distance).any():
                    raise ValueError(NOT_FINITE)
                left = left[distance[left] > enough]
        best = np.where((distance <= epsilon)[:, None, None, None], best, x)
        self.check_result(objective, x, best, y, targeted)
        return best

    def structure(self):
        return (*super().structure(), self.targets is None)

    def _settings(self, x):
        return np.float32([self.alpha_max, self.eta, self.beta, _LEAST * self.unit(x)])

    def _turns(self, scores, x, y):
        """Classes ``(b, k)`` whose borders are looked at, once for each time that images are tried."""
        most = scores.shape[1] - 1
        targets = ops.convert_to_numpy(rivals(scores, y, most if self.targets is None else min(self.targets, most)))
        if self.targets is not None:
            return np.split(targets, targets.shape[1], axis=1)
        remedy = "Set targets, such as 9, which looks at one border at a time, or take smaller batches."
        checks.memory("The gradients of all borders", (len(x), most, *x.shape[1:]), remedy, times=2)
        return [targets]

    def _start(self, x, farthest, numbers, turn, restart):
        """Random directions ``(b, H, W, C)``, zero for the first start, and how far to go ``(b,)``."""
        if not restart:
            return np.zeros_like(x), np.zeros(len(x), "float32")
        low, high = self.limits(x)
        across = ops.convert_to_numpy(NORMS[self.norm].size(np.broadcast_to(high - low, x[:1].shape)))
        drawn = generators([self.seed, turn, restart], numbers)
        if self.norm == "linf":
            drawn = [random.uniform(-1, 1, x.shape[1:]) for random in drawn]
        else:
            drawn = [random.normal(size=x.shape[1:]) for random in drawn]
        return np.float32(drawn), np.float32(np.where(np.isfinite(farthest), farthest, across) / 2)

    def _away(self, objective):
        return self._run(objective, 1.0, lambda x, y, targets: margins(objective(x), y, targets))

    def _towards(self, objective):
        return self._run(objective, -1.0, lambda x, y, targets: lead(objective(x), y)[:, None])

    def _run(self, objective, sign, borders):
        """All steps from one start; ``borders(x, y, targets)`` gives margins ``(b, k)``, above 0 behind the borders."""
        norm, closest, jacobian = NORMS[self.norm], CLOSEST[self.norm], autodiff.jacobian(borders)

        def run(x, y, targets, drawn, radius, best, distance, steps, settings, limits):
            alpha_max, eta, beta, least = (settings[k] for k in range(4))

            def within(images):
                return ops.clip(images, limits[0], limits[1])

            def judged(images):
                """By how much images fool (NaN if scores are not finite), by how much more than rounding, and size."""
                scores = objective(images)
                finite = ops.all(ops.isfinite(scores), axis=1)
                gain = ops.where(finite, -sign * lead(scores, y), float("nan"))
                return gain, gain - _ROUNDING * ops.max(ops.abs(scores), axis=1), norm.size(images - x)

            def step(i, images, best, distance):
                margin, gradient, _ = nearest(*jacobian(images, y, targets), norm, _FLATTEST)
                since = ops.sum(gradient * (images - x), axis=(1, 2, 3))
                begins, gaps = ops.concatenate([images, x]), ops.concatenate([-margin, since - margin])
                changes = closest(begins, ops.concatenate([gradient, gradient]), gaps, limits)
                ahead, back = ops.split(ops.maximum(norm.size(changes), least), 2)
                onwards, from_clean = ops.split(begins + eta * changes, 2)
                alpha = per_image(ops.minimum(ahead / (ahead + back), alpha_max))
                moved = within((1 - alpha) * onwards + alpha * from_clean)
                gain, clear, size = judged(moved)
                better = ops.logical_and(clear > 0, size < distance)
                best = ops.where(per_image(better), moved, best)
                finite = ops.isfinite(gain + margin + since)
                distance = ops.where(finite, ops.where(better, size, distance), float("nan"))
                # Also where it is not clear: steps onwards from the border itself would never lead beyond it.
                return i + 1, ops.where(per_image(gain > 0), x + beta * (moved - x), moved), best, distance

            start = within(x + per_image(radius / ops.maximum(norm.size(drawn), least)) * drawn)
            state = (0 * steps, start, best, distance)
            _, _, best, distance = ops.while_loop(lambda i, *_: i < steps, step, state)

            def search(i, correct, gain_there, best, gain, clear, distance):
                aim = ops.minimum(2 * (gain - clear), gain)  # beyond the border by more than rounding
                share = (aim - gain_there) / ops.maximum(gain - gain_there, _FLATTEST)
                between = within(correct + per_image(ops.clip(share, 0.0, 1.0)) * (best - correct))
                new_gain, new_clear, size = judged(between)
                better = ops.logical_and(new_clear > 0, size < distance)
                return (
                    ops.where(per_image(better), correct, between),
                    ops.where(better, gain_there, new_gain),
                    ops.where(per_image(better), between, best),
                    ops.where(better, new_gain, gain),
                    ops.where(better, new_clear, clear),
                    ops.where(ops.isnan(new_gain), float("nan"), ops.where(better, size, distance)),
                )

            ends = (x, judged(x)[0], best, *judged(best)[:2], distance)
            _, _, best, _, _, distance = ops.fori_loop(0, _SEARCH, lambda i, ends: search(i, *ends), ends)
            return best, distance

        return run
