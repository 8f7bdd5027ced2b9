"""Balls that perturbations lie in, and the steepest step within them."""

import math

import keras
import numpy as np
from keras import ops

_HALVINGS = 30  # of the interval that a threshold lies in
_ROUNDING = 1e-6  # of the largest change


class Linf:
    """Largest change of a pixel."""

    def direction(self, gradient):
        """Step ``(b, ...)`` of norm 1 that raises the loss most: the sign."""
        return ops.sign(gradient)

    def project(self, perturbation, epsilon):
        """The closest perturbation within the ball."""
        return ops.clip(perturbation, -epsilon, epsilon)

    def region(self, x, epsilon, limits):
        """What brings images into the ball around ``x`` and within limits (lowest, highest), a function of them."""
        low, high = ops.maximum(x - epsilon, limits[0]), ops.minimum(x + epsilon, limits[1])
        return lambda images: ops.minimum(ops.maximum(images, low), high)  # quicker than a clip by tensors

    def dual(self, gradients):
        """What a step of norm 1 changes at most: the L1 norms ``(b, k)`` of gradients ``(b, k, ...)``."""
        return ops.sum(ops.abs(gradients), axis=_axes(gradients)[1:])

    def size(self, change):
        """Norms ``(b,)`` of changes ``(b, ...)``."""
        return ops.max(ops.abs(change), axis=_axes(change))

    def random(self, random, shape, epsilon):
        """Perturbations drawn uniformly from the ball, by a NumPy generator."""
        return random.uniform(-epsilon, epsilon, shape)

    def surface(self, random, shape, epsilon):
        """A perturbation of norm ``epsilon``, of the shape of one image, by a NumPy generator."""
        drawn = random.uniform(-1, 1, shape)
        return epsilon * drawn / np.abs(drawn).max()

    def draw(self, shape, epsilon, seed):
        """The same as float32 tensors ``(b, ...)``, by a keras.random.SeedGenerator."""
        return keras.random.uniform(shape, -epsilon, epsilon, dtype="float32", seed=seed)


class L2:
    """Euclidean length of the change of an image."""

    def direction(self, gradient):
        """Step ``(b, ...)`` of norm 1 that raises the loss most; zero where the gradient is."""
        # Scaled by the largest entry first, because squares of small gradients underflow.
        largest = ops.max(ops.abs(gradient), axis=_axes(gradient), keepdims=True)
        scaled = gradient / ops.where(ops.equal(largest, 0), 1.0, largest)
        return scaled / ops.maximum(_length(scaled), 1.0)

    def project(self, perturbation, epsilon):
        """The closest perturbation within the ball."""
        return perturbation * ops.minimum(1.0, epsilon / ops.maximum(_length(perturbation), 1e-12))

    def region(self, x, epsilon, limits):
        """What brings images into the ball around ``x``, then within limits (lowest, highest), a function of them."""
        return lambda images: ops.clip(x + self.project(images - x, epsilon), limits[0], limits[1])

    def dual(self, gradients):
        """What a step of norm 1 changes at most: the L2 norms ``(b, k)`` of gradients ``(b, k, ...)``."""
        return ops.sqrt(ops.sum(ops.square(gradients), axis=_axes(gradients)[1:]))

    def size(self, change):
        """Norms ``(b,)`` of changes ``(b, ...)``."""
        return ops.sqrt(ops.sum(ops.square(change), axis=_axes(change)))

    def random(self, random, shape, epsilon):
        """Perturbations drawn uniformly from the ball, by a NumPy generator."""
        drawn = random.normal(size=shape)
        drawn /= np.sqrt(np.square(drawn).sum(axis=_axes(drawn), keepdims=True))
        radius = random.uniform(size=(shape[0],) + (1,) * (len(shape) - 1)) ** (1 / np.prod(shape[1:]))
        return epsilon * radius * drawn

    def surface(self, random, shape, epsilon):
        """A perturbation of norm ``epsilon``, of the shape of one image, by a NumPy generator."""
        drawn = random.normal(size=shape)
        return epsilon * drawn / np.sqrt(np.square(drawn).sum())

    def draw(self, shape, epsilon, seed):
        """The same as float32 tensors ``(b, ...)``, by a keras.random.SeedGenerator."""
        drawn = keras.random.normal(shape, dtype="float32", seed=seed)
        drawn = drawn / _length(drawn)
        share = keras.random.uniform((shape[0],) + (1,) * (len(shape) - 1), dtype="float32", seed=seed)
        return epsilon * share ** (1 / np.prod(shape[1:])) * drawn


class L1:
    """Sum of the changes of all pixels of an image, as Croce and Hein (2021) go about it."""

    def direction(self, gradient):
        """Step ``(b, ...)`` of norm 1 that raises the loss most: the largest entry, or all that are as large."""
        return self.sparse(gradient, ops.ones_like(gradient[:, 0, 0, 0], "int32"))

    def sparse(self, gradient, count):
        """Step ``(b, H, W, C)`` of norm 1 along the signs of the largest entries, ``count (b,)`` of them, integers."""
        size = ops.reshape(ops.abs(gradient), (-1, math.prod(gradient.shape[1:])))
        rank = ops.clip(size.shape[1] - count, 0, size.shape[1] - 1)
        least = ops.take_along_axis(ops.sort(size, axis=1), rank[:, None], axis=1)[:, 0]
        signs = ops.sign(gradient) * ops.cast(ops.abs(gradient) >= per_image(least), gradient.dtype)
        return signs / ops.maximum(ops.sum(ops.abs(signs), axis=_axes(signs), keepdims=True), 1.0)

    def region(self, x, epsilon, limits):
        """What brings images to the closest point of the ball around ``x`` within limits, a function of them.

        Of changes ``d`` the closest is ``sign(d) clip(|d| - t, 0, r)``, where ``r`` is how far the limits are, for the
        least ``t >= 0`` of which the sum is not above ``epsilon``: halving finds between which kinks ``t`` lies, and
        what is linear there, ``t`` itself.
        """

        def back(images):
            change = images - x
            size, room = ops.abs(change), ops.where(change > 0, limits[1] - x, x - limits[0])
            total = lambda values: ops.sum(values, axis=_axes(x), keepdims=True)  # noqa: E731
            within = lambda t: ops.minimum(ops.maximum(size - t, 0.0), room)  # noqa: E731

            def halve(i, low, high):
                middle = (low + high) / 2
                above = total(within(middle)) > epsilon
                return i + 1, ops.where(above, middle, low), ops.where(above, high, middle)

            largest = ops.max(size, axis=_axes(x), keepdims=True)
            bounds = ops.while_loop(lambda i, *_: i < _HALVINGS, halve, (0, ops.zeros_like(largest), largest))[1:]
            middle = (bounds[0] + bounds[1]) / 2
            free = ops.cast(ops.logical_and(size > middle, size - middle < room), x.dtype)
            full = ops.cast(size - middle >= room, x.dtype) * room
            exact = (total(free * size + full) - epsilon) / ops.maximum(total(free), 1.0)
            t = ops.where(total(within(0.0)) > epsilon, ops.clip(exact, bounds[0], bounds[1]), 0.0)
            inside = within(t)
            # What is 0 but for rounding is 0: APGD counts the entries that changed.
            inside = inside * ops.cast(inside > _ROUNDING * largest, x.dtype)
            # What rounding leaves above epsilon goes, too.
            inside = inside * ops.minimum(1.0, epsilon / ops.maximum(total(inside), 1e-12))
            return ops.clip(x + ops.sign(change) * inside, limits[0], limits[1])

        return back

    def surface(self, random, shape, epsilon):
        """A direction, of the shape of one image, by a NumPy generator; ``region`` finds where it leaves the ball."""
        return random.normal(size=shape)

    def dual(self, gradients):
        """What a step of norm 1 changes at most: the largest entries ``(b, k)`` of gradients ``(b, k, ...)``."""
        return ops.max(ops.abs(gradients), axis=_axes(gradients)[1:])

    def size(self, change):
        """Norms ``(b,)`` of changes ``(b, ...)``."""
        return ops.sum(ops.abs(change), axis=_axes(change))


def per_image(values):
    """Values ``(b,)`` in a shape that multiplies images, ``(b, 1, 1, 1)``."""
    return ops.reshape(values, (-1, 1, 1, 1))


def select(which, images, alternatives):
    """Images ``(b, H, W, C)`` where ``which (b,)``, the others elsewhere; all of them have to be finite."""
    # A product, because TensorFlow chooses between images more slowly.
    mask = per_image(ops.cast(which, images.dtype))
    return images * mask + alternatives * (1 - mask)


def _axes(x):
    return tuple(range(1, len(x.shape)))


def _length(x):
    return ops.sqrt(ops.sum(ops.square(x), axis=_axes(x), keepdims=True))


NORMS = {"linf": Linf(), "l2": L2(), "l1": L1()}
