"""The attack of Carlini and Wagner: the smallest perturbation, by optimising the pixels."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.norms import NORMS

# Pixels on the bounds would be infinitely far away in the space that is searched.
_INSIDE = 0.999999
_LARGEST = 1e10  # weight of the classification
_LOOKS = 10  # per search, to see whether an image still gains


@dataclasses.dataclass(frozen=True)
class CarliniWagner(Attack):
    """Small L2 perturbations that change the class (Carlini and Wagner 2017b). Defaults are Foolbox's.

    Minimises ``||x' - x||^2 + c max(0, margin(x') + confidence)`` by Adam over ``w``, where ``x'`` is ``tanh w`` scaled
    to the bounds, and the margin is by how much the own class leads (targeted: the wanted one lags). The weight ``c``
    is found per image by bisection. Images without a perturbation that succeeds are returned as they were.

    Args:
        epsilon: float or None, radius of the ball that perturbations are cut to; None for no limit.
        steps: int >= 1, of each search.
        binary_search_steps: int >= 1, searches with different ``c``.
        step_size: float >= 0, of Adam.
        initial_const: float > 0, first ``c``.
        confidence: float >= 0, by how much the other class has to lead.
        abort_early: bool, end the search of an image that gained less than 0.01 % in a tenth of the steps.
        bounds: pair of floats, the range of pixels.
    """

    epsilon: float | None = None
    _: dataclasses.KW_ONLY
    steps: int = 10_000
    binary_search_steps: int = 9
    step_size: float = 0.01
    initial_const: float = 1e-3
    confidence: float = 0.0
    abort_early: bool = True
    bounds: tuple = (0.0, 1.0)
    norm: str = dataclasses.field(default="l2", init=False)

    def __post_init__(self):
        names = ("step_size", "initial_const", "confidence") + (() if self.epsilon is None else ("epsilon",))
        self.check_ranges(at_least_0=names, at_least_1=("steps", "binary_search_steps"))

    def __call__(self, objective, x, y, targeted=False):
        objective, x, y = self.prepare(objective, x, y)
        if not len(x):
            return x
        search = self.compiled(objective, self._search)
        sign = np.float32(-1 if targeted else 1)
        best, smallest = x.copy(), np.full(len(x), np.inf, "float32")
        low, high = np.zeros(len(x)), np.full(len(x), np.inf)
        const = np.full(len(x), self.initial_const)
        for number in range(self.binary_search_steps):
            if self.binary_search_steps >= _LOOKS and number == self.binary_search_steps - 1:
                const = np.minimum(high, _LARGEST)  # the last chance of those without any success
            found, distance = (ops.convert_to_numpy(one) for one in search(x, y, const.astype("float32"), sign))
            success = np.isfinite(distance)
            better = distance < smallest
            best[better], smallest[better] = found[better], distance[better]
            low, high = np.where(success, low, const), np.where(success, const, high)
            const = np.minimum(np.where(np.isfinite(high), (low + high) / 2, const * 10), _LARGEST)
        if self.epsilon is not None:
            cut = x + ops.convert_to_numpy(NORMS["l2"].project(ops.convert_to_tensor(best - x), self.epsilon))
            best = np.clip(cut, *self.bounds)
        return best

    def _search(self, objective):
        middle, half = (self.bounds[1] + self.bounds[0]) / 2, (self.bounds[1] - self.bounds[0]) / 2

        def image(w):
            return ops.tanh(w) * half + middle

        def loss(w, origin, y, const, sign):
            adversarial = image(w)
            scores = objective(adversarial)
            own = ops.one_hot(y, scores.shape[1], dtype="float32")
            lead = ops.sum(own * scores, axis=1) - ops.max(scores - 1e30 * own, axis=1)
            margin = sign * lead + self.confidence
            distance = ops.sum(ops.square(adversarial - origin), axis=(1, 2, 3))
            return distance + const * ops.relu(margin), (adversarial, margin, distance)

        gradient = autodiff.gradient(loss, has_aux=True)
        period = -(-self.steps // _LOOKS)

        def run(x, y, const, sign):
            start = ops.arctanh((x - middle) / half * _INSIDE)
            # Distances are counted from where the search can start, and reported from the image itself.
            origin = image(start)

            def step(i, w, mean, square, running, last, best, smallest):
                (losses, (adversarial, margin, distance)), slope = gradient(w, origin, y, const, sign)
                better = ops.logical_and(running > 0, ops.logical_and(margin < 0, distance < smallest))
                best = ops.where(_per_image(better), adversarial, best)
                smallest = ops.where(better, distance, smallest)
                if self.abort_early:
                    look = ops.equal(i % period, 0)
                    gains = ops.cast(losses <= 0.9999 * last, "float32")
                    running = ops.where(look, running * gains, running)
                    last = ops.where(look, losses, last)
                mean = 0.9 * mean + 0.1 * slope
                square = 0.999 * square + 0.001 * ops.square(slope)
                t = ops.cast(i + 1, "float32")
                change = (mean / (1 - 0.9**t)) / (ops.sqrt(square / (1 - 0.999**t)) + 1e-8)
                w = w - self.step_size * change * _per_image(running)
                return i + 1, w, mean, square, running, last, best, smallest

            def unfinished(i, w, mean, square, running, *_):
                return ops.logical_and(i < self.steps, ops.any(running > 0))

            zeros, per_image = ops.zeros_like(x), 0.0 * const
            state = (ops.convert_to_tensor(0, "int32"), start, zeros, zeros)
            state += (per_image + 1.0, per_image + 1e30, x, per_image + float("inf"))
            *_, best, smallest = ops.while_loop(unfinished, step, state)
            return best, smallest

        return run


def _per_image(values):
    return ops.reshape(values, (-1, 1, 1, 1))
