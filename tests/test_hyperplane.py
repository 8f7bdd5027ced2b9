"""The shortest ways to hyperplanes within bounds: against solvers of linear programs, and a slow bisection."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy.optimize import linprog

from keras_capsvit.attacks.hyperplane import CLOSEST

SIZES = {
    "linf": lambda change: np.abs(change).max(),
    "l2": lambda change: np.sqrt(np.square(change).sum()),
    "l1": lambda change: np.abs(change).sum(),
}


def naive(norm, w, gap, lowest, highest):
    """Smallest change ``(n,)`` between ``lowest`` and ``highest`` whose product with ``w`` is ``gap``; None if none."""
    n = len(w)
    if norm == "l2":
        at = lambda rate: np.clip(rate * w, lowest, highest)  # noqa: E731
        below, above = (-1e6, 1e6)
        for _ in range(200):
            middle = (below + above) / 2
            below, above = (below, middle) if at(middle) @ w > gap else (middle, above)
        return at(below) if abs(at(below) @ w - gap) < 1e-6 else None
    # Variables: the change and, above its absolute values, one size for all or one for each.
    size = np.ones((n, 1)) if norm == "linf" else np.eye(n)
    slacks = size.shape[1]
    solution = linprog(
        c=[0] * n + [1] * slacks,
        A_ub=np.block([[np.eye(n), -size], [-np.eye(n), -size]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.concatenate([w, np.zeros(slacks)])[None],
        b_eq=[gap],
        bounds=[*zip(lowest, highest, strict=True), *[(0, None)] * slacks],
    )
    return solution.x[:n] if solution.status == 0 else None


def problems(seed, count, shape, per_channel):
    """Images between limits, some pixels on them; normals, some of their entries zero or equal; and gaps, some out of
    reach."""
    random = np.random.default_rng(seed)
    channels = shape[-1] if per_channel else 1
    low = random.uniform(-2, 0, channels).astype("float32")
    high = low + random.uniform(0.5, 3, channels).astype("float32")
    x = (low + (high - low) * np.clip(random.uniform(-0.3, 1.3, (count, *shape)), 0, 1)).astype("float32")
    x = np.clip(x, low, high)
    w = random.normal(size=(count, *shape)) * random.choice([0, 0.5, 1, 1], (count, *shape))
    w = np.where(random.uniform(size=w.shape) < 0.2, 0.5, w).astype("float32")
    gap = (random.normal(size=count) * np.abs(w).sum(axis=(1, 2, 3)) * random.choice([0.01, 0.3, 2])).astype("float32")
    return x, w, gap, (low, high) if per_channel else (low[0], high[0])


@pytest.mark.parametrize("norm", CLOSEST)
@settings(max_examples=10)
@given(st.integers(0, 10**6), st.booleans())
def test_ways_are_the_shortest(norm, seed, per_channel):
    x, w, gap, limits = problems(seed, 4, (2, 3, 2), per_channel)
    change = ops.convert_to_numpy(CLOSEST[norm](x, w, gap, limits)).astype("float64")
    assert (x + change >= limits[0] - 1e-6).all() and (x + change <= limits[1] + 1e-6).all()
    for n in range(4):
        lowest, highest = ((np.float64(limit) - x[n]).ravel() for limit in limits)
        expected = naive(norm, w[n].ravel().astype("float64"), gap[n], lowest, highest)
        if expected is None:  # out of reach: as near as the bounds allow
            farthest = np.where(w[n].ravel() * gap[n] > 0, highest, lowest) * (w[n].ravel() != 0)
            np.testing.assert_allclose(change[n].ravel(), farthest, atol=1e-5)
        else:
            np.testing.assert_allclose((w[n] * change[n]).sum(), gap[n], atol=2e-5 * np.abs(w[n]).sum())
            assert SIZES[norm](change[n]) == pytest.approx(SIZES[norm](expected), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("norm", CLOSEST)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_ways_do_not_depend_on_the_length_of_the_normal(norm, scale):
    x, w, gap, limits = problems(3, 6, (3, 3, 1), False)
    expected = ops.convert_to_numpy(CLOSEST[norm](x, w, gap, limits))
    change = ops.convert_to_numpy(CLOSEST[norm](x, w * np.float32(scale), gap * np.float32(scale), limits))
    np.testing.assert_allclose(change, expected, atol=1e-5)


@pytest.mark.parametrize("norm", CLOSEST)
def test_without_a_normal_or_a_gap_nothing_changes(norm):
    x, w, gap, limits = problems(4, 6, (3, 3, 1), False)
    for normal, width in ((0 * w, gap), (w, 0 * gap), (0 * w, 0 * gap)):
        np.testing.assert_array_equal(ops.convert_to_numpy(CLOSEST[norm](x, normal, width, limits)), 0 * x)


@pytest.mark.parametrize("norm", CLOSEST)
def test_images_as_large_as_photographs_reach_the_plane(norm):
    random = np.random.default_rng(5)
    x = random.uniform(size=(1, 224, 224, 3)).astype("float32")
    w = random.normal(size=x.shape).astype("float32") * 1e-3
    for gap in (1e-3, 1.0, 50.0):
        change = ops.convert_to_numpy(CLOSEST[norm](x, w, np.float32([gap]), (0.0, 1.0))).astype("float64")
        assert (change * w).sum() == pytest.approx(gap, rel=1e-3)
