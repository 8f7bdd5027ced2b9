"""Signs of what relevance is shared by, sums of what arrives, and the account of what does not."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import as_if_trained

from keras_capsvit import explain
from keras_capsvit.explain.relevance.graph import trace
from keras_capsvit.explain.relevance.intervals import Intervals

pytestmark = pytest.mark.tensorflow
layers = keras.layers


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype("float32")


def input_times_gradient(model, x, target):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        score = model(x)[:, target]
    return (x * tape.gradient(score, x)).numpy()


def relu_branches():
    """Two non-negative maps ``(b, 6, 6, 4)`` of images, without biases."""
    x = keras.Input((8, 8, 3))
    return x, *(layers.Conv2D(4, 3, activation="relu", use_bias=False)(x) for _ in range(2))


# What becomes of non-negative values, of which a sum may be negative or nothing.
JOINED = {
    "difference": lambda a, b: a - b,
    "sum of negatives": lambda a, b: a + (-b),
    "scaled": lambda a, b: a - 0.5 * b,
    "minus clipped": lambda a, b: a + (0 - tf.minimum(b, 6.0)),
    "add_n": lambda a, b: tf.add_n([a, -b, a]),
    "pooled": lambda a, b: tf.nn.avg_pool2d(tf.pad(a - b, ((0, 0), (1, 1), (1, 1), (0, 0))), 2, 2, "SAME"),
    "mean": lambda a, b: tf.reduce_mean(a - b, (1, 2), keepdims=True),
    "sum": lambda a, b: tf.reduce_sum(a - b, 1),
    "bilinear": lambda a, b: tf.cast(tf.image.resize(a - b, (9, 9)), a.dtype),
    "bicubic": lambda a, b: tf.cast(tf.image.resize(a + b, (9, 9), "bicubic"), a.dtype),
    "concatenated": lambda a, b: tf.reduce_sum(tf.concat([a, -b], -1), -1),
    "padded": lambda a, b: tf.reduce_mean(tf.pad(a + b, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0), 1),
}


@pytest.mark.samples(5)
@pytest.mark.parametrize("name", JOINED)
def test_relevance_of_differences_is_input_times_gradient(name, double):
    """With a negligible stabilizer the epsilon rule is that, in networks of ReLUs without biases."""
    x, a, b = relu_branches()
    model = keras.Model(x, [a, b])
    width = int(np.prod(JOINED[name](*model(images(1, 8, 8, 3))).shape[1:]))
    weight = np.random.default_rng(1).normal(size=(width, 3))

    def scores(x):
        return tf.reshape(JOINED[name](*model(x)), (-1, width)) @ tf.constant(weight, x.dtype)

    x = images(2, 8, 8, 3, seed=2).astype("float64")
    function = tf.function(scores, input_signature=[tf.TensorSpec((None, 8, 8, 3), "float64")])
    exact = [("*", rule, {"epsilon": 1e-13}) for rule in ("epsilon", "proportional")]
    maps = explain.LRP(function, [*exact, "epsilon"], channels=True)(x, 1)
    expected = input_times_gradient(scores, x, 1)
    np.testing.assert_allclose(maps, expected, atol=1e-5 * np.abs(expected).max())
    single = explain.LRP(function, "epsilon")(x, 1)  # its own stabilizers are larger, and nothing explodes
    assert np.abs(single).sum() < 1e3 * np.abs(expected).sum()


def test_the_case_of_the_issue():
    x, a, b = relu_branches()
    model = keras.Model(x, layers.Dense(3, use_bias=False)(layers.Flatten()(layers.Subtract()([a, b]))))
    x = images(2, 8, 8, 3)
    maps = explain.LRP(model, "epsilon")(x, 0).sum((1, 2))
    np.testing.assert_allclose(maps, np.asarray(model(x))[:, 0], rtol=1e-3)


OPS = {
    "sub": lambda x: x - 0.5,
    "rsub": lambda x: 1.0 - x,
    "mul": lambda x: x * np.array([-1.0, 2.0, 0.5], "float32"),
    "square": lambda x: x * x,
    "squared": lambda x: tf.square(x - 0.3),
    "divided": lambda x: x / 3.0,
    "reciprocal": lambda x: 1.0 / (x + 2.0),
    "relu6": lambda x: tf.nn.relu6(7 * x - 1),
    "elu": lambda x: tf.nn.elu(3 * x - 2),
    "selu": lambda x: tf.nn.selu(3 * x - 2),
    "leaky": lambda x: tf.nn.leaky_relu(3 * x - 2, 0.3),
    "softplus": lambda x: tf.nn.softplus(3 * x - 2),
    "tanh": lambda x: tf.tanh(3 * x - 2),
    "sigmoid": lambda x: 1 - tf.sigmoid(3 * x),
    "softmax": lambda x: tf.nn.softmax(5 * x),
    "logsoftmax": lambda x: tf.nn.log_softmax(5 * x),
    "exp": lambda x: tf.exp(-x),
    "log": lambda x: tf.math.log(x + 0.5),
    "sqrt": lambda x: tf.sqrt(x),
    "rsqrt": lambda x: tf.math.rsqrt(x + 0.1),
    "abs": lambda x: tf.abs(x - 0.7),
    "neg": lambda x: -x,
    "pow": lambda x: tf.pow(x - 0.5, 2.0),
    "erfc": lambda x: tf.math.erfc(x - 0.5),
    "clip": lambda x: tf.clip_by_value(x, 0.2, 0.4),
    "maximum": lambda x: tf.maximum(x, 0.4),
    "minimum": lambda x: tf.minimum(x, -0.4),
    "pad": lambda x: tf.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))) + 1.0,
    "padded": lambda x: tf.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=-2.0),
    "mirrored": lambda x: tf.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), "REFLECT"),
    "concatenated": lambda x: tf.concat([x, -x], -1),
    "stacked": lambda x: tf.stack([x, 2 * x]),
    "split": lambda x: tf.split(x - 1, 3, -1)[1],
    "chosen": lambda x: tf.where(x > 0.5, x, -1.0),
    "cast": lambda x: tf.cast(tf.cast(300 * x - 20, "int32"), "float32"),
    "flag": lambda x: tf.cast(x > 0.5, "float32"),
    "bicubic": lambda x: tf.image.resize(x, (9, 9), "bicubic"),
    "bilinear": lambda x: tf.image.resize(x - 0.5, (9, 9)),
    "nearest": lambda x: tf.image.resize(x - 0.5, (9, 9), "nearest"),
    "area": lambda x: tf.image.resize(x - 0.5, (2, 2), "area"),
    "average": lambda x: tf.nn.avg_pool2d(x - 0.5, 2, 1, "SAME"),
    "maximal": lambda x: tf.nn.max_pool2d(x - 0.5, 2, 1, "SAME"),
    "mean": lambda x: tf.reduce_mean(x - 0.5, (1, 2)),
    "summed": lambda x: tf.reduce_sum(x - 0.5, (1, 2)),
    "convolved": lambda x: tf.nn.conv2d(x, np.ones((2, 2, 3, 2), "float32"), 1, "SAME"),
    "normal": lambda x: tf.nn.local_response_normalization(x),
}


@pytest.mark.parametrize("name", OPS)
def test_intervals_contain_the_values(name):
    graph = trace(OPS[name], tf.TensorSpec((None, 4, 4, 3), "float32"))
    low, high = Intervals(graph, (0.0, 1.0)).of(graph.outputs[0])
    x = images(50, 4, 4, 3)
    x[0], x[1] = 0, 1
    values = OPS[name](tf.constant(x)).numpy()
    assert low <= values.min()
    assert values.max() <= high


def test_intervals_know_signs():
    positive = ("square", "divided", "relu6", "softplus", "softmax", "exp", "sqrt", "abs", "chosen", "pow", "flag")
    for name in positive:
        graph = trace(OPS[name], tf.TensorSpec((None, 4, 4, 3), "float32"))
        low = Intervals(graph, (0.0, 1.0)).of(graph.outputs[0])[0]
        assert (low >= 0) == (name != "chosen"), name
        assert Intervals(graph).nonnegative(graph.outputs[0]) == (name not in ("chosen", "divided")), name


def test_a_difference_that_is_never_negative_but_by_rounding_is_not_taken_for_non_negative():
    graph = trace(lambda x: x - np.float32(0.1), tf.TensorSpec((None, 3), "float32"))
    assert not Intervals(graph, (0.1, 1.0)).nonnegative(graph.outputs[0])


# The last line of defence.


def test_relevance_that_no_rule_can_make_is_refused(monkeypatch):
    from keras_capsvit.explain.relevance import rules

    monkeypatch.setattr(rules, "RULES", {kind: dict(known) for kind, known in rules.RULES.items()})

    def boom(op, relevances):
        return [1e16 * relevances[0]]

    explain.register_rule("Asinh", boom)
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    explainer = explain.LRP(lambda x: tf.math.asinh(x, name="culprit") @ weight, "epsilon", input_shape=(4,))
    message = r"Expected at most 2e\+12 times .* Most of it was made at Asinh at 'culprit' by rule 'boom': .* arrived"
    with pytest.raises(ValueError, match=message):
        explainer(images(2, 4), 1)
    with pytest.raises(ValueError, match=message):
        explainer(images(2, 4), [[0, 1], [1, 2]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected finite relevance"):
        tf.function(explainer.on_tensors)(tf.constant(images(2, 4)), tf.constant([0, 1]))
    # Gradients may be as large as they are.
    steep = explain.LRP(lambda x: 1e16 * x @ weight, "gradient", input_shape=(4,))(images(2, 4), 1)
    np.testing.assert_allclose(steep, np.tile(1e16 * weight[:, 1], (2, 1)), rtol=1e-5)


def test_bounded_rules_may_not_even_double_it(monkeypatch):
    from keras_capsvit.explain.relevance import engine

    monkeypatch.setattr(engine, "_ROUNDING", 0.9)  # as if more than all arrived
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False, kernel_initializer="ones")])
    with pytest.raises(ValueError, match=r"Expected at most 0.9 times"):
        explain.LRP(model)(images(2, 4), 1)


@pytest.mark.parametrize("rules", ["z_plus", "epsilon", "alpha2_beta1", "gamma", "gradient", "guided_backprop"])
def test_nan_is_refused(rules):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(3)])
    model.layers[0].set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    for target in (1, None):
        with pytest.raises(ValueError, match=r"LRP found NaN or infinite values; expected a model whose .*scores"):
            explain.LRP(model, rules)(images(2, 4), target)


# What does not arrive.


def bias_only():
    """A network whose depthwise neurons have no positive contribution."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
            layers.Flatten(),
            layers.Dense(3, use_bias=False, kernel_initializer="ones", name="fc"),
        ]
    )
    model.layers[0].set_weights([-images(3, 3, 2, 1), np.full(2, 20.0)])
    return model


def test_losing_most_of_the_relevance_is_told_once():
    x = images(2, 6, 6, 2)
    explainer = explain.LRP(bias_only())
    with pytest.warns(UserWarning, match=r"Only 0.0% of .* at DepthwiseConv2dNative at '.*depthwise.*'z_plus'") as told:
        maps = explainer(x, 1)
    assert not maps.any()
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(x, 1)
        explain.LRP(bias_only(), "gradient")(x, 1)
        explain.LRP(bias_only(), stop="depthwise")(x, 1)
        explain.CLRP(bias_only())(x, 1)


@pytest.mark.parametrize("fallback", ["flat", "w_square"])
def test_fallback_of_neurons_without_a_positive_contribution(fallback):
    model, x = bias_only(), images(2, 6, 6, 2)
    rules = [("*", "z_plus", {"fallback": fallback}), "z_plus"]
    targets = np.tile([0, 2], (2, 1))
    maps = explain.LRP(model, rules, channels=True)(x, targets)
    hidden = keras.Model(model.inputs, model.layers[0].output).predict(x, verbose=0)
    weight = model.layers[0].get_weights()[0][..., 0]
    share = np.ones_like(weight) if fallback == "flat" else weight**2
    expected = np.zeros_like(x)
    for i, j in np.ndindex(4, 4):
        expected[:, i : i + 3, j : j + 3] += share / share.sum((0, 1)) * hidden[:, i, None, None, j]
    for k in range(2):  # all weights of the upper layer are 1: relevance of a hidden neuron is its value
        np.testing.assert_allclose(maps[:, k], expected, rtol=1e-4)
    report = explain.LRP(model, rules).report(x, 0)
    for row in report.rows:
        np.testing.assert_allclose(row.passed, row.arrived, rtol=1e-5)
        assert abs(row.lost) <= 1e-4 * abs(row.arrived)


def test_fallback_changes_nothing_where_a_contribution_is_positive():
    keras.utils.set_random_seed(0)
    model = as_if_trained(
        keras.Sequential([keras.Input((8,)), layers.Dense(9, activation="relu"), layers.Dense(3, activation="relu")])
    )
    model.layers[1].set_weights([np.abs(model.layers[1].get_weights()[0]), np.zeros(3)])
    x = images(4, 8) + 0.1
    plain = explain.LRP(model)(x, 1)
    with_fallback = explain.LRP(model, [("*", "z_plus", {"fallback": "flat"}), "z_plus"])(x, 1)
    np.testing.assert_array_equal(with_fallback, plain)
    with pytest.raises(ValueError, match=r"fallback must be one of .*; received 'even'"):
        explain.LRP(model, [("*", "z_plus", {"fallback": "even"}), "z_plus"])(x, 1)


ACCOUNTED = {
    "z_plus": [{}, {"bias": True}, {"fallback": "flat"}],
    "z_box": [{}],
    "alpha_beta": [{}, {"alpha": 1.5, "beta": 0.5}, {"bias": False}],
    "epsilon": [{}, {"epsilon": 0.3}, {"bias": False, "epsilon": 0.1}],
    "gamma": [{}, {"gamma": 1.0, "bias": False}],
    "w_square": [{}, {"bias": True}],
    "flat": [{}],
}


def test_report_accounts_for_the_stabilizers_of_products(double):
    weights = np.random.default_rng(4).normal(size=(8, 3))

    def function(x):
        flat = tf.reshape(x, (-1, 8))
        return tf.linalg.matmul(flat * flat[:, ::-1], weights)

    lrp = explain.LRP(function, [("*", "epsilon", {"epsilon": 0.1})], input_shape=(2, 2, 2))
    rows = [row for row in lrp.report(images(3, 2, 2, 2), 1).rows if row.stabilizer]
    assert {row.rule for row in rows} == {"epsilon", "constant"}
    for row in rows:
        np.testing.assert_allclose(row.passed + row.lost + row.bias + row.stabilizer, row.arrived, rtol=1e-6)


@pytest.mark.samples(3)
@pytest.mark.parametrize("rule", ACCOUNTED)
def test_report_accounts_for_biases_and_stabilizers(rule, double):
    keras.utils.set_random_seed(0)
    model = as_if_trained(
        keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.BatchNormalization(),
                layers.Flatten(),
                layers.Dense(5, activation="relu"),
                layers.Dense(3),
            ]
        )
    )
    x = images(3, 6, 6, 2)
    for settings in ACCOUNTED[rule]:
        box = (0, 1) if rule == "z_box" else None
        where = "input" if rule == "z_box" else "*"
        report = explain.LRP(model, [(where, rule, settings), "epsilon"], input_range=box).report(x, 1)
        rows = [row for row in report.rows if row.rule == rule]
        assert rows
        for row in rows:
            accounted = row.passed + row.lost + row.bias + row.stabilizer
            np.testing.assert_allclose(accounted, row.arrived, rtol=1e-6, atol=1e-9, err_msg=str(row))
        takes = settings.get("bias", rule in ("alpha_beta", "epsilon", "gamma"))
        assert any(row.bias != 0 for row in rows) == takes
    assert f"{rows[0].bias:11.4g}" in str(report)
    assert "stabilizer" in str(report)


def test_bias_of_the_report_is_the_formula():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=True), layers.Dense(2, use_bias=False)])
    model.set_weights([np.array([[2.0], [1.0]]), np.array([3.0]), np.array([[1.0, 5.0]])])
    row = explain.LRP(model, "epsilon").report(np.array([[1.0, 2.0]]), 1).rows[-1]
    # y = 2 + 2 + 3 = 7, of which relevance 35 arrives; 3/7 of it is the bias's.
    np.testing.assert_allclose([row.arrived, row.passed, row.bias], [35, 20, 15], rtol=1e-5)


# Average pooling.


@pytest.mark.parametrize("pooling", ["GlobalAveragePooling2D", "whole", "part"])
def test_even_global_average_pooling_is_told(pooling):
    pool = {
        "whole": lambda: layers.AveragePooling2D(6),
        "part": lambda: layers.AveragePooling2D(3),
    }.get(pooling, layers.GlobalAveragePooling2D)()
    body = [layers.Conv2D(4, 3, activation="relu"), pool, layers.Flatten(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *body])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        explain.LRP(model, "thesis", input_range=(0, 1))
        explain.LRP(model, input_range=(0, 1))
    assert len(told) == (pooling != "part")
    for warning in told:
        assert "Rule 'even' spreads relevance over the whole map" in str(warning.message)
        assert "Take rules='z_plus'" in str(warning.message)
        assert warning.filename == __file__
