import functools

import keras
import numpy as np
import pytest
import replicas
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit.autodiff import value_and_gradient
from keras_capsvit.layers import (
    CapsuleTransform,
    DynamicRouting,
    EMRouting,
    SelfRouting,
    TopKGraphPool,
    TrainableRouting,
    UniformRouting,
    votes_bytes,
)

rng = np.random.default_rng(0)
VOTES = rng.normal(scale=0.5, size=(2, 6, 3, 4)).astype("float32")
POSES = rng.normal(size=(2, 6, 5)).astype("float32")
ACTIVATIONS = rng.uniform(0.1, 0.9, size=(2, 6)).astype("float32")
ROUTINGS = {
    "uniform": (UniformRouting, ()),
    "dynamic": (DynamicRouting, ()),
    "rolled": (lambda **kw: DynamicRouting(2, rolled=True, **kw), ()),
    "linear": (lambda **kw: DynamicRouting(squash=False, **kw), ()),
    "trainable": (TrainableRouting, ()),
    "em": (EMRouting, (ACTIVATIONS,)),
    "self": (lambda **kw: SelfRouting(3, **kw), (POSES, ACTIVATIONS)),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_shapes_config_and_mixed_precision(name):
    make, per_input = ROUTINGS[name]
    layer = make()
    capsules, coupling = layer(VOTES, *per_input, return_coupling=True)
    assert capsules.shape == (2, 3, 4) and coupling.shape == (2, 6, 3)
    np.testing.assert_array_equal(layer(VOTES, *per_input), capsules)
    spec = layer.compute_output_spec(keras.KerasTensor(VOTES.shape), *per_input, return_coupling=True)
    assert [each.shape for each in spec] == [(2, 3, 4), (2, 6, 3)]
    twin = keras.layers.deserialize(keras.layers.serialize(layer))
    assert twin.get_config() == layer.get_config()
    twin(VOTES, *per_input)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(VOTES, *per_input), capsules)
    for dtype in ("mixed_float16", "mixed_bfloat16"):
        half = type(layer).from_config({**layer.get_config(), "dtype": dtype})
        assert half(VOTES, *per_input).dtype == keras.DTypePolicy(dtype).compute_dtype
        half.set_weights(layer.get_weights())
        np.testing.assert_allclose(ops.cast(half(VOTES, *per_input), "float32"), capsules, atol=3e-2)


@pytest.mark.parametrize("name", ROUTINGS)
def test_coupling_sums_to_one_over_the_output_capsules(name):
    make, per_input = ROUTINGS[name]
    _, coupling = make()(VOTES, *per_input, return_coupling=True)
    np.testing.assert_allclose(ops.sum(coupling, axis=2), np.ones((2, 6)), atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("rolled", [False, True])
def test_dynamic_routing_is_procedure_1(iterations, rolled):
    capsules, coupling = DynamicRouting(iterations, rolled=rolled)(VOTES, return_coupling=True)
    for k in range(2):
        expected, expected_coupling = replicas.dynamic_routing(VOTES[k].astype("float64"), iterations)
        np.testing.assert_allclose(capsules[k], expected, atol=1e-5)
        np.testing.assert_allclose(coupling[k], expected_coupling, atol=1e-5)


def test_routing_without_squash_is_the_sum_itself():
    capsules = DynamicRouting(2, squash=False)(VOTES)
    expected, _ = replicas.dynamic_routing(VOTES[0].astype("float64"), 2, finish=lambda s: s)
    np.testing.assert_allclose(capsules[0], expected, atol=1e-5)
    uniform = UniformRouting(squash=False)(VOTES)
    np.testing.assert_allclose(uniform, VOTES.sum(1) / 3, atol=1e-5)


def test_one_iteration_is_uniform_routing_and_more_change_the_result():
    uniform, coupling = UniformRouting()(VOTES, return_coupling=True)
    np.testing.assert_allclose(DynamicRouting(1)(VOTES), uniform, atol=1e-6)
    np.testing.assert_allclose(coupling, np.full((2, 6, 3), 1 / 3), atol=1e-7)
    results = [ops.convert_to_numpy(DynamicRouting(k)(VOTES)) for k in (1, 2, 3)]
    assert np.abs(results[1] - results[0]).max() > 1e-3
    assert np.abs(results[2] - results[1]).max() > 1e-3


def test_trainable_routing_is_one_step_with_its_own_logits():
    layer = TrainableRouting()
    np.testing.assert_allclose(layer(VOTES), UniformRouting()(VOTES), atol=1e-6)
    logits = rng.normal(size=(3, 6))
    layer.logits.assign(logits)
    capsules, coupling = layer(VOTES, return_coupling=True)
    expected = np.array([replicas.softmax(row) for row in logits.T])
    np.testing.assert_allclose(coupling[1], expected, atol=1e-6)
    np.testing.assert_allclose(capsules[1], replicas.weighted_sums(expected, VOTES[1]), atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_em_routing_is_procedure_1_of_hinton(iterations):
    layer = EMRouting(iterations, inverse_temperature=2.0)
    layer.build(VOTES.shape, ACTIVATIONS.shape)
    beta_u, beta_a = rng.normal(size=3), rng.normal(size=3)
    layer.beta_u.assign(beta_u)
    layer.beta_a.assign(beta_a)
    capsules, coupling = layer(VOTES, ACTIVATIONS, return_coupling=True)
    for k in range(2):
        poses, activations, used = replicas.em_routing(
            VOTES[k].astype("float64"), ACTIVATIONS[k].astype("float64"), beta_u, beta_a, iterations, 2.0, 1e-4
        )
        expected = activations[:, None] * poses / np.linalg.norm(poses, axis=1, keepdims=True)
        np.testing.assert_allclose(capsules[k], expected, atol=1e-5)
        np.testing.assert_allclose(coupling[k], used, atol=1e-5)


def test_self_routing_is_the_equations_of_hahn():
    layer = SelfRouting(3)
    layer.build(VOTES.shape, POSES.shape, ACTIVATIONS.shape)
    layer.bias.assign(rng.normal(size=(6, 1, 3)))
    kernel, bias = layer.get_weights()
    capsules, coupling = layer(VOTES, POSES, ACTIVATIONS, return_coupling=True)
    for k in range(2):
        poses, activations, expected = replicas.self_routing(VOTES[k], POSES[k], ACTIVATIONS[k], kernel, bias)
        np.testing.assert_allclose(coupling[k], expected, atol=1e-5)
        direction = poses / np.linalg.norm(poses, axis=1, keepdims=True)
        np.testing.assert_allclose(capsules[k], activations[:, None] * direction, atol=1e-5)


def test_self_routing_with_one_vote_for_all_classes():
    layer = SelfRouting(3)
    capsules = layer(VOTES[:, :, :1], POSES, ACTIVATIONS)
    assert capsules.shape == (2, 3, 4)
    np.testing.assert_allclose(capsules, layer(np.repeat(VOTES[:, :, :1], 3, 2), POSES, ACTIVATIONS), atol=1e-5)
    assert layer.compute_output_spec(keras.KerasTensor((None, 6, 1, 4)), None, None).shape == (None, 3, 4)


def test_rolled_backward_pass_holds_the_coupling_constant():
    weights = rng.normal(size=(2, 3, 4)).astype("float32")

    def gradient(route):
        return ops.convert_to_numpy(value_and_gradient(lambda v: route(v) * weights)(VOTES)[1])

    _, coupling = DynamicRouting(3)(VOTES, return_coupling=True)
    constant = DynamicRouting(1)
    held = gradient(lambda v: constant(ops.convert_to_tensor(coupling)[..., None] * v * 3.0))  # 1/M is 1/3
    np.testing.assert_allclose(gradient(DynamicRouting(3, rolled=True)), held, atol=1e-5)
    unrolled = gradient(DynamicRouting(3))
    assert np.abs(unrolled - held).max() > 1e-3  # what rolling leaves out


@functools.cache
def compiled(name):
    make, per_input = ROUTINGS[name]
    layer = make()
    layer(VOTES, *per_input)
    return value_and_gradient(lambda v: layer(v, *per_input))


@given(st.integers(0, 2**31), st.sampled_from(sorted(ROUTINGS)), st.floats(0, 30))
def test_lengths_stay_below_one_and_gradients_finite(seed, name, scale):
    votes = np.random.default_rng(seed).normal(scale=scale, size=VOTES.shape).astype("float32")
    capsules, gradient = compiled(name)(votes)
    assert np.isfinite(ops.convert_to_numpy(gradient)).all()
    if name != "linear":
        assert np.linalg.norm(ops.convert_to_numpy(capsules), axis=-1).max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["em", "self"])
def test_nothing_active_gives_no_nan(name):
    make, per_input = ROUTINGS[name]
    layer = make()
    layer(VOTES, *per_input)
    zeros = [np.zeros_like(each) for each in per_input]
    capsules, gradient = value_and_gradient(lambda v: layer(v, *zeros))(np.zeros_like(VOTES))
    assert np.isfinite(ops.convert_to_numpy(capsules)).all()
    assert np.isfinite(ops.convert_to_numpy(gradient)).all()


def test_top_k_pooling_takes_the_best_nodes():
    capsules = rng.normal(size=(2, 3, 4, 5, 6)).astype("float32")
    layer = TopKGraphPool(7, ratio=0.25, kernel_initializer="glorot_uniform")
    pooled, attention = layer(capsules, return_attention_scores=True)
    kernel, bias = layer.get_weights()
    for k in range(2):
        np.testing.assert_allclose(pooled[k], replicas.top_k_pooling(capsules[k], kernel, bias, 3), atol=1e-5)
    assert (np.count_nonzero(ops.convert_to_numpy(attention), axis=(1, 2)) == 3).all()
    twin = keras.layers.deserialize(keras.layers.serialize(layer))
    assert twin.get_config() == layer.get_config()
    with pytest.raises(ValueError, match=r"ratio must be a number in \(0, 1\]; received 0"):
        TopKGraphPool(7, ratio=0)


def test_matrix_votes_multiply_each_row():
    capsules = rng.normal(size=(2, 5, 9)).astype("float32")
    for shared in (False, True):
        layer = CapsuleTransform(9, num_capsules=4, matrix=True, shared=shared)
        votes = ops.convert_to_numpy(layer(capsules))
        kernel = ops.convert_to_numpy(layer.kernel)  # (i, 3, j, 3)
        for i in range(5):
            for j in range(4):
                expected = capsules[1, i].reshape(3, 3) @ kernel[0 if shared else i, :, j]
                np.testing.assert_allclose(votes[1, i, j], expected.ravel(), atol=1e-5)
    with pytest.raises(ValueError, match="same square number; received 8 and 16"):
        CapsuleTransform(16, num_capsules=2, matrix=True).build((None, 5, 8))


def test_memory_of_the_votes():
    assert votes_bytes(1152, 10, 16, batch_size=64) == 64 * 1152 * 10 * 16 * 4
    layer = CapsuleTransform(16, num_capsules=1000)
    layer.build((None, 4, 8))
    with pytest.raises(ValueError, match=r"votes, of shape \(100000000, 4, 1000, 16\), would take 23841\.9 GiB; this"):
        layer.call(keras.KerasTensor((100_000_000, 4, 8)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DynamicRouting(0), "num_iterations must be an integer from 1 to 1000; received 0"),
        (lambda: EMRouting(0), "num_iterations must be an integer from 1 to 1000; received 0"),
        (lambda: DynamicRouting()(VOTES[0]), r"votes of shape \(b, i, j, e\); received shape \(6, 3, 4\)"),
        (lambda: EMRouting()(VOTES, ACTIVATIONS[:, :4]), r"activations of shape \('batch', 6\).*\(2, 4\)"),
        (lambda: SelfRouting(3)(VOTES, POSES[:, :2], ACTIVATIONS), r"capsules of shape \('batch', 6, 5\)"),
        (lambda: SelfRouting(5)(VOTES, POSES, ACTIVATIONS), "votes for 1 or 5 output capsules"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
