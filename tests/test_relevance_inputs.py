"""Relevance on models as people bring them: inputs, outputs, names, formats, and grouped convolutions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_capsvit import explain, serving

pytestmark = pytest.mark.tensorflow
layers, ops = keras.layers, keras.ops


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype("float32")


def difference(result, expected):
    return np.abs(result - expected).max() / np.abs(expected).max()


# One output z is the logits [-z, z].


@pytest.fixture(scope="module")
def two_classes():
    """Models with one sigmoid output, one plain one, and their twin with two logits."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    hidden = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(x))
    sigmoid, plain, two = layers.Dense(1, activation="sigmoid"), layers.Dense(1), layers.Dense(2)
    result = [keras.Model(x, head(hidden)) for head in (sigmoid, plain, two)]
    weight, bias = sigmoid.get_weights()[0], np.array([0.3], "float32")
    for head in (sigmoid, plain):
        head.set_weights([weight, bias])
    two.set_weights([np.concatenate([-weight, weight], 1), np.concatenate([-bias, bias])])
    return result


EXPLAINERS = {
    "z_plus": explain.LRP,
    "epsilon": lambda model: explain.LRP(model, "epsilon"),
    "gradient": lambda model: explain.LRP(model, "gradient", channels=True),
    "others": explain.CLRP,
    "negated": lambda model: explain.CLRP(model, "negated"),
    "guided": explain.GuidedBackprop,
}


@pytest.mark.samples(2)
@pytest.mark.parametrize("name", EXPLAINERS)
def test_one_output_is_two_classes(two_classes, name):
    x = images(4, 8, 8, 3)
    *single, twin = map(EXPLAINERS[name], two_classes)
    for target in (0, 1, None, [[0, 1]] * 4):
        expected = twin(x, target)
        for explainer in single:
            assert difference(explainer(x, target), expected) <= 1e-5
    if name == "epsilon":
        np.testing.assert_allclose(single[0](x, 0), -single[0](x, 1), rtol=1e-6)
    np.testing.assert_array_equal(single[0].predicted(x), twin.predicted(x))
    with pytest.raises(ValueError, match="between 0 and 1; received values between 2 and 2"):
        single[0](x, 2)


# Scores before what squashes them.

WEIGHT = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")


def _old_logsumexp(z):
    """tf.reduce_logsumexp as SavedModels of TensorFlow 2.18 have it."""
    largest = tf.reduce_max(z, -1, keepdims=True)
    largest = tf.raw_ops.Select(condition=tf.math.is_finite(largest), x=largest, y=tf.zeros_like(largest))
    largest = tf.stop_gradient(largest)
    return tf.math.log(tf.reduce_sum(tf.exp(z - largest), -1, keepdims=True)) + largest


TAILS = {
    "softmax": tf.nn.softmax,
    "keras": lambda z: ops.softmax(z, axis=1),
    "temperature": lambda z: 3.0 * tf.nn.softmax(z),
    "log": lambda z: tf.math.log(tf.nn.softmax(z) + 1e-7),
    "clipped": lambda z: tf.clip_by_value(tf.nn.softmax(z), 1e-7, 1.0),
    "log_softmax": lambda z: ops.log_softmax(z),
    "logsumexp": lambda z: z - tf.reduce_logsumexp(z, -1, keepdims=True),
    "keras_logsumexp": lambda z: z - ops.logsumexp(z, axis=-1, keepdims=True),
    "logsumexp of old TensorFlow": lambda z: z - _old_logsumexp(z),
    "written out": lambda z: tf.exp(z) / tf.reduce_sum(tf.exp(z), -1, keepdims=True),
    "centred": lambda z: (
        ops.exp(z - ops.max(z, -1, keepdims=True))
        / ops.sum(ops.exp(z - ops.max(z, -1, keepdims=True)), -1, keepdims=True)
    ),
    "cast": lambda z: tf.cast(tf.cast(tf.nn.softmax(z), "float64"), "float32"),
    "reshaped": lambda z: tf.reshape(tf.nn.softmax(z)[:, None, :], (-1, 4)),
    "squeezed": lambda z: tf.squeeze(tf.nn.softmax(z)[:, None, None], (1, 2)),
    "sigmoid": tf.sigmoid,
    "twice": lambda z: tf.nn.softmax(tf.nn.softmax(z)),
}
CHANGED = {
    "negated": (lambda z: 1 - tf.sigmoid(z), "Sub at 'sub' after Sigmoid"),
    "weighted": (lambda z: tf.nn.softmax(z) * np.arange(1, 5, dtype="float32"), "Mul at 'mul' after Softmax"),
    "loss": (lambda z: -tf.nn.log_softmax(z), "Neg at 'Neg' after LogSoftmax"),
    "other axis": (lambda z: tf.nn.softmax(z, axis=0), "Transpose at 'transpose_1' after Softmax"),
}


def scores(x):
    return tf.reshape(x, (-1, 12)) @ WEIGHT


@pytest.mark.parametrize("name", TAILS)
def test_relevance_starts_before_what_squashes(name):
    x = images(2, 2, 2, 3)
    explainer = explain.LRP(lambda x: TAILS[name](scores(x)), input_shape=(2, 2, 3))
    assert explainer.report().start == "matmul:0"
    np.testing.assert_array_equal(explainer(x, 1), explain.LRP(scores, input_shape=(2, 2, 3))(x, 1))


@pytest.mark.parametrize("name", CHANGED)
def test_probabilities_that_are_changed_are_refused(name):
    function, message = CHANGED[name]
    with pytest.raises(
        ValueError, match=f"Expected class scores, or probabilities .* found {message}.* Pass as start="
    ):
        explain.LRP(lambda x: function(scores(x)), input_shape=(2, 2, 3))


def test_softmax_inside_of_models():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4), layers.Softmax()])
    x = keras.Input((8, 8, 3))
    nested = keras.Model(x, layers.Activation("linear")(inner(x)))

    class Subclassed(keras.Model):
        def call(self, x):
            return ops.softmax(inner.layers[1](ops.reshape(x, (-1, 192))))

    expected = explain.LRP(keras.Sequential([keras.Input((8, 8, 3)), *inner.layers[:2]]))(images(2, 8, 8, 3), 1)
    for model in (inner, nested, Subclassed()):
        relevance = explain.LRP(model, input_shape=(8, 8, 3))(images(2, 8, 8, 3), 1)
        np.testing.assert_allclose(relevance, expected, atol=1e-7)
    maps = explain.LRP(
        lambda x: tf.squeeze(tf.nn.softmax(tf.reduce_mean(x @ WEIGHT[:3], (1, 2), keepdims=True)), (1, 2)),
        input_shape=(8, 8, 3),
    )
    assert maps.report().start == "Mean:0"


# Several inputs and outputs.


@pytest.fixture(scope="module")
def two_inputs():
    keras.utils.set_random_seed(0)
    x, meta = keras.Input((4, 4, 3), name="images"), keras.Input((2,), name="meta")
    joined = layers.Concatenate()([layers.Flatten()(x), layers.Dense(4, activation="relu")(meta)])
    return keras.Model([x, meta], layers.Dense(3, name="head")(joined))


@pytest.mark.long
def test_fixed_inputs_are_batched_and_broadcast(two_inputs, tmp_path):
    x, rows = images(5, 4, 4, 3), images(5, 2, seed=1)
    weight = two_inputs.get_layer("head").get_weights()[0][:48, 1].reshape(4, 4, 3)
    expected = (x * weight).sum(-1)  # of the epsilon rule, whatever the other input
    two_inputs.export(tmp_path, verbose=False)
    for model in (two_inputs, tmp_path):
        for size in (2, 8):
            maps = explain.LRP(model, "epsilon", fixed={"meta": rows}, batch_size=size)(x, 1)
            np.testing.assert_allclose(maps, expected, atol=1e-4)
        by_row = explain.LRP(model, fixed={"meta": rows}, batch_size=2)(x)
        for i in range(5):
            for row in (rows[i], rows[i : i + 1]):
                explainer = explain.LRP(model, fixed={"meta": row})
                np.testing.assert_allclose(explainer(x[i : i + 1])[0], by_row[i], atol=1e-6)
        several = explain.LRP(model, fixed={"meta": rows})(x, np.tile([0, 1, 2], (5, 1)))
        np.testing.assert_allclose(several[:, 2], explain.LRP(model, fixed={"meta": rows})(x, 2), atol=1e-6)
        with pytest.raises(ValueError, match=r"fixed\['meta'\] to have one row for each of 5 images.* received 3 rows"):
            explain.LRP(model, fixed={"meta": rows[:3]})(x)
        with pytest.raises(ValueError, match=r"fixed\['meta'\] of shape \(None, 2\); received \(5, 1\)"):
            explain.LRP(model, fixed={"meta": rows[:, :1]})(x)


def test_fixed_inputs_inside_of_compiled_functions(two_inputs):
    x, row = images(3, 4, 4, 3), images(1, 2, seed=1)
    explainer = explain.LRP(two_inputs, fixed={"meta": row})
    maps = tf.function(explainer.on_tensors)(tf.constant(x), tf.constant([0, 1, 2]))
    np.testing.assert_allclose(maps, explainer(x, [0, 1, 2]), atol=1e-6)
    with pytest.raises(ValueError, match="one row for all; received 3 rows"):
        explain.LRP(two_inputs, fixed={"meta": images(3, 2)}).on_tensors(tf.constant(x), tf.constant([0, 1, 2]))


def test_outputs_by_name_and_index():
    keras.utils.set_random_seed(0)
    x = keras.Input((4, 4, 3))
    first, second = (layers.Dense(n, name=name)(layers.Flatten()(x)) for n, name in ((3, "first"), (2, "second")))
    expected = explain.LRP(keras.Model(x, second))(images(2, 4, 4, 3), 1)

    class Subclassed(keras.Model):
        def call(self, x):
            return list(model(x))

    model = keras.Model(x, [first, second])
    by_key = keras.Model(x, {"b": second, "a": first})
    cases = ((model, "second"), (model, 1), (by_key, "b"), (by_key, 1), (Subclassed(), 1))
    for brought, output in cases:
        maps = explain.LRP(brought, output=output, input_shape=(4, 4, 3))(images(2, 4, 4, 3), 1)
        np.testing.assert_array_equal(maps, expected)
    for brought, listed in ((model, r"\['first', 'second'\]"), (by_key, r"\['a', 'b'\]"), (Subclassed(), r"\[0, 1\]")):
        for output in (None, "third", 2):
            with pytest.raises(ValueError, match=f"output= to name one of the outputs of .*, {listed}; received "):
                explain.LRP(brought, output=output, input_shape=(4, 4, 3))


# Integers.


def test_integer_inputs_are_explained_behind_their_cast():
    keras.utils.set_random_seed(0)
    x, y = keras.Input((4, 4, 3), dtype="uint8"), keras.Input((4, 4, 3))
    body = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    model, twin = (keras.Sequential([each, *body]) for each in (x, y))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), "uint8")
    for rules in ("z_plus", "epsilon", "gradient"):
        maps = explain.LRP(model, rules)(pixels, 1)
        assert maps.any()
        np.testing.assert_allclose(maps, explain.LRP(twin, rules)(pixels.astype("float32"), 1), rtol=1e-5)
    box = explain.LRP(model, input_range=(0, 255))(pixels, 1)
    np.testing.assert_allclose(
        box, explain.LRP(twin, input_range=(0, 255))(pixels.astype("float32"), 1), rtol=1e-4, atol=1e-7
    )
    with pytest.raises(ValueError, match="Expected whole numbers"):
        explain.LRP(model)(pixels / 2, 1)
    with pytest.raises(ValueError, match="Expected input between 0 and 255, its range; received values between"):
        explain.LRP(model)(pixels.astype("int64") + 9, 1)


def test_integers_that_are_not_cast_first_are_refused():
    ids = keras.Input((5,), dtype="int32")
    model = keras.Model(ids, layers.Dense(2)(layers.Flatten()(layers.Embedding(7, 3)(ids))))
    with pytest.raises(ValueError, match=r"of int32 that the model casts to floats first; found \w+ at '.*embedding"):
        explain.LRP(model)
    with pytest.raises(ValueError, match="it does not: no relevance passes Cast at 'rounding'"):
        explain.LRP(lambda x: scores(tf.cast(tf.cast(x, "uint8", name="rounding"), "float32")), input_shape=(2, 2, 3))


def test_pixels_out_of_the_range_are_refused():
    explainer = explain.LRP(scores, input_shape=(2, 2, 3), input_range=(0, 1))
    with pytest.raises(ValueError, match="Expected input between 0 and 1, its range; received values between"):
        explainer(255 * images(2, 2, 2, 3), 1)


# Formats.


@pytest.mark.slow
def test_channels_first():
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)

    def body(order):
        return [
            layers.Conv2D(4, 3, data_format=order),
            layers.BatchNormalization(axis=1 if order == "channels_first" else -1),
            layers.ReLU(),
            layers.MaxPooling2D(2, data_format=order),
            layers.GlobalAveragePooling2D(data_format=order),
            layers.Dense(3),
        ]

    channels_first = keras.Sequential([keras.Input((3, 8, 8)), *body("channels_first")])
    channels_last = keras.Sequential([keras.Input((8, 8, 3)), *body("channels_last")])
    for variable in channels_first.weights:
        variable.assign(
            random.uniform(0.5, 1, variable.shape)
            if "variance" in variable.path
            else random.normal(scale=0.4, size=variable.shape)
        )
    channels_last.set_weights(channels_first.get_weights())
    x = keras.Input((8, 8, 3))
    wrapped = keras.Model(x, channels_first(layers.Permute((3, 1, 2))(x)))
    for rules in ("z_plus", "epsilon", "alpha2_beta1", "gamma"):
        expected = explain.LRP(channels_last, rules)(images(2, 8, 8, 3), 1)
        assert difference(explain.LRP(wrapped, rules)(images(2, 8, 8, 3), 1), expected) <= 1e-5
    pooled = keras.Sequential([keras.Input((3, 8, 8)), *body("channels_first")[3:]])
    for model, op in ((channels_first, "Conv2D"), (pooled, "MaxPool")):
        with pytest.raises(ValueError, match=rf"channels last; the input \(None, 3, 8, 8\) .* as {op} .*Permute"):
            explain.LRP(model)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_refused_and_the_remedy_works(policy):
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), layers.Flatten(dtype=policy), layers.Dense(3, dtype=policy, name="fc")]
    )
    with pytest.raises(ValueError, match=f"received {policy[6:]} at '.*' *. .*set layer.dtype_policy = 'float32'"):
        explain.LRP(model)
    for layer in model.layers:
        layer.dtype_policy = "float32"
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 10):
        weights = model.get_weights()
        model = keras.models.clone_model(model)
        model.set_weights(weights)
    x = images(2, 4, 4, 3)
    expected = (x.reshape(2, -1) @ model.layers[-1].get_weights()[0])[:, 1]
    np.testing.assert_allclose(explain.LRP(model, "epsilon")(x, 1).sum((1, 2)), expected, rtol=1e-4)


# Layers by name.


@pytest.mark.slow
def test_layers_of_nested_and_subclassed_models():
    keras.utils.set_random_seed(0)
    conv = {"activation": "relu", "name": "conv"}
    lower = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(3, 3, **conv), layers.Conv2D(3, 1, name="conv_1")], name="first"
    )
    middle = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(2, 3, **conv)], name="second")
    head = layers.Dense(3, name="fc")
    x = keras.Input((8, 8, 3))
    nested = keras.Model(x, head(layers.GlobalAveragePooling2D()(middle(lower(x)))))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = lower, middle, head

        def call(self, x):
            return self.head(ops.mean(self.second(self.first(x)), (1, 2)))

    x = images(2, 8, 8, 3)
    upper = keras.Sequential([middle, layers.GlobalAveragePooling2D(), head])
    expected = explain.LRP(upper)(np.asarray(lower(x)), 1)
    for model in (nested, Subclassed()):

        def explained(stop, model=model):
            return explain.LRP(model, stop=stop, input_shape=(8, 8, 3), channels=True)(x, 1)

        assert explained("first/conv").shape == (2, 6, 6, 3)
        assert explained("second/conv").shape == (2, 4, 4, 2)
        for stop in ("conv_1", "first/conv_1", "first"):
            np.testing.assert_allclose(explained(stop).sum(-1), expected, atol=1e-6)
        with pytest.raises(ValueError, match=r"received 'conv', .* of several: .*first_1/conv_1, .*second_1/conv_1"):
            explained("conv")
        with pytest.raises(ValueError, match="received 'third/conv'"):
            explained("third/conv")


# Grouped convolutions, also where TensorFlow has no kernels for them.

GROUPED = """
import sys, tempfile, warnings
import keras, numpy as np, tensorflow as tf
from keras_capsvit import explain, serving
warnings.simplefilter("ignore")
keras.config.set_floatx(sys.argv[1])
keras.config.set_dtype_policy(sys.argv[1])
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).uniform(size=(2, 8, 8, 4)).astype(sys.argv[1])
settings = {"activation": "relu", "use_bias": False}
layers = keras.layers
model = keras.Sequential([
    keras.Input((8, 8, 4)), layers.Conv2D(6, 3, groups=2, **settings),
    layers.Conv2D(6, 2, groups=3, dilation_rate=2, **settings), layers.Flatten(), layers.Dense(3, use_bias=False),
])
with tf.GradientTape() as tape:
    pixels = tf.constant(x)
    tape.watch(pixels)
    score = model(pixels)[:, 1]
expected = x * tape.gradient(score, pixels).numpy()
exact = [("*", "epsilon", {"epsilon": 1e-12}), "epsilon"]
maps = explain.LRP(model, exact, channels=True)(x, 1)
assert np.abs(maps - expected).max() <= 1e-5 * np.abs(expected).max(), (maps, expected)
np.testing.assert_allclose(explain.LRP(model)(x, 1).sum((1, 2)), score, rtol=1e-4)
with tempfile.TemporaryDirectory() as folder:
    explainers = {"lrp": explain.LRP(model), "clrp": explain.CLRP(model)}
    serving.export(model, folder, explainers=explainers)
    served = serving.load(folder)
    for name, explainer in explainers.items():
        maps = served.explain(x.astype("float32"), 1, endpoint=name)["maps"]
        np.testing.assert_allclose(maps, explainer(x.astype("float32"), 1), rtol=1e-4, atol=1e-6)
print("done")
"""


@pytest.mark.long
@pytest.mark.parametrize(("onednn", "dtype"), [("0", "float32"), ("1", "float32"), ("0", "float64")])
def test_grouped_convolutions_on_all_machines(onednn, dtype, fresh_process, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    assert fresh_process(GROUPED, dtype).split()[-1] == "done"


def test_endpoints_refuse_nan(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(), layers.Dense(3)])
    model.layers[-1].set_weights([np.full((48, 3), 1e10), np.zeros(3)])
    served = serving.load(serving.export(model, tmp_path, input_range=None, explainers={"lrp": explain.LRP(model)}))
    with pytest.raises(tf.errors.InvalidArgumentError, match="LRP: expected finite relevance"):
        served.explain(1e30 * images(2, 4, 4, 3), 1, endpoint="lrp")  # scores overflow


@pytest.mark.parametrize("kind", [explain.LRP, explain.CLRP, explain.GuidedBackprop])
def test_a_model_of_two_float_types_is_explained_as_that_of_the_smaller(kind):
    """Some keep their last layer in float64."""

    def network(dtype):
        keras.utils.set_random_seed(0)
        images = keras.Input((6, 6, 1))
        x = layers.Flatten()(layers.Conv2D(3, 3, activation="relu")(images))
        return keras.Model(images, layers.Dense(4, dtype=dtype)(x))

    x, twins = np.random.default_rng(0).uniform(size=(3, 6, 6, 1)), [network(dtype) for dtype in ("float32", "float64")]
    twins[1].set_weights(twins[0].get_weights())
    single, double = (kind(model)(x, [0, 3, 1]) for model in twins)
    np.testing.assert_allclose(double, single, rtol=1e-3, atol=1e-5)
    reports = [kind(model).report(x, [0, 3, 1]) for model in twins]
    np.testing.assert_allclose(
        *([row.arrived for row in report.rows if row.kind != "identity"][:2] for report in reports),
        rtol=1e-3,
        atol=1e-5,
    )


def test_scores_that_are_not_on_the_last_axis_are_refused():
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, layers.Reshape((4, 1), name="places")(layers.Dense(4)(layers.Flatten()(images))))
    with pytest.raises(ValueError, match=r"classes on its last axis; this one returns \(None, 4, 1\)"):
        explain.LRP(model)
    assert explain.LRP(model, start="places")(np.ones((2, 8, 8, 1)), 0).shape == (2, 8, 8)


def test_scores_of_several_places_are_explained_together():
    keras.utils.set_random_seed(0)
    images, x = keras.Input((8, 8, 2)), np.random.default_rng(0).uniform(size=(2, 8, 8, 2))
    scores = layers.Conv2D(4, 3)(images)
    together = explain.LRP(keras.Model(images, scores), "epsilon", channels=True)(x, 1)
    pooled = layers.GlobalAveragePooling2D()(scores)
    np.testing.assert_allclose(
        together, 36 * explain.LRP(keras.Model(images, pooled), "epsilon", channels=True)(x, 1), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 1), (1, 4)])
def test_what_was_broadcast_gets_the_sum(shape):
    """On either side of the axis that is repeated."""
    weight, x = images(12, 3, seed=1) - 0.5, images(2, 4, seed=2)
    axis = shape.index(1)

    def repeated(x):
        grid = tf.broadcast_to(tf.reshape(x, (-1, *shape)), (tf.shape(x)[0], *(n if n > 1 else 3 for n in shape)))
        return tf.reshape(grid, (-1, 12)) @ weight

    summed = weight.reshape(*(n if n > 1 else 3 for n in shape), 3).sum(axis)
    maps = [explain.LRP(f, "epsilon", input_shape=(4,))(x, [0, 2]) for f in (repeated, lambda x: x @ summed)]
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_stabilizer_of_sums_follows_their_size(scale):
    weight, x = images(3, 3, seed=1) - 0.5, images(2, 4, 4, 3, seed=2) - 0.5

    def pooled(scale):
        return lambda x: (tf.reduce_mean(x * scale, (1, 2)) / scale) @ weight

    maps = [explain.LRP(pooled(each), input_shape=(4, 4, 3), channels=True)(x, [0, 2]) for each in (scale, 1.0)]
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-6)
