import numpy as np
import pytest
import replicas
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_capsvit import checks
from keras_capsvit.autodiff import value_and_gradient
from keras_capsvit.ops import as_multi_hot, attention_rollout, contributions, reached, safe_norm, squash

vectors = hnp.arrays("float32", (4, 5), elements=st.floats(-1000, 1000, width=32))


@given(vectors)
def test_squash_keeps_direction_and_length_below_one(x):
    y = ops.convert_to_numpy(squash(x)).astype("float64")
    lengths = np.linalg.norm(y, axis=-1)
    assert np.all((lengths >= 0) & (lengths < 1))
    norms = np.linalg.norm(x.astype("float64"), axis=-1)
    np.testing.assert_allclose(y * norms[:, None], x * lengths[:, None], atol=1e-4 * (1 + norms.max()))


@given(vectors)
def test_squash_is_equation_5(x):
    expected = np.array([replicas.squash(row) for row in x.astype("float64")])
    np.testing.assert_allclose(ops.convert_to_numpy(squash(x)), expected, atol=1e-5)


def test_squash_along_another_axis():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(squash(x, axis=1), np.swapaxes(squash(np.swapaxes(x, 1, 2)), 1, 2), atol=1e-6)


@pytest.mark.parametrize("function", [lambda x: safe_norm(x), lambda x: ops.sum(squash(x), axis=-1)])
def test_gradient_is_zero_at_zero_and_finite_everywhere(function):
    x = np.array([[0, 0, 0], [1e-30, 0, 0], [1e-10, 1e-10, 0], [3, 4, 0]], "float32")
    _, gradient = value_and_gradient(function)(x)
    gradient = ops.convert_to_numpy(gradient)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0], 0)


def test_norm_is_exact_and_its_gradient_is_the_direction():
    values, gradient = value_and_gradient(safe_norm)(np.array([[3, 4], [0, -2]], "float32"))
    np.testing.assert_allclose(values, [5, 2], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.6, 0.8], [0, -1]], atol=1e-6)


def test_half_precision_does_not_under_or_overflow():
    x = np.array([[1e-4, 0], [300, 400]], "float16")
    np.testing.assert_allclose(safe_norm(x), [1e-4, 500], rtol=1e-3)
    squashed = squash(x)
    assert ops.convert_to_numpy(squashed).dtype == "float16"
    np.testing.assert_allclose(ops.convert_to_numpy(squashed)[1], [0.6, 0.8], atol=1e-3)


def test_multi_hot_of_ids_and_of_multi_hot():
    expected = [[0, 0, 1], [1, 0, 0]]
    for labels in ([2, 0], [[2], [0]], expected):
        np.testing.assert_array_equal(as_multi_hot(np.array(labels), 3), expected)
    with pytest.raises(ValueError, match=r"multi-hot of shape \(batch, 3\); received shape \(2, 4\)"):
        as_multi_hot(np.zeros((2, 4)), 3)
    with pytest.raises(ValueError, match=r"class ids between 0 and 2; received values between 0 and 3"):
        as_multi_hot(np.array([0, 3]), 3)


def test_gradient_follows_the_variables(small_model):
    model = small_model()
    x = np.full((1, 12, 12, 1), 0.5, "float32")
    call = value_and_gradient(lambda x: model(x)[:, 0], model.variables)
    before, gradient = call(x)
    assert gradient.shape == x.shape
    assert np.abs(ops.convert_to_numpy(gradient)).max() > 0
    model.set_weights([w * 0.5 for w in model.get_weights()])
    after, _ = call(x)
    np.testing.assert_allclose(after, ops.convert_to_numpy(model(x))[:, 0], rtol=1e-5)
    assert abs(float(after[0]) - float(before[0])) > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squash(np.ones(3), axis=1.5), "axis must be an integer from -1 to 0; received 1.5"),
        (lambda: safe_norm(np.ones(3), axis=2), "axis must be an integer from -1 to 0; received 2"),
        (lambda: safe_norm(np.ones(3, int)), "x of floats; received int64"),
        (lambda: safe_norm(np.ones(3), keepdims="no"), "keepdims must be True or False"),
        (lambda: attention_rollout([], 1), r"attention must be a list of tensors \(b, t, t\).*received \[\]"),
        (
            lambda: attention_rollout([np.ones((1, 3, 3)), np.ones((1, 4, 4))], 1),
            r"same t; received .*\(4, 4\)",
        ),
        (lambda: attention_rollout([np.ones((1, 3, 3))], 3), "prefix must be an integer from 0 to 2; received 3"),
        (lambda: reached([3], [np.ones((1, 3, 3))]), r"some of the 3 tokens; received \[3\]"),
        (
            lambda: contributions(np.ones((2, 3, 4)), np.ones((2, 1, 4, 5))),
            r"Expected votes of sizes \(2, 3, 4\), as those of the weights; received \(2, 1, 4\)",
        ),
        (lambda: as_multi_hot([0], 0), "num_classes must be an integer from 1"),
        (
            lambda: as_multi_hot([0] * 8, 2**31 - 1),
            r"Multi-hot labels.* would take 64.0 GiB",
        ),
    ],
)
def test_what_is_none_is_refused(call, message, monkeypatch):
    monkeypatch.setattr(checks.settings, "_physical_memory", lambda: 16 * 2**30)
    with pytest.raises(ValueError, match=message):
        call()
