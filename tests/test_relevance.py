"""LRP and CLRP: every rule against its formula, conservation, targets, starts and stops, reports, errors."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import as_if_trained

from keras_capsvit import explain
from keras_capsvit.explain.relevance.rules import RULES

pytestmark = pytest.mark.tensorflow
layers = keras.layers
X = np.random.default_rng(0).uniform(size=(3, 8, 8, 2)).astype("float32")


def cnn(activation=None, biases=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, activation="relu", name="conv1"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Conv2D(6, 3, padding="same", name="conv2"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu2"),
            layers.Flatten(),
            layers.Dense(8, activation="relu", name="fc1"),
            layers.Dense(4, activation=activation, name="fc2"),
        ]
    )
    return as_if_trained(model, biases)


@pytest.fixture(scope="module")
def model():
    return cnn()


# One linear layer, its input of both signs or none negative, as a matrix.

LINEAR = {
    "dense": lambda: layers.Dense(5),
    "convolution": lambda: layers.Conv2D(3, 3, strides=2, padding="same"),
    "grouped": lambda: layers.Conv2D(4, 3, groups=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "transposed": lambda: layers.Conv2DTranspose(3, 2, strides=2),
    "einsum": lambda: layers.EinsumDense("bhwc,wcd->bhd", (None, 3), bias_axes="d"),
}
LOW, HIGH = -1.0, 1.5


def one_layer(kind, normalized):
    keras.utils.set_random_seed(1)
    images = keras.Input((4, 4, 2))
    x = LINEAR[kind]()(layers.Flatten()(images) if kind == "dense" else images)
    if normalized:
        x = layers.BatchNormalization()(x)
    return as_if_trained(keras.Model(images, layers.Flatten()(x)))


def matrix(model):
    """Weights (i, j) and biases (j,) of a model that is affine."""
    size = 4 * 4 * 2
    bias = model.predict(np.zeros((1, 4, 4, 2)), verbose=0)[0].astype("float64")
    return model.predict(np.eye(size).reshape(size, 4, 4, 2), verbose=0) - bias, bias


def shares(name, x, w, b, *, bias):
    """How much of the relevance of j goes to i, (i, j), for one input: the papers' formulas."""
    z = x[:, None] * w
    above, below = np.maximum(z, 0), np.minimum(z, 0)
    plus, minus = (np.maximum(b, 0), np.minimum(b, 0)) if bias else (0, 0)

    def ratio(part, offset):
        return np.divide(part, part.sum(0) + offset, where=part.sum(0) + offset != 0, out=0 * part)

    if name == "z_plus":
        return ratio(above, plus)
    if name == "alpha_beta":
        return 2 * ratio(above, plus) - ratio(below, minus)
    if name == "epsilon":
        total = z.sum(0) + (b if bias else 0)
        return z / (total + 1e-6 * np.where(total >= 0, 1, -1))
    if name == "gamma":
        up = z + 0.25 * above
        down = z + 0.25 * below
        offsets = (b + 0.25 * plus, b + 0.25 * minus) if bias else (0, 0)
        return np.where(z.sum(0) + b > 0, ratio(up, offsets[0]), ratio(down, offsets[1]))
    if name == "z_box":
        return ratio(z - LOW * np.maximum(w, 0) - HIGH * np.minimum(w, 0), 0)
    if name == "w_square":
        return ratio(w**2, 0)
    if name == "flat":
        return ratio((w != 0).astype("float64"), 0)
    raise KeyError(name)


@pytest.mark.samples(2)
@pytest.mark.parametrize(
    ("kind", "normalized"), [*((kind, True) for kind in LINEAR), ("dense", False), ("convolution", False)]
)
def test_rules_are_their_formulas(kind, normalized):
    model = one_layer(kind, normalized)
    w, b = matrix(model)
    x = np.random.default_rng(2).uniform(LOW, HIGH, size=(2, 4, 4, 2)).astype("float32")
    targets = np.tile(np.arange(len(b)), (2, 1))
    scores = model.predict(x, verbose=0)
    rules = {name: rule for name, rule in RULES["linear"].items() if name != "gradient"}
    for name in rules if kind in ("dense", "convolution") else ("alpha_beta", "z_box"):
        bias = (inspect.getfullargspec(rules[name].function).kwonlydefaults or {}).get("bias", False)
        box = (LOW, HIGH) if name == "z_box" else None
        maps = explain.LRP(model, [("*", name), "z_plus"], input_range=box, channels=True)(x, targets)
        for each in range(2):
            expected = (shares(name, x[each].ravel(), w, b, bias=bias) * scores[each]).T
            size = np.abs(expected).max()
            np.testing.assert_allclose(maps[each].reshape(len(b), -1), expected, atol=2e-4 * size, err_msg=name)


def test_dilated_convolution():
    """TensorFlow makes it of a convolution between two moves, so its bias is bypassed as one of no layer."""
    keras.utils.set_random_seed(1)
    images = keras.Input((4, 4, 2))
    model = keras.Model(images, layers.Flatten()(layers.Conv2D(2, 2, dilation_rate=2, use_bias=False)(images)))
    w, b = matrix(model)
    x = np.random.default_rng(2).uniform(LOW, HIGH, size=(1, 4, 4, 2)).astype("float32")
    for name in ("z_plus", "z_box"):
        box = (LOW, HIGH) if name == "z_box" else None
        maps = explain.LRP(model, [("*", name), "z_plus"], input_range=box, channels=True)(x, [list(range(len(b)))])
        expected = (shares(name, x.ravel(), w, b, bias=False) * model.predict(x, verbose=0)[0]).T
        np.testing.assert_allclose(maps[0].reshape(len(b), -1), expected, atol=2e-4 * np.abs(expected).max())


def test_relevance_of_what_was_broadcast_is_the_sum_over_all_places():
    """Of linear functions without biases relevance is the input times the gradient."""
    weights = np.random.default_rng(2).uniform(0.1, 1, size=(4 * 4 * 2, 3)).astype("float32")

    def function(x):
        mean = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
        return tf.reshape(x + 2 * mean, (-1, 32)) @ weights

    x = np.random.default_rng(3).uniform(0.1, 1, size=(2, 4, 4, 2)).astype("float32")
    maps = explain.LRP(function, "epsilon", input_shape=(4, 4, 2), channels=True)(x, 1)
    slope = weights[:, 1].reshape(4, 4, 2)
    np.testing.assert_allclose(maps, x * (slope + 2 * slope.mean(axis=(0, 1))), rtol=1e-4)


def test_flat_is_even_over_the_receptive_field():
    model = one_layer("convolution", False)
    x = np.ones((1, 4, 4, 2), "float32")
    maps = explain.LRP(model, "flat", channels=True)(x, 0)[0]
    score = model.predict(x, verbose=0)[0, 0]
    np.testing.assert_allclose(maps[:3, :3], score / 18, rtol=1e-5)
    assert not maps[3:].any()


# Whole networks.


def test_layers_follow_each_other_as_matrix_products():
    keras.utils.set_random_seed(3)
    model = as_if_trained(
        keras.Sequential([keras.Input((5,)), layers.Dense(6, activation="relu"), layers.Dense(3, activation="softmax")])
    )
    (w1, b1), (w2, b2) = (layer.get_weights() for layer in model.layers)
    x = np.random.default_rng(4).normal(size=(4, 5)).astype("float32")
    for name in ("z_plus", "epsilon", "alpha_beta", "gamma"):
        bias = name != "z_plus"
        maps = explain.LRP(model, name)(x, target=np.tile([0, 1, 2], (4, 1)))
        for i in range(4):
            hidden = np.maximum(x[i] @ w1 + b1, 0)
            upper = shares(name, hidden, w2, b2, bias=bias) * (hidden @ w2 + b2)
            expected = shares(name, x[i], w1, b1, bias=bias) @ upper
            np.testing.assert_allclose(maps[i], expected.T, atol=2e-4 * np.abs(expected).max(), err_msg=name)


@pytest.mark.samples(3)
@pytest.mark.parametrize("rules", ["z_plus", "thesis", "epsilon_plus", "epsilon_gamma_box", "alpha2_beta1"])
def test_relevance_is_conserved_without_biases(rules):
    model = cnn(biases=False)
    maps = explain.LRP(model, rules, input_range=(0, 1))(X, target=2)
    np.testing.assert_allclose(maps.sum((1, 2)), model.predict(X, verbose=0)[:, 2], rtol=1e-4)


def test_relevance_starts_at_the_logit_of_the_predicted_class(model):
    scores = model.predict(X, verbose=0)
    expected = explain.LRP(model)(X, scores.argmax(1))
    np.testing.assert_array_equal(explain.LRP(model)(X), expected)
    after_softmax = explain.LRP(cnn("softmax"))
    assert "/fc2_1/BiasAdd" in after_softmax.report().start
    np.testing.assert_array_equal(after_softmax(X), expected)


@pytest.mark.parametrize("explainer", [explain.LRP, explain.CLRP])
def test_several_targets_are_the_single_ones(model, explainer):
    explainer = explainer(model, input_range=(0, 1), batch_size=2)
    targets = np.array([[0, 1, 3], [2, 2, 1], [3, 0, 0]])
    maps = explainer(X, targets)
    assert maps.shape == (3, 3, 8, 8)
    for k in range(3):
        np.testing.assert_allclose(maps[:, k], explainer(X, targets[:, k]), atol=1e-6 * np.abs(maps).max())
    np.testing.assert_array_equal(explainer(X, targets[:, :1])[:, 0], explainer(X, targets[:, 0]))
    assert explainer(X[:0]).shape == (0, 8, 8)


def test_channels_sum_to_the_map(model):
    with_channels = explain.LRP(model, channels=True)(X, 1)
    assert with_channels.shape == X.shape
    np.testing.assert_allclose(with_channels.sum(-1), explain.LRP(model)(X, 1), atol=1e-7)


def test_gradients_are_gradients(model):
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        score = model(x, training=False)[:, 1]
    expected = tape.gradient(score, x).numpy()
    maps = explain.LRP(model, "gradient", channels=True)(X, 1)
    np.testing.assert_allclose(maps, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("rules", ["guided_backprop", "deconvnet"])
def test_modified_gradients_are_those_of_a_network_with_such_rectifiers(model, rules):
    @tf.custom_gradient
    def rectify(x):
        def back(g):
            return tf.nn.relu(g) * (tf.cast(x > 0, g.dtype) if rules == "guided_backprop" else 1)

        return tf.nn.relu(x), back

    def clone(layer):
        if isinstance(layer, layers.ReLU):
            return layers.Activation(rectify, name=layer.name)
        config = layer.get_config()
        rectified = config.get("activation") == "relu"
        return type(layer).from_config({**config, "activation": rectify} if rectified else config)

    twin = keras.models.clone_model(model, clone_function=clone)
    twin.set_weights(model.get_weights())
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        score = twin(x, training=False)[:, 1]
    expected = tape.gradient(score, x).numpy()
    maps = explain.LRP(model, rules, channels=True)(X, 1)
    np.testing.assert_allclose(maps, expected, atol=1e-5 * np.abs(expected).max())


def test_attention_is_the_formulas_of_attnlrp():
    """Softmax weights times values: Achtibat et al. 2024, Prop. 3.1 and 3.3, in NumPy."""
    random = np.random.default_rng(5)
    a, b = random.normal(size=(4, 3)).astype("float32"), random.normal(size=(4, 6)).astype("float32")
    x = random.normal(size=(2, 4)).astype("float32")

    def model(x):
        values = tf.reshape(x @ b, (-1, 3, 2))
        return tf.squeeze(tf.nn.softmax(x @ a)[:, None] @ values, 1)

    for rules, half in (("attn_lrp", 0.5), ("cp_lrp", 1.0)):
        maps = explain.LRP(model, rules, input_shape=(4,))(x, 1)
        for each in range(2):
            logits, values = x[each] @ a, (x[each] @ b).reshape(3, 2)
            weights = np.exp(logits) / np.exp(logits).sum()
            product = half * weights * values[:, 1]  # divided by and multiplied with their sum, the score
            of_values = np.stack([np.zeros(3), product], axis=1).ravel()
            expected = (x[each][:, None] * b / (x[each] @ b)) @ of_values
            if half < 1:
                of_logits = logits * (product - weights * product.sum())
                expected = expected + (x[each][:, None] * a / logits) @ of_logits
            np.testing.assert_allclose(maps[each], expected, rtol=1e-3, atol=1e-4)


# Contrast.


def test_contrast_to_other_classes_is_the_difference_of_two_passes(model):
    classes = np.tile(np.arange(4), (3, 1))
    scores = model.predict(X, verbose=0)
    by_unit = explain.LRP(model, channels=True)(X, classes) / scores[..., None, None, None]
    others = (by_unit.sum(1) - by_unit[:, 1]) * scores[:, 1, None, None, None] / 3
    expected = np.maximum(0, by_unit[:, 1] * scores[:, 1, None, None, None] - others)
    maps = explain.CLRP(model, channels=True)(X, 1)
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, atol=1e-5 * expected.max())


def test_negated_weights_are_those_of_a_model_whose_last_layer_is_negated(model):
    twin = cnn()
    twin.layers[-1].set_weights([-w for w in model.layers[-1].get_weights()])
    explained, opposite = (explain.LRP(each, channels=True)(X, 1) for each in (model, twin))
    expected = np.maximum(0, explained + opposite)  # the twin's score is the negative one
    maps = explain.CLRP(model, "negated", channels=True)(X, 1)
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, atol=1e-5 * expected.max())


# Rules per layer.


def test_the_first_entry_that_matches_counts(model):
    explainer = explain.LRP(
        model,
        [("conv1", "flat"), ("fc*", "gamma", {"gamma": 0.5}), ("MatMul", "w_square"), ("MaxPool", "winner"), "epsilon"],
        input_range=(0, 1),
    )
    rules = {row.node.split("/")[1]: (row.rule, row.settings) for row in explainer.report().rows}
    assert rules["conv1_1"] == ("flat", {})
    assert rules["conv2_1"] == ("epsilon", {})
    assert rules["fc1_1"] == rules["fc2_1"] == ("gamma", {"gamma": 0.5})


def test_rules_with_the_same_result_agree(model):
    two_zero = [("*", "alpha_beta", {"alpha": 1.0, "beta": 0.0, "bias": False}), "epsilon"]
    np.testing.assert_allclose(explain.LRP(model, two_zero)(X, 1), explain.LRP(model)(X, 1), atol=1e-6)
    named = explain.LRP(model, [("*", "even"), "z_plus"], input_range=(0, 1))(X, 1)
    np.testing.assert_array_equal(named, explain.LRP(model, "thesis", input_range=(0, 1))(X, 1))


def test_box_goes_through_preprocessing():
    keras.utils.set_random_seed(0)
    body = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    inner = keras.Sequential([keras.Input((8, 8, 2)), *body])
    scaled = keras.Sequential([keras.Input((8, 8, 2)), layers.Rescaling(2.0, -1.0), layers.ZeroPadding2D(0), *body])
    expected = explain.LRP(inner, input_range=(-1, 1))(2 * X - 1, 1)
    np.testing.assert_allclose(explain.LRP(scaled, input_range=(0, 1))(X, 1), expected, atol=1e-6)
    per_channel = (np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(explain.LRP(scaled, input_range=per_channel)(X, 1), expected, atol=1e-6)


# From and to neurons between.


def test_relevance_of_and_to_neurons_between(model):
    upper = explain.LRP(model, stop="relu2")(X, 1)
    assert upper.shape == (3, 3, 3, 6)
    features = keras.Model(model.inputs, model.get_layer("fc1").output)
    neurons = explain.LRP(model, start="fc1")(X, 2)
    np.testing.assert_allclose(neurons, explain.LRP(features)(X, 2), atol=1e-7)
    channel = explain.LRP(model, start="relu2", stop="conv1")(X, 3)
    assert channel.shape == (3, 6, 6, 6)
    activations = keras.Model(model.inputs, model.get_layer("relu2").output).predict(X, verbose=0)
    np.testing.assert_allclose(channel.sum((1, 2, 3)), activations[..., 3].sum((1, 2)), rtol=1e-4)
    # Together they are the whole way.
    hidden = explain.LRP(model, stop="fc1")(X, 1)
    values = features.predict(X, verbose=0)
    ratio = np.divide(hidden, values, where=values != 0, out=np.zeros_like(values))
    by_neuron = explain.LRP(model, start="fc1")(X, np.tile(np.arange(8), (3, 1)))
    np.testing.assert_allclose((by_neuron * ratio[..., None, None]).sum(1), explain.LRP(model)(X, 1), atol=1e-6)


def test_contrast_between_neurons(model):
    maps = explain.CLRP(model, "negated", start="fc1")(X, [[0, 1], [2, 3], [4, 5]])
    assert maps.shape == (3, 2, 8, 8)
    assert maps.min() >= 0


# Reports, and weights that change.


def test_report_accounts_for_all_relevance():
    model = cnn(biases=False)
    explainer = explain.LRP(model, input_range=(0, 1))
    plain, audited = explainer.report(), explainer.report(X, 1)
    assert [row.rule for row in plain.rows] == [row.rule for row in audited.rows]
    assert plain.ops["Conv2D"] == plain.ops["MatMul"] == 2
    assert plain.rows[0].arrived is None
    score = model.predict(X, verbose=0)[:, 1].sum()
    np.testing.assert_allclose(audited.rows[0].arrived, score, rtol=1e-5)
    for row in audited.rows:
        np.testing.assert_allclose(row.passed + row.lost, row.arrived, rtol=1e-4)
    assert "Conv2D" in str(plain)
    assert "z_box" in str(audited)


def test_report_finds_what_is_lost():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, use_bias=False, name="fc")])
    model.layers[0].set_weights([-np.ones((3, 2), "float32")])  # nothing positive to share by
    explainer = explain.LRP(model)
    x = np.ones((1, 3), "float32")
    assert not explainer(x, 0).any()
    (row,) = explainer.report(x, 0).rows
    assert (row.arrived, row.passed, row.lost) == (-3, 0, -3)


@pytest.mark.parametrize("kind", [explain.LRP, explain.CLRP, explain.GuidedBackprop])
def test_weights_of_now_are_explained(kind):
    model = cnn()
    explainer = kind(model)
    before, layer = explainer(X, 1), model.layers[0]
    for change in (
        lambda: model.set_weights([0.5 * w for w in model.get_weights()]),
        lambda: layer.kernel.assign_add(np.full(layer.kernel.shape, 0.5, "float32")),
        lambda: fitted(model),
    ):
        change()
        after = explainer(X, 1)
        np.testing.assert_array_equal(after, kind(model)(X, 1))
        assert not np.allclose(after, before)
        assert str(explainer.report()) == str(kind(model).report())
        before = after
    compiled = explainer._engine._compiled
    np.testing.assert_array_equal(explainer(X, 1), before)
    assert explainer._engine._compiled is compiled  # nothing changed, nothing is traced anew


def fitted(model):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, np.zeros(len(X), int), verbose=0)


def test_a_constant_branch_may_be_negative():
    """Relevance does not go there, but what it is added to may become negative, and z+ then has a second part."""
    weight = np.random.default_rng(6).normal(size=(4, 2)).astype("float32")

    def model(x):
        return (tf.nn.relu(x) + tf.stop_gradient(-2.0 * tf.nn.relu(x))) @ weight

    x = np.random.default_rng(7).uniform(size=(3, 4)).astype("float32")
    row = explain.LRP(model, input_shape=(4,)).report(x, 1).rows[0]
    assert row.op == "MatMul"
    np.testing.assert_allclose(row.passed + row.lost, row.arrived, rtol=1e-4)


# Nothing active, and bad input.


def test_nothing_active_gives_zeros(model):
    dead = cnn(biases=False)
    zeros = np.zeros_like(X)
    for rules in ("z_plus", "epsilon", "alpha2_beta1", "gamma", "flat", "attn_lrp"):
        assert np.isfinite(explain.LRP(dead, rules)(zeros, 1)).all()
    for variant in ("others", "negated"):
        assert not explain.CLRP(dead, variant)(zeros, 1).any()


def test_tiny_activations_keep_their_relevance():
    model = cnn(biases=False)
    model.get_layer("conv1").set_weights([1e-12 * w for w in model.get_layer("conv1").get_weights()])
    model.get_layer("bn").set_weights([np.ones(6), np.zeros(6), np.zeros(6), np.ones(6)])
    maps = explain.LRP(model)(X, 1).sum((1, 2))
    np.testing.assert_allclose(maps, model.predict(X, verbose=0)[:, 1], rtol=1e-4)


def test_says_what_is_wrong_with_the_input(model):
    explainer = explain.LRP(model)
    with pytest.raises(ValueError, match=r"shape \(None, 8, 8, 2\); received \(8, 8, 2\)"):
        explainer(X[0])
    with pytest.raises(ValueError, match="between 0 and 3; received values between 4 and 4"):
        explainer(X, 4)
    with pytest.raises(ValueError, match=r"shape \(3,\) or \(3, k\); received shape \(2,\)"):
        explainer(X, [0, 1])
    with pytest.raises(ValueError, match=r"received shape \(\) of float64"):
        explainer(X, 0.5)
    with pytest.raises(ValueError, match="one class per image in a report"):
        explainer.report(X, [[0, 1]] * 3)


def test_says_what_is_wrong_with_the_rules(model):
    for rules, message in (
        ("z_minus", "rules must be one of .*'z_plus'.*; received 'z_minus'"),
        ([("conv1", "z_minus")], r"rule out of \[.*\]; received \('conv1', 'z_minus'\)"),
        ([("conv1", "gamma", {"g": 1})], r"Rule 'gamma' has the settings \['gamma', 'bias'\]; received 'g'"),
        ([("conv9", "gamma")], r"\('conv9', 'gamma'\) of rules .* applies to none. Linear layers there: .*fc2"),
        ("thesis", r"pass input_range=\(lowest, highest\)"),
        ([("input", "z_box"), "epsilon"], r"pass input_range=\(lowest, highest\)"),
    ):
        with pytest.raises(ValueError, match=message):
            explain.LRP(model, rules)
    with pytest.raises(ValueError, match=r"must be \(lowest, highest\) input, .*; received \(1, 0\)"):
        explain.LRP(model, input_range=(1, 0))
    with pytest.raises(ValueError, match="'gradient' makes no use of an input_range"):
        explain.LRP(model, "gradient", input_range=(0, 1))
    with pytest.raises(ValueError, match="needs rules that are linear in relevance"):
        explain.CLRP(model, rules="deconvnet")
    with pytest.raises(ValueError, match=r"variant must be one of \('others', 'negated'\); received 'other'"):
        explain.CLRP(model, "other")
    with pytest.raises(ValueError, match=r"a tap, a layer or a node of the graph; received 'fc7'. Layers: .*fc1_1"):
        explain.LRP(model, start="fc7")
    with pytest.raises(ValueError, match="where relevance starts, to depend on"):
        explain.LRP(model, start="conv1", stop="fc1")


def test_factors_without_a_softmax_share_alike(double):
    random = np.random.default_rng(0)
    x, values, gates = random.uniform(size=(4, 2, 2, 3)), random.uniform(size=(12, 3)), random.uniform(size=(12, 3))

    def gated(x):
        flat = tf.reshape(x, (-1, 12))
        return (flat @ values) * (flat @ gates)

    shared, constant = (
        explain.LRP(gated, [("*", rule), ("*", "epsilon")], input_shape=(2, 2, 3))(x, 1)
        for rule in ("uniform", "constant")
    )
    np.testing.assert_array_equal(constant, shared)
    np.testing.assert_allclose(constant.sum(axis=(1, 2)), np.asarray(gated(x))[:, 1], rtol=1e-4)
