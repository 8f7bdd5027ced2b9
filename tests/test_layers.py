import keras
import numpy as np
import pytest
import replicas
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import CapsuleLength, CapsuleMask, CapsuleTransform, GraphCapsPool, PrimaryCaps
from keras_capsvit.autodiff import value_and_gradient
from keras_capsvit.layers import CapsuleInitializer, NormalizedConv2D, gaussian_adjacency

rng = np.random.default_rng(0)
IMAGES = rng.uniform(size=(2, 9, 8, 3)).astype("float32")
CAPSULES = rng.normal(size=(2, 3, 4, 5, 6)).astype("float32")
LAYERS = [
    (lambda: PrimaryCaps(5, 4, kernel_size=3, strides=(2, 1), padding="same"), IMAGES, (2, 5, 8, 5, 4)),
    (lambda: PrimaryCaps(2, 3), np.zeros((1, 28, 28, 1), "float32"), (1, 10, 10, 2, 3)),
    (lambda: PrimaryCaps(2, 3, kernel_size=3, batch_norm=True), IMAGES, (2, 4, 3, 2, 3)),
    (lambda: CapsuleTransform(7, kernel_initializer=CapsuleInitializer(3.0, seed=1)), CAPSULES, (2, 3, 4, 5, 7)),
    (lambda: CapsuleTransform(7, shared=True), CAPSULES, (2, 3, 4, 5, 7)),
    (lambda: CapsuleTransform(7, num_capsules=3), CAPSULES, (2, 60, 3, 7)),
    (lambda: CapsuleTransform(7, num_capsules=3, shared=True), CAPSULES, (2, 60, 3, 7)),
    (lambda: GraphCapsPool(7), CAPSULES, (2, 7, 6)),
    (
        lambda: GraphCapsPool(
            7, sigma=2.0, self_loops=True, normalize=True, use_bias=False, kernel_initializer="zeros"
        ),
        CAPSULES,
        (2, 7, 6),
    ),
    (CapsuleLength, CAPSULES, (2, 3, 4, 5)),
    (CapsuleMask, CAPSULES[:, 0, 0], (2, 5, 6)),
    (
        lambda: NormalizedConv2D(
            keras.layers.Conv2D(4, 3, strides=2, data_format="channels_last"), keras.layers.BatchNormalization()
        ),
        IMAGES,
        (2, 4, 3, 4),
    ),
]


@pytest.mark.parametrize(("make", "x", "shape"), LAYERS)
def test_shapes_config_and_mixed_precision(make, x, shape):
    layer = make()
    y = layer(x)
    assert y.shape == shape
    assert layer.compute_output_spec(keras.KerasTensor(x.shape)).shape == shape
    twin = keras.layers.deserialize(keras.layers.serialize(layer))
    assert twin.get_config() == layer.get_config()
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(twin(x), y)

    half = type(layer).from_config({**twin.get_config(), "dtype": "mixed_float16"})
    half.build(x.shape)
    half.set_weights(layer.get_weights())
    np.testing.assert_allclose(ops.cast(half(x), "float32"), y, atol=2e-2)


def test_primary_capsules_are_the_squashed_convolution():
    layer = PrimaryCaps(5, 4, kernel_size=3)
    y = ops.convert_to_numpy(layer(IMAGES))
    channels = ops.convert_to_numpy(layer.conv(IMAGES)).reshape(*y.shape)
    expected = np.apply_along_axis(replicas.squash, -1, channels.astype("float64"))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_normalised_channels_are_grouped():
    x = np.random.default_rng(1).normal(3, 2, size=(16, 4, 4, 6)).astype("float32")
    layer = PrimaryCaps(2, 3, kernel_size=None, batch_norm=True)
    trained = ops.convert_to_numpy(layer(x, training=True))
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = ((x - mean) / np.sqrt(variance + 1e-5)).reshape(trained.shape)
    np.testing.assert_allclose(trained, np.apply_along_axis(replicas.squash, -1, expected), atol=1e-4)
    np.testing.assert_allclose(layer.norm.moving_mean, 0.1 * mean, rtol=1e-3)  # momentum of 0.9
    evaluated = x - 0.1 * mean
    evaluated = (evaluated / np.sqrt(0.9 + 0.1 * variance + 1e-5)).reshape(trained.shape)
    np.testing.assert_allclose(layer(x), np.apply_along_axis(replicas.squash, -1, evaluated), atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("num_capsules", [None, 3])
def test_transform_is_one_product_per_capsule(shared, num_capsules):
    layer = CapsuleTransform(7, num_capsules=num_capsules, shared=shared)
    y = ops.convert_to_numpy(layer(CAPSULES))
    kernel = ops.convert_to_numpy(layer.kernel)
    flat = CAPSULES.reshape(2, 60, 6)
    for i in range(60):
        w = kernel[0 if shared else i]
        expected = np.tensordot(flat[:, i], w, axes=1)  # (b, e) or (b, j, e)
        np.testing.assert_allclose(
            y.reshape(2, 60, *y.shape[-1 - (num_capsules is not None) :])[:, i], expected, atol=1e-5
        )


def test_transform_initial_scale_counts_the_capsule_dimension_only():
    layer = CapsuleTransform(16, kernel_initializer=CapsuleInitializer(2.0, seed=0))
    layer.build((None, 6, 6, 32, 8))
    assert abs(np.var(layer.get_weights()[0]) - 2.0 / 8) < 0.01


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_adjacency_is_equation_1(sigma):
    a = gaussian_adjacency(3, 4, sigma)
    np.testing.assert_allclose(a, replicas.adjacency(3, 4, sigma), atol=1e-6)
    np.testing.assert_allclose(gaussian_adjacency(3, 4, sigma, self_loops=True), a + np.eye(12), atol=1e-6)
    degree = a.sum(1)
    np.testing.assert_allclose(
        gaussian_adjacency(3, 4, sigma, normalize=True), a / np.sqrt(np.outer(degree, degree)), atol=1e-6
    )


def test_adjacency_without_neighbours_is_the_identity():
    for normalize in (False, True):
        np.testing.assert_array_equal(gaussian_adjacency(3, 4, 0, normalize=normalize), np.eye(12))
    with pytest.raises(ValueError, match=r"sigma must be a number in .*; received -1"):
        GraphCapsPool(3, sigma=-1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"self_loops": True, "normalize": True},
        {"sigma": 2},
        {"sigma": 2, "normalize": True},
        {"sigma": 2, "self_loops": True},
        {"sigma": 1, "normalize": True, "self_loops": True},
    ],
)
def test_graph_pooling_is_equations_2_to_4(settings):
    layer = GraphCapsPool(7, **settings)
    layer.build(CAPSULES.shape)
    layer.bias.assign(rng.normal(size=7))
    capsules, attention = layer(CAPSULES, return_attention_scores=True)
    a = gaussian_adjacency(3, 4, **{"sigma": 0, **settings}).astype("float64")
    if settings == {"sigma": 2}:
        np.testing.assert_allclose(a, replicas.adjacency(3, 4, 2.0), atol=1e-6)
    kernel, bias = (w.astype("float64") for w in layer.get_weights())
    for i in range(2):
        expected, expected_attention = replicas.graph_pooling(CAPSULES[i].astype("float64"), a, kernel, bias)
        np.testing.assert_allclose(capsules[i], expected, atol=1e-5)
        np.testing.assert_allclose(attention[i], expected_attention, atol=1e-5)


@given(st.integers(0, 2**31), st.floats(0, 3), st.booleans())
def test_attention_sums_to_one_over_the_nodes_of_each_head_and_class(seed, sigma, normalize):
    x = np.random.default_rng(seed).normal(scale=3, size=(1, 3, 4, 2, 6)).astype("float32")
    _, attention = GraphCapsPool(3, sigma=sigma, normalize=normalize)(x, return_attention_scores=True)
    np.testing.assert_allclose(ops.sum(attention, axis=(1, 2)), np.ones((1, 2, 3)), atol=1e-5)


@given(st.permutations(range(12)))
def test_permuting_nodes_and_adjacency_permutes_the_attention(order):
    keras.utils.set_random_seed(0)
    layer = GraphCapsPool(7)
    capsules, attention = layer(CAPSULES, return_attention_scores=True)
    adjacency = gaussian_adjacency(3, 4, layer.sigma)[np.ix_(order, order)]
    layer.spread = lambda scores: ops.matmul(adjacency, scores)
    permuted = CAPSULES.reshape(2, 12, 5, 6)[:, order].reshape(CAPSULES.shape)
    capsules_2, attention_2 = layer(permuted, return_attention_scores=True)
    expected = ops.convert_to_numpy(attention).reshape(2, 12, 5, 7)[:, order]
    np.testing.assert_allclose(ops.convert_to_numpy(attention_2).reshape(2, 12, 5, 7), expected, atol=1e-5)
    np.testing.assert_allclose(capsules_2, capsules, atol=1e-5)


def test_bias_acts_through_the_degrees_only():
    for normalize, sigma, acts in ((False, 1.0, True), (False, 0, False)):
        layer = GraphCapsPool(7, sigma=sigma, normalize=normalize)
        before = ops.convert_to_numpy(layer(CAPSULES))
        layer.bias.assign(np.full(7, 2.0))
        assert (np.abs(ops.convert_to_numpy(layer(CAPSULES)) - before).max() > 1e-3) == acts


@pytest.mark.parametrize(("make", "x", "shape"), LAYERS)
def test_gradient_at_zero_is_finite(make, x, shape):
    layer = make()
    layer.build(x.shape)
    _, gradient = value_and_gradient(layer, layer.variables)(np.zeros_like(x))
    assert np.isfinite(ops.convert_to_numpy(gradient)).all()


def test_mask_chooses_by_label_by_length_and_by_multi_hot():
    capsules = np.array([[[1, 0], [0, 3], [2, 0]]], "float32")
    np.testing.assert_array_equal(CapsuleMask()(capsules), [[[0, 0], [0, 3], [0, 0]]])
    np.testing.assert_array_equal(CapsuleMask()(capsules, np.array([2])), [[[0, 0], [0, 0], [2, 0]]])
    np.testing.assert_array_equal(CapsuleMask()(capsules, np.array([[1, 0, 1]])), [[[1, 0], [0, 0], [2, 0]]])


def test_layers_say_what_they_expect():
    with pytest.raises(ValueError, match=r"CapsuleTransform needs .* received shape \(None, 8\)"):
        CapsuleTransform(4).build((None, 8))
    with pytest.raises(ValueError, match=r"GraphCapsPool needs .* received shape \(None, None, 6, 32, 8\)"):
        GraphCapsPool(4).build((None, None, 6, 32, 8))


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("settings", [{}, {"scale": False}, {"center": False}])
def test_normalized_convolution_is_the_two_layers(use_bias, settings):
    conv = keras.layers.Conv2D(5, 3, padding="same", use_bias=use_bias, data_format="channels_last")
    norm = keras.layers.BatchNormalization(**settings)
    layer = NormalizedConv2D(conv, norm)
    x = keras.random.normal((4, 7, 6, 3), seed=0)
    layer(x)
    for variable in norm.variables + conv.variables:
        variable.assign(variable + 0.5 * keras.ops.abs(keras.random.normal(variable.shape, seed=1)))
    np.testing.assert_allclose(layer(x), norm(conv(x)), atol=2e-5)
    before = ops.convert_to_numpy(norm.moving_mean)
    trained = layer(x, training=True)
    assert np.abs(ops.convert_to_numpy(norm.moving_mean) - before).max() > 1e-3
    np.testing.assert_allclose(trained, norm(conv(x), training=True), atol=2e-5)
    norm.trainable = False  # normalises by the stored statistics, as Keras does
    np.testing.assert_allclose(layer(x, training=True), norm(conv(x)), atol=2e-5)


def test_normalized_convolution_refuses_an_activation():
    with pytest.raises(ValueError, match="without activation; received activation='relu'"):
        NormalizedConv2D(keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.BatchNormalization())


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (CapsuleLength, ("nonsense",), "Expected inputs as an array of numbers; received strings"),
        (CapsuleLength, (np.ones((2, 3), int),), "inputs of floats; received int64. Cast them"),
        (
            lambda: GraphCapsPool(2),
            (CAPSULES[0],),
            r"capsules of shape \(b, h, w, l, d\); received shape \(3, 4, 5, 6\)",
        ),
        (
            lambda: PrimaryCaps(2, 2),
            (IMAGES,),
            r"at least \(9, 9\) pixels, the kernel's; received shape \(2, 9, 8, 3\)",
        ),
        (CapsuleMask, (CAPSULES[:, 0, 0], np.zeros(3, int)), r"one batch; received the shapes .*\(3,\)"),
    ],
)
def test_inputs_that_are_none_are_refused(make, inputs, message):
    with pytest.raises(ValueError, match=message):
        make()(*inputs)


def test_lists_are_arrays():
    np.testing.assert_array_equal(CapsuleLength()(CAPSULES[0].tolist()), CapsuleLength()(CAPSULES[0]))


@pytest.mark.parametrize("wrong", [{}, [], b"zeros", "nonsense", 3])
def test_initialisers_that_are_none_are_refused(wrong):
    for make in (
        lambda: PrimaryCaps(2, 2, kernel_initializer=wrong),
        lambda: GraphCapsPool(2, kernel_initializer=wrong),
    ):
        with pytest.raises(ValueError, match="kernel_initializer must be an initialiser"):
            make()


def test_a_mask_of_labels_that_are_none():
    with pytest.raises(ValueError, match=r"one batch; received the shapes .*\(3,\)"):
        CapsuleMask()(CAPSULES[:, 0, 0], labels=[0, 1, 2])
    with pytest.raises(ValueError, match="labels as an array of numbers"):
        CapsuleMask()(CAPSULES[:, 0, 0], np.array([0, None]))
