"""Search over pixels by Adam, for perturbations that change the class and cost little."""

import numpy as np
from keras import ops

from keras_capsvit import autodiff
from keras_capsvit.attacks.adam import adam
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.borders import lead
from keras_capsvit.attacks.examine import NOT_FINITE
from keras_capsvit.attacks.losses import margin_and_scores
from keras_capsvit.attacks.norms import NORMS, per_image

# Pixels on the bounds would be infinitely far away in the space that is searched.
_INSIDE = 0.999999
LOOKS = 10  # per search, to see whether an image still gains


class PixelSearch(Attack):
    """Base of Carlini and Wagner's attacks: minimise ``cost(x' - x) + c max(0, margin(x') + confidence)`` by Adam.

    The search runs over ``w``, where ``x'`` is ``tanh w`` scaled to the bounds. The margin is by how much the own class
    leads (targeted: the wanted one lags). Subclasses define ``cost``, and ``nearest``, which calls
    ``search`` with different ``c``.
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

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not (len(x) and self.moves):
            return x
        result = self.nearest(objective, x, y, targeted)
        self.check_result(objective, x, result, y, targeted)
        return self.cut(x, result)

    @property
    def moves(self):
        """Whether images may change at all."""
        return True

    def nearest(self, objective, x, y, targeted):
        """The nearest images that succeed, a float32 array ``(b, H, W, C)``; where none does, the image itself."""
        raise NotImplementedError

    def search(self, objective, start, x, y, const, limit, running, targeted):
        """One search, of the images that are ``running (b,)``; the others only stay in the batch.

        Returns:
            NumPy arrays: the cheapest images that succeed, and what they cost, infinite where none does.
        """
        rows = (array.astype("float32") for array in (const, limit, running))
        settings = np.float32([-1 if targeted else 1, self.step_size, self.confidence, self.unit(x)])
        result = self.compiled(objective, "_search")(start, x, y, *rows, np.int32(self.steps), settings, self.limits(x))
        images, cost = (np.array(ops.convert_to_numpy(array)) for array in result)
        if np.isnan(cost).any():
            raise ValueError(NOT_FINITE)
        return images, cost

    def cut(self, x, images):
        """Images whose perturbations are cut to the ball and the bounds."""
        if self.epsilon is None:
            return images
        # As NumPy's number, because TensorFlow keeps every Python number that it ever computed with.
        change = NORMS[self.norm].project(ops.convert_to_tensor(images - x), np.float32(self.epsilon))
        return np.clip(x + ops.convert_to_numpy(change), *self.limits(x))

    def _search(self, objective):
        def run(start, x, y, const, limit, running, steps, settings, limits):
            sign, step_size, confidence, unit = (settings[k] for k in range(4))
            middle, half = (limits[1] + limits[0]) / 2, (limits[1] - limits[0]) / 2
            period = (steps + LOOKS - 1) // LOOKS

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
                change, mean, square = adam(i, slope, mean, square)
                w = w - step_size * change * per_image(running)
                return i + 1, w, mean, square, running, last, best, cheapest

            def unfinished(i, w, mean, square, running, *_):
                return ops.logical_and(i < steps, ops.any(running > 0))

            zeros, infinite = ops.zeros_like(x), ops.full_like(const, float("inf"))
            state = (0 * steps, pixels(start), zeros, zeros, running, infinite, x, infinite)
            *_, best, cheapest = ops.while_loop(unfinished, step, state)
            return best, cheapest

        return run
