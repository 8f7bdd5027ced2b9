"""The attacks of Carlini and Wagner: the smallest perturbation, by optimising the pixels."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.examine import NOT_FINITE
from keras_capsvit.attacks.norms import NORMS, per_image
from keras_capsvit.attacks.objectives import lead, margin_and_scores

# Pixels on the bounds would be infinitely far away in the space that is searched.
_INSIDE = 0.999999
_LARGEST = 1e10  # weight of the classification
_LOOKS = 10  # per search, to see whether an image still gains


class _PixelSearch(Attack):
    """What the two have in common: minimise ``cost(x' - x) + c max(0, margin(x') + confidence)`` by Adam.

    The search runs over ``w``, where ``x'`` is ``tanh w`` scaled to the bounds. The margin is by how much the own class
    leads (targeted: the wanted one lags). Subclasses define ``cost``, and call ``search`` with different ``c``.
    """

    numeric = (
        *("initial_const", "largest_const", "const_factor", "decrease_factor", "smallest_limit", "confidence"),
        *("binary_search_steps", *Attack.numeric),
    )
    raised = staticmethod(margin_and_scores)

    def cost(self, change, limit):
        """What a perturbation ``(b, ...)`` costs, ``(b,)``; ``limit (b,)`` is what costs nothing.

        Perturbations and limits are shares of the range of pixels, so that all constants fit pixels of any range.
        """
        raise NotImplementedError

    def search(self, objective, start, x, y, const, limit, running, targeted):
        """One search, of the images that are ``running (b,)``; the others only stay in the batch.

        Returns:
            NumPy arrays: the cheapest images that succeed, and what they cost, infinite where none does.
        """
        per_image = (one.astype("float32") for one in (const, limit, running))
        settings = np.float32([-1 if targeted else 1, self.step_size, self.confidence, self.unit(x)])
        found = self.compiled(objective, "_search")(
            start, x, y, *per_image, np.int32(self.steps), settings, self.limits(x)
        )
        images, cost = (np.array(ops.convert_to_numpy(one)) for one in found)
        if np.isnan(cost).any():
            raise ValueError(NOT_FINITE)
        return images, cost

    def cut(self, x, found):
        """Images whose perturbations are cut to the ball and the bounds."""
        if self.epsilon is None:
            return found
        # As NumPy's number, because TensorFlow keeps every Python number that it ever computed with.
        change = NORMS[self.norm].project(ops.convert_to_tensor(found - x), np.float32(self.epsilon))
        return np.clip(x + ops.convert_to_numpy(change), *self.limits(x))

    def _search(self, objective):
        def run(start, x, y, const, limit, running, steps, settings, limits):
            sign, step_size, confidence, unit = (settings[k] for k in range(4))
            middle, half = (limits[1] + limits[0]) / 2, (limits[1] - limits[0]) / 2
            period = (steps + _LOOKS - 1) // _LOOKS

            def image(w):
                return ops.tanh(w) * half + middle

            def pixels(x):
                return ops.arctanh((x - middle) / half * _INSIDE)

            # Perturbations are counted from where the search can start from the image itself.
            origin = image(pixels(x))

            def loss(w):
                adversarial = image(w)
                margin = sign * lead(objective(adversarial), y) + confidence
                cost = self.cost((adversarial - origin) / unit, limit)
                return cost + const * ops.relu(margin), (adversarial, margin, cost)

            gradient = autodiff.gradient(loss, has_aux=True)

            def step(i, w, mean, square, running, last, best, cheapest):
                (losses, (adversarial, margin, cost)), slope = gradient(w)
                better = ops.logical_and(running > 0, ops.logical_and(margin < 0, cost < cheapest))
                best = ops.where(per_image(better), adversarial, best)
                cheapest = ops.where(ops.isnan(losses), float("nan"), ops.where(better, cost, cheapest))
                running = running * ops.cast(losses > 0, "float32")  # nothing is left to gain
                if self.abort_early:
                    look = ops.equal(i % period, 0)
                    gains = ops.cast(losses <= 0.9999 * last, "float32")
                    running = ops.where(look, running * gains, running)
                    last = ops.where(look, losses, last)
                mean = 0.9 * mean + 0.1 * slope
                square = 0.999 * square + 0.001 * ops.square(slope)
                t = ops.cast(i + 1, "float32")
                change = (mean / (1 - 0.9**t)) / (ops.sqrt(square / (1 - 0.999**t)) + 1e-8)
                w = w - step_size * change * per_image(running)
                return i + 1, w, mean, square, running, last, best, cheapest

            def unfinished(i, w, mean, square, running, *_):
                return ops.logical_and(i < steps, ops.any(running > 0))

            zeros, infinite = ops.zeros_like(x), ops.full_like(const, float("inf"))
            state = (0 * steps, pixels(start), zeros, zeros, running, infinite, x, infinite)
            *_, best, cheapest = ops.while_loop(unfinished, step, state)
            return best, cheapest

        return run


@dataclasses.dataclass(frozen=True)
class CarliniWagner(_PixelSearch):
    """Small L2 perturbations that change the class (Carlini and Wagner 2017b). Defaults are Foolbox's.

    Minimises ``||x' - x||^2 + c max(0, margin(x') + confidence)``, where pixels are counted in units of their range and
    the margin is by how much the own class leads (targeted: the wanted one lags). The weight ``c`` is found per image
    by bisection. Images without a perturbation that succeeds are returned as they were.

    Args:
        epsilon: float or None, radius, in units of the pixels, of the ball that perturbations are cut to; None for no
            limit.
        steps: int >= 1, of each search.
        binary_search_steps: int >= 1, searches with different ``c``.
        step_size: float >= 0, of Adam, which works on ``w``, whatever the range of pixels.
        initial_const: float >= 0, first ``c``.
        confidence: float >= 0, by how much the other class has to lead.
        abort_early: bool, end the search of an image that gained less than 0.01 % in a tenth of the steps.
        bounds: pair, the range of pixels, see Attack.

    Call: see Attack.
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
        self.check_settings(
            at_least_0=("step_size", "initial_const", "confidence", "epsilon"),
            counts=("steps", "binary_search_steps"),
        )

    def cost(self, change, limit):
        return ops.sum(ops.square(change), axis=(1, 2, 3))

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not len(x):
            return x
        best, smallest = x.copy(), np.full(len(x), np.inf, "float32")
        zeros = np.zeros(len(x))
        low, high = zeros, np.full(len(x), np.inf)
        const = np.full(len(x), float(self.initial_const))
        for number in range(self.binary_search_steps):
            if self.binary_search_steps >= _LOOKS and number == self.binary_search_steps - 1:
                const = np.minimum(high, _LARGEST)  # the last chance of those without any success
            found, distance = self.search(objective, x, x, y, const, zeros, zeros + 1, targeted)
            success = np.isfinite(distance)
            better = distance < smallest
            best[better], smallest[better] = found[better], distance[better]
            low, high = np.where(success, low, const), np.where(success, const, high)
            const = np.minimum(np.where(np.isfinite(high), (low + high) / 2, const * 10), _LARGEST)
        self.check_result(objective, x, best, y, targeted)
        return self.cut(x, best)


@dataclasses.dataclass(frozen=True)
class CarliniWagnerLinf(_PixelSearch):
    """Small L-infinity perturbations that change the class (Carlini and Wagner 2017b, VI.D). Searches are ART's.

    Minimises ``sum_i max(0, |x'_i - x_i| - tau) + c max(0, margin(x') + confidence)``, where pixels are counted in
    units of their range. Per image, ``c`` grows until a search succeeds; then ``tau`` falls below the largest change
    that was found, and the search goes on from there. Images without a perturbation that succeeds are returned as they
    were.

    Args:
        epsilon: float or None, radius, in units of the pixels, of the ball that perturbations are cut to; None for no
            limit.
        steps: int >= 1, of each search.
        step_size: float >= 0, of Adam, which works on ``w``, whatever the range of pixels.
        initial_const: float > 0, first ``c``.
        largest_const: float > 0, ``c`` beyond which an image is given up.
        const_factor: float > 1, by which ``c`` grows.
        decrease_factor: float in (0, 1), by which ``tau`` falls.
        smallest_limit: float > 0, ``tau`` at which the search ends.
        confidence: float >= 0, by how much the other class has to lead.
        abort_early: bool, end the search of an image that gained less than 0.01 % in a tenth of the steps.
        bounds: pair, the range of pixels, see Attack.

    Call: see Attack.
    """

    epsilon: float | None = None
    _: dataclasses.KW_ONLY
    steps: int = 100
    step_size: float = 0.01
    initial_const: float = 1e-5
    largest_const: float = 20.0
    const_factor: float = 2.0
    decrease_factor: float = 0.9
    smallest_limit: float = 1 / 256
    confidence: float = 0.0
    abort_early: bool = True
    bounds: tuple = (0.0, 1.0)
    norm: str = dataclasses.field(default="linf", init=False)

    def __post_init__(self):
        self.check_settings(
            above_0=("initial_const", "largest_const", "smallest_limit"),
            at_least_0=("step_size", "confidence", "epsilon"),
            counts=("steps",),
        )
        checks.number("const_factor", self.const_factor, 1, without=(1,))
        checks.number("decrease_factor", self.decrease_factor, 0, 1, without=(0, 1))

    def cost(self, change, limit):
        return ops.sum(ops.relu(ops.abs(change) - per_image(limit)), axis=(1, 2, 3))

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not len(x):
            return x
        best, smallest = x.copy(), np.full(len(x), np.inf)
        const, limit = np.full(len(x), float(self.initial_const)), np.ones(len(x))
        running = np.ones(len(x), bool)
        while running.any():
            found, cost = self.search(objective, best, x, y, const, limit, running, targeted)
            size = np.abs(found - x).max(axis=(1, 2, 3)) / self.unit(x)
            better = running & np.isfinite(cost) & (size < smallest)
            best[better], smallest[better] = found[better], size[better]
            limit[better] = np.minimum(limit, size)[better] * self.decrease_factor
            const[~better] *= self.const_factor
            running &= (limit > self.smallest_limit) & (const < self.largest_const)
        self.check_result(objective, x, best, y, targeted)
        return self.cut(x, best)
