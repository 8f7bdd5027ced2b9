"""The attacks of Carlini and Wagner: the smallest perturbation, by optimising the pixels."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.attacks.norms import per_image
from keras_capsvit.attacks.pixel_search import LOOKS, PixelSearch

_LARGEST = 1e10  # weight of the classification


@dataclasses.dataclass(frozen=True)
class CarliniWagner(PixelSearch):
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

    def nearest(self, objective, x, y, targeted):
        best, smallest = x.copy(), np.full(len(x), np.inf, "float32")
        zeros = np.zeros(len(x))
        low, high = zeros, np.full(len(x), np.inf)
        const = np.full(len(x), float(self.initial_const))
        for number in range(self.binary_search_steps):
            if self.binary_search_steps >= LOOKS and number == self.binary_search_steps - 1:
                const = np.minimum(high, _LARGEST)  # the last chance of those without any success
            images, distance = self.search(objective, x, x, y, const, zeros, zeros + 1, targeted)
            success = np.isfinite(distance)
            better = distance < smallest
            best[better], smallest[better] = images[better], distance[better]
            low, high = np.where(success, low, const), np.where(success, const, high)
            const = np.minimum(np.where(np.isfinite(high), (low + high) / 2, const * 10), _LARGEST)
        return best


@dataclasses.dataclass(frozen=True)
class CarliniWagnerLinf(PixelSearch):
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

    def nearest(self, objective, x, y, targeted):
        best, smallest = x.copy(), np.full(len(x), np.inf)
        const, limit = np.full(len(x), float(self.initial_const)), np.ones(len(x))
        running = np.ones(len(x), bool)
        while running.any():
            images, cost = self.search(objective, best, x, y, const, limit, running, targeted)
            size = np.abs(images - x).max(axis=(1, 2, 3)) / self.unit(x)
            better = running & np.isfinite(cost) & (size < smallest)
            best[better], smallest[better] = images[better], size[better]
            limit[better] = np.minimum(limit, size)[better] * self.decrease_factor
            const[~better] *= self.const_factor
            running &= (limit > self.smallest_limit) & (const < self.largest_const)
        return best


@dataclasses.dataclass(frozen=True)
class CarliniWagnerBox(PixelSearch):
    """What changes the class anywhere within an L-infinity ball, by the search of Carlini and Wagner (2017b).

    Minimises ``max(0, margin(x') + confidence)`` over ``w``, where ``x'`` is ``tanh w`` scaled to the pixels that lie
    within ``epsilon`` of the image and within bounds, so nothing has to be cut. That is the attack that ART had as its
    L-infinity one up to release 1.6, by Adam instead of a line search. Images without a perturbation that succeeds are
    returned as they were.

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        steps: int >= 1.
        step_size: float >= 0, of Adam, which works on ``w``: tanh 1 is three quarters of the radius.
        confidence: float >= 0, by how much the other class has to lead.
        abort_early: bool, end the search of an image that gained less than 0.01 % in a tenth of the steps.
        bounds: pair, the range of pixels, see Attack.

    Call: see Attack.
    """

    epsilon: float
    _: dataclasses.KW_ONLY
    steps: int = 100
    step_size: float = 0.1
    confidence: float = 0.0
    abort_early: bool = True
    bounds: tuple = (0.0, 1.0)
    norm: str = dataclasses.field(default="linf", init=False)

    def __post_init__(self):
        self.check_settings(at_least_0=("epsilon", "step_size", "confidence"), counts=("steps",))

    def cost(self, change, limit):
        return 0 * limit

    def limits(self, x):
        """Lowest and highest pixels of each image ``(2, b, H, W, C)``."""
        low, high = super().limits(x)
        ends = np.maximum(x - np.float32(self.epsilon), low), np.minimum(x + np.float32(self.epsilon), high)
        return np.stack(ends).astype("float32")

    def unit(self, x):
        low, high = super().limits(x)
        return np.float32(np.mean(high - low))

    @property
    def moves(self):
        return self.epsilon > 0

    def nearest(self, objective, x, y, targeted):
        ones = np.ones(len(x))
        images, cost = self.search(objective, x, x, y, ones, 0 * ones, ones, targeted)
        return np.where(np.isfinite(cost)[:, None, None, None], np.clip(images, *self.limits(x)), x)

    def cut(self, x, images):
        return images  # which are within the ball
