"""Relevance on models of many kinds and families, live and served."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from networks import as_if_trained

from keras_capsvit import AffCapsNet, CapsNet, ConvNetAvg, GraCapsNet, explain, serving, taps
from keras_capsvit.explain.relevance.refusals import UnsupportedOpError

pytestmark = pytest.mark.tensorflow
layers = keras.layers
X = np.random.default_rng(0).uniform(size=(3, 8, 8, 2)).astype("float32")


def images_for(model, n=2):
    return np.random.default_rng(0).uniform(size=(n, *model.input_shape[1:])).astype("float32")


# The same weights in models of different kinds.


def parts():
    keras.utils.set_random_seed(0)
    return [
        layers.Conv2D(6, 3, groups=2, activation="silu", name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.MaxPooling2D(2, name="pool"),
        layers.Flatten(name="flatten"),
        layers.Dropout(0.5, name="dropout"),
        layers.Dense(4, name="fc"),
    ]


class Subclassed(keras.Model):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training) if isinstance(part, layers.Dropout) else part(x)
        return x


@pytest.fixture(scope="module")
def functional():
    return as_if_trained(keras.Sequential([keras.Input((8, 8, 2)), *parts()]))


@pytest.fixture(scope="module")
def expected(functional):
    return explain.LRP(functional, input_range=(0, 1))(X, 1)


@pytest.mark.slow
def test_nested_subclassed_and_functional_models_are_the_same(functional, expected):
    inner = keras.Sequential([keras.Input((8, 8, 2)), *functional.layers[:3]], name="inner")
    images = keras.Input((8, 8, 2))
    x = inner(images)
    for layer in functional.layers[3:]:
        x = layer(x)
    nested = keras.Model(images, x)
    subclassed = Subclassed(functional.layers)
    function = tf.function(
        lambda x: functional(x, training=False), input_signature=[tf.TensorSpec((None, 8, 8, 2), "float32")]
    )
    for model in (nested, function, function.get_concrete_function()):
        np.testing.assert_array_equal(explain.LRP(model, input_range=(0, 1))(X, 1), expected)
    for model in (subclassed, lambda x: functional(x, training=False)):
        maps = explain.LRP(model, input_range=(0, 1), input_shape=(8, 8, 2))(X, 1)
        np.testing.assert_array_equal(maps, expected)


@pytest.mark.slow
@pytest.mark.parametrize("explainer", [explain.LRP, explain.CLRP])
def test_saved_models_are_bit_identical(functional, tmp_path, explainer):
    expected = explainer(functional, input_range=(0, 1))(X, 1)
    functional.export(tmp_path / "keras", verbose=False)
    version = serving.export(functional, tmp_path / "served")
    loaded = tf.saved_model.load(str(version))
    served = serving.load(tmp_path / "served")
    for model in (
        tmp_path / "keras",
        str(tmp_path / "keras"),
        version,
        loaded,
        served,
        loaded.signatures["serving_default"],
    ):
        np.testing.assert_array_equal(explainer(model, input_range=(0, 1))(X, 1), expected)
    np.testing.assert_array_equal(
        explainer(loaded.serve if hasattr(loaded, "serve") else served, input_range=(0, 1), input_shape=(8, 8, 2))(
            X, 1
        ),
        expected,
    )


def test_fixed_batch(functional, expected):
    function = tf.function(functional, input_signature=[tf.TensorSpec((3, 8, 8, 2), "float32")])
    explainer = explain.LRP(function, input_range=(0, 1))
    np.testing.assert_allclose(explainer(X, 1), expected, atol=1e-6)
    np.testing.assert_allclose(explainer(X, [[1, 0]] * 3)[:, 0], expected, atol=1e-6)


def test_several_inputs_and_outputs():
    keras.utils.set_random_seed(0)
    images, extra = keras.Input((8, 8, 2), name="images"), keras.Input((3,), name="extra")
    features = layers.Flatten()(layers.Conv2D(3, 3, activation="relu")(images))
    scores = layers.Dense(4)(layers.Concatenate()([features, extra]))
    model = keras.Model([images, extra], [scores, layers.Dense(2)(features)])
    with pytest.raises(
        ValueError, match=r"leaves \['images', 'extra'\]. Pass the values of all other inputs as fixed="
    ):
        explain.LRP(model)
    value = np.ones((1, 3), "float32")
    with pytest.raises(ValueError, match=r"Expected output= to name one of the outputs of .*, \[0, 1\]; received None"):
        explain.LRP(lambda x: model([x, tf.tile(value, (tf.shape(x)[0], 1))]), input_shape=(8, 8, 2))
    with pytest.raises(ValueError, match=r"fixed=\['other'\]"):
        explain.LRP(model, fixed={"other": value})
    scoring = keras.Model([images, extra], scores)
    fixed = np.tile(value, (3, 1))
    maps = explain.LRP(scoring, fixed={"extra": fixed})(X, 1)
    bound = explain.LRP(lambda x: scoring([x, tf.constant(fixed)]), input_shape=(8, 8, 2))(X, 1)
    np.testing.assert_array_equal(maps, bound)
    of_second_output = explain.LRP(lambda x: model([x, tf.constant(fixed)]), output=1, input_shape=(8, 8, 2))(X)
    assert of_second_output.shape == (3, 8, 8)


# Families of architectures, with small inputs.

APPLICATIONS = keras.applications
FAMILIES = {
    "VGG16": (
        lambda: APPLICATIONS.VGG16(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None),
        True,
    ),
    "AlexNet": (networks.alexnet, True),
    "GoogLeNet": (networks.googlenet, True),
    "ResNet50": (
        lambda: APPLICATIONS.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None),
        True,
    ),
    "InceptionV3": (
        lambda: APPLICATIONS.InceptionV3(weights=None, input_shape=(75, 75, 3), classes=10, classifier_activation=None),
        True,
    ),
    "DenseNet121": (
        lambda: APPLICATIONS.DenseNet121(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None),
        True,
    ),
    "MobileNetV2": (
        lambda: APPLICATIONS.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None),
        False,
    ),
    "EfficientNetB0": (
        lambda: APPLICATIONS.EfficientNetB0(
            weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
        ),
        False,
    ),
    "ConvNeXtTiny": (
        lambda: APPLICATIONS.ConvNeXtTiny(
            weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
        ),
        True,
    ),
}


LARGE = ("ResNet50", "InceptionV3", "DenseNet121", "EfficientNetB0", "ConvNeXtTiny")


@pytest.mark.samples(1)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.long] if name in LARGE else []) for name in FAMILIES]
)
def test_architectures_are_explained(family):
    make, conserves = FAMILIES[family]
    keras.utils.set_random_seed(0)
    model = make()
    for variable in model.weights:
        if variable.name in ("bias", "beta"):
            variable.assign(np.zeros(variable.shape))
    x = images_for(model)
    explainer = explain.LRP(model)
    if conserves:
        scores = np.asarray(model(x))[:, 1]
        np.testing.assert_allclose(explainer(x, 1).sum((1, 2)), scores, rtol=1e-4)
        return
    # Where relevance is missing, it arrived where there was nothing positive to share it by; the report says where.
    report = explainer.report(x, 1)
    lost = sum(row.lost for row in report.rows)
    assert lost != 0
    np.testing.assert_allclose(report.relevance + lost, report.rows[0].arrived, rtol=2e-3)


@pytest.mark.slow
def test_transformer_is_explained_and_its_constants_keep_their_relevance():
    keras.utils.set_random_seed(0)
    model = networks.vit()
    x = images_for(model)
    explainer = explain.LRP(model)
    assert explainer(x).shape == (2, 12, 12)
    report = explainer.report(x, 1)
    joined = next(row for row in report.rows if row.op == "ConcatV2")
    token = explain.LRP(model, stop="tokens")(x, 1)[:, 0].sum()
    np.testing.assert_allclose(joined.arrived - joined.passed, token, rtol=1e-3)


def test_transformer_with_constant_attention_conserves(double):
    keras.utils.set_random_seed(0)
    model = networks.vit()
    for variable in (v for v in model.weights if v.name == "bias"):
        variable.assign(np.zeros(variable.shape))
    x = images_for(model)
    exact = [("*", rule, {"epsilon": 1e-12}) for rule in ("epsilon", "constant", "proportional")]
    explainer = explain.LRP(model, [*exact, "cp_lrp"], stop="tokens")
    assert {row.kind for row in explainer.report().rows} >= {"normalization", "product", "gate"}
    maps = explainer(x, 1)
    assert maps.shape == (2, 10, 8)
    np.testing.assert_allclose(maps.sum((1, 2)), model.predict(x, verbose=0)[:, 1], rtol=1e-4)


# Capsule networks.

CAPSULES = {
    **{
        routing: lambda routing=routing: CapsNet(
            (14, 14, 1), 3, routing=routing, kernel_size=3, filters=6, num_types=2, primary_dim=4, capsule_dim=4
        )
        for routing in ("dynamic", "rolled", "trainable", "uniform", "em", "self")
    },
    "affine": lambda: AffCapsNet((14, 14, 1), 3, kernel_size=3, filters=6, num_types=2, primary_dim=4),
    "graph": lambda: GraCapsNet((14, 14, 1), 3, num_heads=4, primary_dim=4, capsule_dim=6, filters=8),
}


@pytest.mark.samples(3)
@pytest.mark.parametrize("kind", CAPSULES)
def test_capsule_networks_conserve(kind):
    """Coupling times vote: the coupling is a constant, all relevance goes to the votes; these may be negative."""
    keras.utils.set_random_seed(0)
    model = CAPSULES[kind]()
    x = images_for(model)
    explainer = explain.LRP(model, "epsilon")
    np.testing.assert_allclose(explainer(x, 1).sum((1, 2)), model.predict(x, verbose=0)[:, 1], rtol=1e-3)
    assert not [row for row in explainer.report().rows if row.kind == "softmax"]


def test_capsule_networks_are_contrasted():
    keras.utils.set_random_seed(0)
    model = CAPSULES["dynamic"]()
    x = images_for(model)
    contrast = explain.CLRP(model, rules="epsilon")(x, 1)
    assert contrast.min() >= 0
    assert contrast.max() > 0


def test_relevance_of_votes_is_their_share_of_the_class_capsule():
    """With constant coupling c, vote u has of length v the share sum_e s_e c u_e / |s|^2 with s = sum_i c u."""
    keras.utils.set_random_seed(0)
    model = CAPSULES["dynamic"]()
    x = images_for(model)
    votes, coupling, lengths = (np.asarray(t) for t in taps.tap(model, ["votes", "coupling", "lengths"])(x))
    maps = explain.LRP(model, stop="votes")(x, 1)
    weighted = coupling[:, :, 1, None] * votes[:, :, 1]
    total = weighted.sum(1, keepdims=True)
    share = weighted * total / (total**2).sum(-1, keepdims=True)
    np.testing.assert_allclose(maps[:, :, 1], share * lengths[:, 1, None, None], atol=1e-5)
    assert not maps[:, :, [0, 2]].any()


@pytest.mark.samples(2)
@pytest.mark.parametrize("make", [networks.vit, *(CAPSULES[kind] for kind in ("dynamic", "rolled", "em", "graph"))])
def test_gradients_of_all_kinds_of_ops(make):
    keras.utils.set_random_seed(0)
    model = make()
    x = tf.constant(images_for(model))
    with tf.GradientTape() as tape:
        tape.watch(x)
        score = model(x, training=False)[:, 1]
    expected = tape.gradient(score, x).numpy()
    maps = explain.LRP(model, "gradient", channels=True)(x, 1)
    np.testing.assert_allclose(maps, expected, atol=1e-4 * np.abs(expected).max())


def test_half_of_the_relevance_to_the_coupling_if_wanted():
    keras.utils.set_random_seed(0)
    model = CAPSULES["dynamic"]()
    report = explain.LRP(model, "attn_lrp").report()
    assert [row for row in report.rows if row.kind == "softmax" and row.rule == "taylor"]


def test_taps_are_starts_and_stops(tmp_path):
    keras.utils.set_random_seed(0)
    model = ConvNetAvg((8, 8, 2), 3, kernel_size=3, filters=4)
    features = taps.tap(model, "features")
    maps = explain.LRP(model, start="features")(X, 1)
    np.testing.assert_array_equal(maps, explain.LRP(features)(X, 1))
    serving.export(model, tmp_path)
    served = serving.load(tmp_path)
    np.testing.assert_array_equal(explain.LRP(served, start="features")(X, 1), maps)
    assert explain.LRP(model, stop="features")(X, 1).shape == (3, *model.taps["features"].shape[1:])
    with pytest.raises(ValueError, match=r"Tap 'features' of a served model .* cannot stop there"):
        explain.LRP(served, stop="features")


# What relevance cannot pass.


def dense(x):
    return tf.reshape(x, (-1, 128)) @ tf.ones((128, 3))


def test_control_flow_is_refused():
    def loop(x):
        y = dense(x)
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * y), (0, y))[1]

    with pytest.raises(UnsupportedOpError, match=r"control flow .* found (Stateless)?While at '.*while'. Unroll"):
        explain.LRP(loop, input_shape=(8, 8, 2))


def test_half_precision_is_refused():
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(3, 3, name="conv", dtype="mixed_float16")])
    with pytest.raises(
        ValueError, match=r"float32 or float64.* received float16 at '.*'. Load the model with the dtype policy float32"
    ):
        explain.LRP(model)


def test_training_mode_is_refused(functional):
    with pytest.raises(ValueError, match=r"inference mode; found .*Random\w* at '.*dropout.*training=False"):
        explain.LRP(lambda x: functional(x, training=True), input_shape=(8, 8, 2))
    normalized = keras.Sequential([keras.Input((8, 8, 2)), layers.BatchNormalization(), layers.Flatten()])
    with pytest.raises(ValueError, match=r"found .*over the batch at '.*batch_norm"):
        explain.LRP(lambda x: normalized(x, training=True), input_shape=(8, 8, 2))


def test_unknown_ops_are_named_all_at_once_and_can_be_registered(monkeypatch):
    from keras_capsvit.explain.relevance import rules

    monkeypatch.setattr(rules, "RULES", {kind: dict(known) for kind, known in rules.RULES.items()})

    def model(x):
        return dense(tf.cumsum(tf.math.asinh(x, name="inner"), axis=1, name="outer"))

    message = r"found Cumsum at 'outer'; Asinh at 'inner'. Say how .*explain.register_rule\('Cumsum', function\)"
    with pytest.raises(ValueError, match=message):
        explain.LRP(model, input_shape=(8, 8, 2))

    def cumsum(op, relevances):
        """By contribution."""
        gradient = op.pull_back([tf.math.divide_no_nan(relevances[0], op.outputs[0])])[0]
        return [op.inputs[0] * gradient, None]

    explain.register_rule("Cumsum", cumsum)
    explain.register_rule("Asinh", lambda op, relevances: relevances)
    explainer = explain.LRP(model, input_shape=(8, 8, 2))
    assert [row.rule for row in explainer.report().rows if row.op == "Cumsum"] == ["cumsum"]
    score = model(X)[:, 1]
    np.testing.assert_allclose(explainer(X, 1).sum((1, 2)), score, rtol=1e-4)
    maps = explainer(X, [[0, 1]] * 3)
    np.testing.assert_allclose(maps[:, 1], explainer(X, 1), rtol=1e-5)
    with pytest.raises(ValueError, match="Expected a callable"):
        explain.register_rule("Cumsum", "identity")
    with pytest.raises(ValueError, match="Conv2D is a linear layer; choose among its rules"):
        explain.register_rule("Conv2D", cumsum)


def test_says_what_is_wrong_with_the_model(functional, tmp_path):
    with pytest.raises(ValueError, match=r"with saved_model.pb; received '.*nowhere'"):
        explain.LRP(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Expected a model, a callable or the path .*; received int"):
        explain.LRP(3, input_shape=(8, 8, 2))
    with pytest.raises(ValueError, match=r"does not tell the size of its input; pass input_shape=\(H, W, C\)"):
        explain.LRP(dense)
    with pytest.raises(
        ValueError, match=r"known input size; the model takes \(None, None, None, 2\). Pass input_shape"
    ):
        explain.LRP(keras.Sequential([keras.Input((None, None, 2)), layers.Conv2D(3, 3)]))
    functional.export(tmp_path / "model", verbose=False)
    with pytest.raises(ValueError, match=r"has the signatures \[.*'serving_default'\]; received 'serves'"):
        explain.LRP(tmp_path / "model", signature="serves")
