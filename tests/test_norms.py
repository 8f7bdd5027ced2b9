"""Norms of attacks: sizes, the steepest steps, balls and their limits. A norm of ``NORMS`` needs its formula here."""

import numpy as np
import pytest
from keras import ops

from keras_capsvit.attacks.norms import NORMS

SIZES = {
    "linf": lambda change: np.abs(change).max(axis=(1, 2, 3)),
    "l2": lambda change: np.sqrt(np.square(change).sum(axis=(1, 2, 3))),
    "l1": lambda change: np.abs(change).sum(axis=(1, 2, 3)),
}
FAR = np.float32([-100, 100])


def drawn(seed, scale=1.0):
    return np.random.default_rng(seed).normal(scale=scale, size=(4, 5, 3, 2)).astype("float32")


def products(a, b):
    return (a * b).sum(axis=(1, 2, 3))


def dual(norm, gradients):
    return ops.convert_to_numpy(norm.dual(gradients[:, None]))[:, 0]


@pytest.mark.parametrize("name", NORMS)
def test_no_step_of_norm_1_raises_a_linear_loss_more(name):
    norm, size, gradient = NORMS[name], SIZES[name], drawn(0)
    direction = ops.convert_to_numpy(norm.direction(gradient))
    np.testing.assert_allclose(size(direction), 1, rtol=1e-5)
    np.testing.assert_allclose(norm.size(gradient), size(gradient), rtol=1e-5)
    np.testing.assert_allclose(products(gradient, direction), dual(norm, gradient), rtol=1e-5)
    for seed in range(1, 20):
        step = drawn(seed)
        assert (products(gradient, step) / size(step) < dual(norm, gradient)).all()


@pytest.mark.parametrize("name", NORMS)
def test_images_come_back_to_the_closest_point_of_the_ball(name):
    norm, size, x = NORMS[name], SIZES[name], drawn(0)
    images = x + drawn(1, scale=0.5)
    within = ops.convert_to_numpy(norm.region(x, 60.0, FAR)(images))
    np.testing.assert_allclose(within, images, atol=1e-5)
    epsilon = 0.1 * size(images - x).min()
    back = ops.convert_to_numpy(norm.region(x, epsilon, FAR)(images))
    np.testing.assert_allclose(size(back - x), epsilon, rtol=1e-4)
    # The rest of the way is as steep as any there: no point of the ball lies further along it.
    rest = images - back
    np.testing.assert_allclose(products(rest, back - x), epsilon * dual(norm, rest), rtol=1e-3)


@pytest.mark.parametrize("name", NORMS)
def test_images_stay_within_limits(name):
    x = drawn(0).clip(-0.5, 0.5)
    images = ops.convert_to_numpy(NORMS[name].region(x, 2.0, np.float32([-0.5, 0.5]))(x + drawn(1)))
    assert np.abs(images).max() <= 0.5
    assert (SIZES[name](images - x) <= 2 + 1e-4).all()


@pytest.mark.parametrize("name", [name for name, norm in NORMS.items() if hasattr(norm, "random")])
def test_random_points_fill_the_ball(name):
    size = SIZES[name](NORMS[name].random(np.random.default_rng(0), (2000, 1, 2, 2), 0.5))
    assert size.max() <= 0.5 + 1e-6
    # The share of the volume within a radius r is (r / 0.5)^4.
    for radius in (0.3, 0.4, 0.45):
        assert np.mean(size < radius) == pytest.approx((radius / 0.5) ** 4, abs=0.04)
