"""Balls that perturbations lie in, and the steepest step within them."""

import keras
import numpy as np
from keras import ops


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

    def draw(self, shape, epsilon, seed):
        """The same as tensors ``(b, ...)``, by a keras.random.SeedGenerator."""
        return keras.random.uniform(shape, -epsilon, epsilon, seed=seed)


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

    def draw(self, shape, epsilon, seed):
        """The same as tensors ``(b, ...)``, by a keras.random.SeedGenerator."""
        drawn = keras.random.normal(shape, seed=seed)
        drawn = drawn / _length(drawn)
        radius = keras.random.uniform((shape[0],) + (1,) * (len(shape) - 1), seed=seed) ** (1 / np.prod(shape[1:]))
        return epsilon * radius * drawn


class L1:
    """Sum of the changes of all pixels."""

    def dual(self, gradients):
        """What a step of norm 1 changes at most: the largest entries ``(b, k)`` of gradients ``(b, k, ...)``."""
        return ops.max(ops.abs(gradients), axis=_axes(gradients)[1:])

    def size(self, change):
        """Norms ``(b,)`` of changes ``(b, ...)``."""
        return ops.sum(ops.abs(change), axis=_axes(change))


def per_image(values):
    """Values ``(b,)`` in a shape that multiplies images, ``(b, 1, 1, 1)``."""
    return ops.reshape(values, (-1, 1, 1, 1))


def _axes(x):
    return tuple(range(1, len(x.shape)))


def _length(x):
    return ops.sqrt(ops.sum(ops.square(x), axis=_axes(x), keepdims=True))


NORMS = {"linf": Linf(), "l2": L2(), "l1": L1()}
