"""``serving.export`` of models that are not the package's own, and ``serving.load`` of what others wrote."""

import importlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import vit

from keras_capsvit import GraCapsNet, ResNet20, VisionTransformer, attacks, evaluate, explain, serving, taps

pytestmark = pytest.mark.tensorflow

CAPSULES = {"num_heads": 2, "primary_dim": 4, "capsule_dim": 4, "filters": 8}


@pytest.fixture(scope="module")
def tf():
    return importlib.import_module("tensorflow")


def images(count=6, size=8, seed=0):
    """Images of whole pixels between 0 and 255."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype("float32")


def network(units=4, activation=None, front=()):
    """The same weights every time, and classes that depend on the image."""
    keras.utils.set_random_seed(3)
    body = [layers.Conv2D(4, 3, activation="relu", name="conv1"), layers.MaxPooling2D(3, name="pool")]
    head = layers.Dense(
        units, activation=activation, kernel_initializer=keras.initializers.RandomNormal(stddev=1.0), name="head"
    )
    model = keras.Sequential([keras.Input((8, 8, 3)), *front, *body, layers.Flatten(name="flat"), head])
    x = images() / (255 if not front else 1)
    z = ops.convert_to_numpy(model(x))
    if activation is None:  # so that each class wins for some image
        head.bias.assign(-z.mean(axis=0))
    return model


def with_end(units, activation):
    """``network`` with an activation behind the same weights."""
    model = network(units)
    return keras.Sequential([keras.Input((8, 8, 3)), *model.layers, layers.Activation(activation)])


@keras.saving.register_keras_serializable(package="test_serving_any_model")
class Subclass(keras.Model):
    """Ends in an op, and has a variable of TensorFlow that Keras does not count."""

    def __init__(self, inner, end=ops.softmax):
        super().__init__()
        self.inner, self.end = inner, end

    def call(self, x):
        return self.end(self.inner(x))


def served(model, path, **settings):
    return serving.load(serving.export(model, path, **{"input_range": (0, 1), **settings}))


def nested(inner, *last):
    return keras.Sequential([keras.Input(inner.input_shape[1:]), inner, *last])


MODELS = {
    "functional": lambda: keras.Model((x := keras.Input((8, 8, 3))), network()(x)),
    "nested": lambda: nested(nested(network()), layers.Softmax()),
    "softmax": lambda: with_end(4, "softmax"),
    "log-softmax": lambda: with_end(4, "log_softmax"),
    "sigmoids": lambda: with_end(4, "sigmoid"),
    "one sigmoid": lambda: with_end(1, "sigmoid"),
    "one logit": lambda: network(1),
    "subclass": lambda: Subclass(network()),
    "subclass, one sigmoid": lambda: Subclass(network(1), ops.sigmoid),
}


@pytest.mark.samples(4)
@pytest.mark.parametrize("kind", MODELS)
def test_any_model_answers_as_the_live_one(kind, tmp_path):
    x, model = images() / 255, MODELS[kind]()
    expected = ops.convert_to_numpy(model(x))
    z = ops.convert_to_numpy(network(1 if "one" in kind else 4)(x))
    classes = (z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(-1)
    assert len(set(classes)) > 1
    loaded = served(model, tmp_path)
    answer = loaded.run("serving_default", images=x)
    np.testing.assert_allclose(answer["outputs"], expected, atol=1e-6)
    np.testing.assert_array_equal(answer["class"], classes)
    assert loaded.card["classes"] == max(2, z.shape[1])
    np.testing.assert_allclose(loaded.predict(x, batch_size=4), expected, atol=1e-6)
    scores = np.concatenate([-z, z], axis=1) if z.shape[1] == 1 else z
    np.testing.assert_allclose(taps.scores(loaded)(x), scores, atol=1e-5)
    np.testing.assert_array_equal(taps.predictions(loaded, x), classes)


@pytest.mark.slow
def test_the_forward_pass_is_exported_once(tf, tmp_path):
    for model in (network(), with_end(1, "sigmoid"), with_end(4, "softmax")):
        raw = tf.saved_model.load(str(serving.export(model, tmp_path, input_range=None))).signatures["serving_default"]
        definition = raw.graph.as_graph_def()
        nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
        assert [node.op for node in nodes].count("Conv2D") == 1


def test_subclasses_tell_their_images_or_are_told(tmp_path):
    x, model = images() / 255, Subclass(network())
    with pytest.raises(ValueError, match=r"Call it on images \(b, H, W, C\) first, or pass input_shape=\(H, W, C\)"):
        serving.export(model, tmp_path)
    np.testing.assert_allclose(served(model, tmp_path, input_shape=(8, 8, 3))(x), model(x), atol=1e-6)
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"tells the shape of its images; sequential.* does not"):
        serving.export(unbuilt, tmp_path)
    np.testing.assert_allclose(served(unbuilt, tmp_path, input_shape=(8, 8, 3))(x), unbuilt(x), atol=1e-6)


def test_variables_of_tensorflow_are_saved_along(tf, tmp_path):
    class Scaled(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = network(), tf.Variable(3.0)

        def call(self, x):
            return self.scale * self.inner(x)

    model, x = Scaled(), images() / 255
    expected = model(x)
    np.testing.assert_allclose(served(model, tmp_path)(x), expected, atol=1e-6)


def test_open_sizes_stay_open_or_are_fixed(tmp_path):
    body = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    model, x = keras.Sequential([keras.Input((None, None, 3)), *body]), images() / 255
    loaded = served(model, tmp_path)
    assert loaded.endpoints == ["serving_default"] and loaded.input_shape == (None, None, None, 3)
    for part in (x, x[:, :5]):
        np.testing.assert_allclose(loaded(part), model(part), atol=1e-6)
    fixed = served(model, tmp_path, input_shape=(8, 8, 3))
    assert fixed.endpoints == ["serve_bytes", "serving_default"] and fixed.input_shape == (None, 8, 8, 3)


def test_one_of_several_outputs(tmp_path):
    inputs = keras.Input((8, 8, 3))
    flat = layers.Flatten(name="flat")(inputs)
    colour = layers.Dense(2, activation="softmax", name="colour")(flat)
    model = keras.Model(inputs, {"digit": layers.Dense(3, name="digit")(flat), "colour": colour})
    with pytest.raises(ValueError, match=r"to name one of the outputs of .*\['colour', 'digit'\]; received None"):
        serving.export(model, tmp_path, input_range=(0, 1))
    x = images() / 255
    loaded = served(model, tmp_path, output="colour", taps=["flat", "digit"])
    np.testing.assert_allclose(loaded(x), model(x)["colour"], atol=1e-6)
    np.testing.assert_allclose(loaded.taps["digit"](x), model(x)["digit"], atol=1e-6)
    assert loaded.card["classes"] == 2


def test_integers_are_served_as_they_are_and_explained_as_floats(tf, tmp_path):
    rescaling = layers.Rescaling(1 / 255)
    model = keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), rescaling, network()])
    twin, x = network(), images()
    loaded = serving.load(serving.export(model, tmp_path, explainers={"product": explain.InputXGradient(model)}))
    card = loaded.card["input"]
    assert (card["name"], card["shape"], card["dtype"]) == ("images", [None, 8, 8, 3], "uint8")
    assert card["range"] == [0, 255]
    expected = twin(x / 255)
    for pixels in (x.astype("uint8"), x):
        np.testing.assert_allclose(loaded(pixels), expected, atol=1e-5)
    encoded = [tf.io.encode_png(image).numpy() for image in x.astype("uint8")]
    np.testing.assert_allclose(loaded.run("serve_bytes", encoded=encoded)["outputs"], expected, atol=1e-5)
    for pixels, received in ((x + 0.5, "float32"), (x + 1000, "float32")):
        with pytest.raises(ValueError, match=f"images of integers, as uint8; received {received}"):
            loaded(pixels)
    np.testing.assert_allclose(taps.scores(loaded)(x + 0.5), twin((x + 0.5) / 255), atol=1e-5)
    target = np.arange(len(x)) % 4
    maps = loaded.explain(x, target, endpoint="product")["maps"]
    expected = np.sum(x / 255 * gradient(tf, twin, tf.constant(x / 255), target), axis=-1)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_one_sigmoid_is_explained_for_either_class(tf, tmp_path):
    x, model, twin = images() / 255, with_end(1, "sigmoid"), network(1)
    loaded = served(model, tmp_path, explainers={"product": explain.InputXGradient(model)})
    of_1 = np.sum(x * gradient(tf, twin, tf.constant(x), np.ones(len(x))), axis=-1)
    predicted = np.where(twin(x)[:, :1, None] > 0, of_1, -of_1)
    for target, expected in ((1, of_1), (0, -of_1), (None, predicted)):
        np.testing.assert_allclose(loaded.explain(x, target, endpoint="product")["maps"], expected, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="class ids from 0 to 1"):
        loaded.explain(x, 2, endpoint="product")


ANSWER = """
import sys
sys.modules["keras_capsvit"] = sys.modules["keras"] = None  # as if they were not installed
import numpy as np, tensorflow as tf
x = np.load(sys.argv[1])
for folder in sys.argv[2:]:
    signatures = tf.saved_model.load(folder).signatures
    spec = signatures["serving_default"].structured_input_signature[1]["images"]
    inputs = {"images": tf.cast(x, spec.dtype), "target": tf.constant([-1] * len(x), "int64")}
    answers = signatures["product"](**inputs)
    np.savez(folder + "/answers.npz", **{name: value.numpy() for name, value in answers.items()})
"""


@pytest.mark.slow
def test_a_fresh_process_answers_without_keras(tmp_path, fresh_process):
    x, folders = images(), {}
    np.save(tmp_path / "x.npy", x)
    integers = keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), layers.Rescaling(1 / 255), network()])
    subclass = Subclass(keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), network()]))
    for name, model in (("integers", integers), ("subclass", subclass)):
        model(x)
        explainer = explain.InputXGradient(model)
        folders[name] = serving.export(model, tmp_path / name, explainers={"product": explainer}), model, explainer(x)
    fresh_process(ANSWER, tmp_path / "x.npy", *(folder for folder, _, _ in folders.values()))
    for folder, model, maps in folders.values():
        with np.load(folder / "answers.npz") as answers:
            np.testing.assert_allclose(answers["outputs"], model(x), atol=1e-6)
            np.testing.assert_allclose(answers["maps"], maps, atol=1e-6)
            np.testing.assert_array_equal(answers["class"], np.argmax(model(x), axis=-1))


def gradient(tf, model, x, ids):
    """Of the scores of classes with respect to the images."""
    scores = taps.scores(model)
    with tf.GradientTape() as tape:
        tape.watch(x)
        of_class = tf.gather(scores.recorded(x)[0], tf.cast(ids, "int32"), axis=1, batch_dims=1)
    return tape.gradient(of_class, x)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_answers_in_float32(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = with_end(4, "softmax")
    finally:
        keras.config.set_dtype_policy("float32")
    x = images() / 255
    loaded = served(model, tmp_path, taps=["conv1"])
    assert loaded(x).dtype == loaded.taps["conv1"](x).dtype == "float32"
    # The server fuses ops and rounds less often: by a rounding of half precision or so after each of few layers.
    rounding = {"mixed_float16": 2**-10, "mixed_bfloat16": 2**-7}[policy]
    for received, expected in ((loaded(x), model(x)), (taps.scores(loaded)(x), taps.scores(model)(x))):
        expected = ops.convert_to_numpy(ops.cast(expected, "float32"))
        np.testing.assert_allclose(received, expected, atol=4 * rounding * np.abs(expected).max())


@pytest.mark.long
def test_taps_of_any_name(tmp_path):
    x = images(3, 12) / 255
    model = nested(vit(), layers.Softmax())
    tap_names = ["norm0a", "attention_0", "attention_1", "features"]
    loaded = served(model, tmp_path, taps=tap_names)
    assert taps.names(loaded) == sorted(tap_names)
    for name, tapped in zip(tap_names, taps.tap(loaded, tap_names)(x), strict=True):
        expected = ops.convert_to_numpy(taps.tap(model, name)(x))
        np.testing.assert_allclose(tapped, expected, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(loaded.taps[name](x), expected, atol=1e-6, err_msg=name)
        assert np.ptp(expected) > 0
    path = f"{model.layers[0].name}/patches"
    np.testing.assert_allclose(
        served(model, tmp_path, taps=[path]).taps[path](x), model.layers[0].get_layer("patches")(x), atol=1e-6
    )
    subclass = Subclass(network())
    subclass(images() / 255)
    tapped = served(subclass, tmp_path, taps=["conv1"]).taps["conv1"](images() / 255)
    np.testing.assert_allclose(tapped, subclass.inner.get_layer("conv1")(images() / 255), atol=1e-6)
    with pytest.raises(ValueError, match="has no tap 'attention_7', but 2 self-attentions"):
        served(model, tmp_path, taps=["attention_7"])


@pytest.mark.long
def test_taps_of_a_model_of_ours_inside_another(tmp_path):
    capsules = GraCapsNet((12, 12, 3), 4, **CAPSULES)
    scaled = keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), capsules])
    loaded, x = serving.load(serving.export(scaled, tmp_path)), images(3, 12)
    assert loaded.card["input"]["range"] == [0, 255]
    assert taps.names(loaded) == taps.names(capsules) and taps.scores(loaded).kind == "lengths"
    attention, contributions = taps.tap(capsules, ["attention", "contributions"])(x / 255)
    np.testing.assert_allclose(loaded.taps["attention"](x), attention, atol=1e-6)
    explained = loaded.explain(x)
    np.testing.assert_allclose(explained["maps"], contributions, atol=1e-6)
    np.testing.assert_allclose(explained["outputs"], capsules(x / 255), atol=1e-6)
    transformer = VisionTransformer("Ti/4", input_shape=(12, 12, 3), num_classes=4, width=8, depth=1, num_heads=2)
    loaded = served(nested(transformer, layers.Dense(3, activation="softmax")), tmp_path)
    explained = loaded.explain(x / 255)
    np.testing.assert_allclose(explained["maps"], explain.AttentionRollout(transformer)(x / 255), atol=1e-6)
    assert explained["outputs"].shape == (3, 3)


@pytest.mark.long
def test_scores_of_a_model_inside_are_not_taken_for_those_of_the_exported_one(tmp_path):
    """A served model is asked for its tap ``logits``, if it has one."""
    inner, x = ResNet20((8, 8, 3), 4, filters=4), images() / 255
    head = nested(inner, layers.Dense(3, kernel_initializer="ones", bias_initializer="ones"))
    loaded = served(head, tmp_path)
    assert taps.names(loaded) == ["features"]
    np.testing.assert_allclose(taps.scores(loaded)(x), head(x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"to be the class scores of .*; received \['logits'\]"):
        served(head, tmp_path, taps=["logits"])
    ended = served(nested(inner, layers.Softmax()), tmp_path)
    assert taps.names(ended) == ["features", "logits"]
    np.testing.assert_allclose(taps.scores(ended)(x), inner(x), rtol=1e-5, atol=1e-5)
    body = [layers.Flatten(), layers.Dense(3, activation="softmax", name="logits")]
    misleading = keras.Sequential([keras.Input((8, 8, 3)), *body])
    with pytest.raises(ValueError, match=r"received \['logits'\], of a layer or a model inside"):
        served(misleading, tmp_path, taps=["logits"])


@pytest.mark.slow
def test_bytes_are_scaled_to_the_range_that_the_model_takes(tf, tmp_path):
    x, twin = images(), network()
    files = [tf.io.encode_png(image).numpy() for image in x.astype("uint8")]
    for rescaling, pixels in ((layers.Rescaling(1 / 255), x), (layers.Rescaling(2.0, offset=-1.0), x / 255)):
        model = keras.Sequential([keras.Input((8, 8, 3)), rescaling, network()])
        loaded = serving.load(serving.export(model, tmp_path))
        answer = loaded.run("serve_bytes", encoded=files)
        np.testing.assert_allclose(answer["outputs"], model(pixels), rtol=1e-5, atol=1e-5)
        assert loaded.card["input"]["range"] == [0, 255 if rescaling.scale < 1 else 1]
    plain = served(twin, tmp_path).run("serve_bytes", encoded=files)["outputs"]
    np.testing.assert_allclose(plain, twin(x / 255), atol=1e-5)
    np.testing.assert_allclose(
        serving.load(tmp_path, version=1).run("serve_bytes", encoded=files)["outputs"], plain, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"input_range=\(lowest, highest\), such as .* or input_range=None for an exp"):
        serving.export(twin, tmp_path)
    without = serving.load(serving.export(twin, tmp_path, input_range=None))
    assert without.endpoints == ["serving_default"] and without.card["input"]["range"] is None


def test_warm_up_is_in_the_range_of_the_model(tf, tmp_path):
    log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    x = images(2)
    for dtype in ("float32", "uint8"):
        model = keras.Sequential([keras.Input((8, 8, 3), dtype=dtype), layers.Rescaling(1 / 255), network()])
        folder = serving.export(model, tmp_path, warmup=x)
        requests = {}
        for record in tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests")):
            request = log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            requests[request.model_spec.signature_name] = {n: tf.make_ndarray(v) for n, v in request.inputs.items()}
        assert requests["serving_default"]["images"].dtype == dtype
        np.testing.assert_array_equal(requests["serving_default"]["images"], x)
        decoded = [tf.io.decode_png(file).numpy() for file in requests["serve_bytes"]["encoded"]]
        np.testing.assert_array_equal(decoded, x)


def test_channels_in_front_are_refused(tmp_path):
    inputs = keras.Input((3, 8, 8))
    padded = layers.ZeroPadding2D(1, data_format="channels_first")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten(data_format="channels_last")(padded)))
    with pytest.raises(ValueError, match=r"with channels in front .*keras.layers.Permute\(\(3, 1, 2\)\)"):
        serving.export(model, tmp_path)
    with pytest.raises(ValueError, match=r"one input, the images; .* has \[.*'meta'\]"):
        serving.export(keras.Model([inputs, keras.Input((2,), name="meta")], model(inputs)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_explainers_of_another_model_and_what_returns_no_maps(tf, tmp_path):
    model, foreign = network(), network()
    for explainer in (
        explain.Saliency(foreign),
        explain.LRP(foreign, "epsilon"),
        lambda x, ids: tf.reduce_sum(x, axis=-1) * tf.reduce_max(foreign(x)),
    ):
        with pytest.raises(ValueError, match=r"'maps' to be made of sequential.*reads variables of another"):
            served(model, tmp_path, explainers={"maps": explainer})
    for explainer, b, received in (
        (lambda x, ids: ids, None, r"\(None,\)"),
        (lambda x, ids: x[:0, :, :, 0], 2, r"\(0, 8, 8\)"),
        (lambda x, ids: tf.zeros((1, 8, 8)), None, r"\(1, 8, 8\)"),
        (lambda x, ids: x[:, :4, :4, 0], None, r"\(None, 4, 4\)"),
        (lambda x, ids: x[..., :2], None, r"\(None, 8, 8, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"\({b}, 8, 8\) or \({b}, 8, 8, 3\); received {received}"):
            served(model, tmp_path, explainers={"maps": explainer})
    assert not list(tmp_path.iterdir())
    twin = keras.Model(model.inputs, model.layers[-1].output)  # of the same weights
    explainers = {"one": explain.Saliency(twin), "signed": lambda x, ids: x}
    assert "one" in served(model, tmp_path, explainers=explainers).endpoints


def exported_by_keras(model, path):
    model.export(str(path), verbose=False)
    return path


@pytest.mark.slow
def test_saved_models_of_keras_are_found_their_way_round(tf, tmp_path):
    x, plain = images() / 255, network()
    z = ops.convert_to_numpy(plain(x))
    for kind in ("softmax", "one sigmoid", "subclass"):
        model = MODELS[kind]()
        expected = ops.convert_to_numpy(model(x))
        path = exported_by_keras(model, tmp_path / kind)
        loaded = serving.load(path)
        np.testing.assert_allclose(loaded(x), expected, atol=1e-6)
        np.testing.assert_allclose(loaded.predict(x, batch_size=4), expected, atol=1e-6)
        assert loaded.endpoints == ["serve", "serving_default"] and taps.names(loaded) == []
        assert loaded.input_shape == (None, 8, 8, 3)
        for either in (loaded, tf.saved_model.load(str(path))):
            np.testing.assert_array_equal(taps.predictions(either, x), taps.predictions(model, x))
            if expected.shape[1] > 1:
                np.testing.assert_allclose(taps.scores(either)(x), z, atol=1e-5)
    with pytest.raises(ValueError, match=r"no explanation 'explain'; it has \[\]"):
        loaded.explain(x)


def test_of_several_names_one_is_asked_for(tf, tmp_path):
    inputs = keras.Input((8, 8, 3), name="photo")
    flat = layers.Flatten()(inputs)
    model = keras.Model(inputs, [layers.Dense(3, name="digit")(flat), layers.Dense(2, name="colour")(flat)])
    path, x = exported_by_keras(model, tmp_path / "two"), images() / 255
    with pytest.raises(
        ValueError,
        match=r"name one of \['output_0', 'output_1'\]; received None. .*'serve': \['photo'\] → \['output_0'",
    ):
        serving.load(path)
    loaded = serving.load(path, output="output_1")
    np.testing.assert_allclose(loaded(x), model(x)[1], atol=1e-6)
    np.testing.assert_allclose(taps.scores(loaded)(x), model(x)[1], atol=1e-6)
    for settings, said in (
        ({"signature": "train"}, r"signature= to name one of \['serve', 'serving_default'\]; received 'train'"),
        ({"input": "images"}, r"input= to name one of \['photo'\]; received 'images'"),
        ({"output": "logits"}, "output= .*received 'logits'"),
    ):
        with pytest.raises(ValueError, match=said):
            serving.load(path, **settings)


def module_with_signatures(tf, path):
    """A SavedModel of TensorFlow alone: a linear model, and the same with a factor and with maps."""
    module = tf.Module()
    module.weights = tf.Variable(np.random.default_rng(5).normal(size=(192, 3)).astype("float32"))
    spec, factor = tf.TensorSpec((None, 8, 8, 3), "float32", "pixels"), tf.TensorSpec((), "float32", "factor")

    def logits(pixels):
        return tf.reshape(pixels, (-1, 192)) @ module.weights

    def maps(pixels):
        return {"probabilities": tf.nn.softmax(logits(pixels)), "maps": tf.reduce_sum(pixels, axis=-1)}

    signatures = {
        "classify": tf.function(lambda pixels: {"probabilities": tf.nn.softmax(logits(pixels))}, [spec]),
        "scaled": tf.function(lambda pixels, factor: {"logits": factor * logits(pixels)}, [spec, factor]),
        "explained": tf.function(maps, [spec]),
    }
    tf.saved_model.save(module, str(path), {name: f.get_concrete_function() for name, f in signatures.items()})
    return module.weights.numpy()


def test_saved_models_of_tensorflow_by_signature(tf, tmp_path):
    weights, x = module_with_signatures(tf, tmp_path), images() / 255
    logits = x.reshape(-1, 192) @ weights
    with pytest.raises(ValueError, match=r"signature= to name one of \['classify', 'explained', 'scaled'\]; received"):
        serving.load(tmp_path)
    loaded = serving.load(tmp_path, signature="classify")
    np.testing.assert_allclose(loaded(x), ops.softmax(logits), atol=1e-6)
    np.testing.assert_allclose(taps.scores(loaded)(x), logits, atol=1e-5)
    np.testing.assert_allclose(loaded.explain(x, endpoint="explained")["maps"], x.sum(axis=-1), atol=1e-6)
    np.testing.assert_allclose(loaded.run("scaled", pixels=x, factor=2.0)["logits"], 2 * logits, atol=1e-5)
    with pytest.raises(ValueError, match=r"input= to name one of \['factor', 'pixels'\]; received None"):
        serving.load(tmp_path, signature="scaled")
    scaled = serving.load(tmp_path, signature="scaled", input="pixels")
    with pytest.raises(ValueError, match=r"'scaled' takes \['factor', 'pixels'\]; received \['pixels'\]"):
        scaled(x)
    with pytest.raises(ValueError, match=r"takes images only; 'scaled' takes .*lambda x: served.run"):
        taps.scores(scaled)
    one_factor = taps.scores(lambda x: scaled.run("scaled", pixels=x, factor=3.0)["logits"])
    np.testing.assert_allclose(one_factor(x), 3 * logits, atol=1e-4)


def test_saved_models_that_cannot_be_asked_are_refused(tf, tmp_path):
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="Expected a SavedModel with signatures; received one without"):
        serving.load(tmp_path / "none")
    single = tf.function(lambda x: tf.reshape(x, (1, -1))[:, :3], [tf.TensorSpec((1, 8, 8, 3), name="x")])
    tf.saved_model.save(module, str(tmp_path / "single"), single.get_concrete_function())
    loaded = serving.load(tmp_path / "single")
    with pytest.raises(ValueError, match=r"images \(b, H, W, C\) of any number b; served_model takes \(1, 8, 8, 3\)"):
        taps.scores(loaded)


def test_explanations_of_served_models_are_those_of_their_logits(tf, tmp_path):
    """Whoever wrote the SavedModel, and although it ends in a softmax."""
    x, plain, model = images() / 255, network(), with_end(4, "softmax")
    target = np.arange(len(x)) % 4
    expected = np.abs(gradient(tf, plain, tf.constant(x), target)).max(axis=-1)
    ours, path = served(model, tmp_path / "ours"), exported_by_keras(model, tmp_path / "keras")
    for either in (ours, serving.load(path), tf.saved_model.load(str(path))):
        np.testing.assert_allclose(explain.Saliency(either)(x, target), expected, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taps.scores(ours)(x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "one sigmoid"])
def test_served_models_are_attacked_and_judged_as_their_logits(tf, tmp_path, kind):
    x, model = images() / 255, MODELS[kind]()
    twin = network(1 if "one" in kind else 4)
    y, pgd = taps.predictions(twin, x), attacks.PGD(0.008, steps=4, seed=3)
    expected, accuracy = pgd(taps.scores(twin), x, y), evaluate.robust_accuracy(taps.scores(twin), pgd, (x, y))
    assert 0 < accuracy < 1
    ours, path = served(model, tmp_path / "ours"), exported_by_keras(model, tmp_path / "keras")
    for either in (ours, serving.load(path), tf.saved_model.load(str(path))):
        for subject in (either, taps.scores(either)):
            np.testing.assert_allclose(pgd(attacks.logits(subject), x, y), expected, atol=1e-6)
            assert evaluate.robust_accuracy(subject, pgd, (x, y)) == accuracy
