import functools
import importlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import as_if_trained

from keras_capsvit import (
    AffCapsNet,
    CapsNet,
    ConvNetAvg,
    ConvNetFC,
    DeiT,
    GraCapsNet,
    MarginLoss,
    MLPMixer,
    ResNet18,
    ResNet20,
    ResNet50,
    VisionTransformer,
    attacks,
    evaluate,
    explain,
    serving,
    taps,
)

# The module needs TensorFlow; `.keras` files do not.
tensorflow_only = pytest.mark.tensorflow

CLASSES = 4
SMALL = {"filters": 8, "num_types": 2, "kernel_size": 3, "reconstruction_units": (8,)}
TOKENS = {"input_shape": (16, 16, 3), "num_classes": CLASSES, "width": 8, "depth": 1}
WITH_ATTENTION = {**TOKENS, "num_heads": 2}


def caps(routing, **settings):
    return CapsNet((8, 8, 1), CLASSES, routing=routing, **SMALL, **settings)


FAMILIES = {
    "gracapsnet": lambda: GraCapsNet(
        (12, 12, 1), CLASSES, num_heads=4, filters=8, reconstruction="conditional", reconstruction_units=(8,)
    ),
    "dynamic": lambda: caps("dynamic", reconstruction="unconditional"),
    **{name: functools.partial(caps, name) for name in ("rolled", "trainable", "em", "self")},
    "affcapsnet": lambda: AffCapsNet((8, 8, 1), CLASSES, **SMALL),
    "convnet_fc": lambda: ConvNetFC((8, 8, 2), CLASSES, kernel_size=3, filters=(4, 4), units=(8,)),
    "convnet_avg": lambda: ConvNetAvg((12, 12, 3), CLASSES, kernel_size=3, filters=6),
    "resnet20": lambda: as_if_trained(ResNet20((16, 16, 3), CLASSES, filters=4)),
    "resnet18": lambda: ResNet18((32, 32, 3), CLASSES, filters=4),
    "resnet50": lambda: ResNet50((32, 32, 3), CLASSES, filters=4),
    "vit": lambda: VisionTransformer(
        "Ti/4", **{**WITH_ATTENTION, "depth": 2}, temperature=(1.0, 2.0), mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    "deit": lambda: DeiT("Ti/4", **WITH_ATTENTION, distilled=True),
    "mixer": lambda: MLPMixer("S/4", **TOKENS, token_units=8, channel_units=8),
}
EXPLAINERS = {
    "gracapsnet": {
        "lrp": lambda model: explain.LRP(model, "epsilon"),
        "clrp": lambda model: explain.CLRP(model, rules="epsilon"),
        "saliency": explain.Saliency,
        "attention_map": explain.GraphAttention,
    },
    "dynamic": {"lrp": lambda model: explain.LRP(model, "epsilon"), "product": explain.InputXGradient},
    "convnet_avg": {
        "explain": explain.LRP,
        "clrp": lambda model: explain.CLRP(model, "negated", input_range=(0, 1)),
        "guided": explain.GuidedBackprop,
        "features_map": explain.FeatureMapAttention,
        "integrated": lambda model: explain.IntegratedGradients(model, steps=3, baseline=0.5),
        "smooth": lambda model: explain.SmoothGrad(explain.IntegratedGradients(model, steps=2), 3),
        "cam": explain.GradCAM,
    },
    "vit": {"saliency": explain.Saliency, "rollout": functools.partial(explain.AttentionRollout, discard_ratio=0.5)},
}
BUILT_IN = {"vit": explain.AttentionRollout, "deit": explain.AttentionRollout}
FEW_TAPS = ("resnet18", "resnet50")  # as those of ResNet20, but slow to trace


def images(model, n):
    """Images whose pixels survive being written as PNG."""
    shape = (n, *model.input_shape[1:])
    return (np.random.default_rng(0).integers(0, 256, shape) / 255).astype("float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """From the name of a family to its model and the version folder, made once."""

    @functools.cache
    def make(name):
        keras.utils.set_random_seed(0)
        model = FAMILIES[name]()
        explainers = {key: explainer(model) for key, explainer in EXPLAINERS.get(name, {}).items()}
        tap_names = [] if name in FEW_TAPS else None
        return model, serving.export(model, tmp_path_factory.mktemp(name), taps=tap_names, explainers=explainers)

    return make


@pytest.fixture(scope="module")
def both(exported):
    """From the name of a family to the live and the served model."""

    @functools.cache
    def load(name):
        model, folder = exported(name)
        return model, serving.load(folder)

    return load


@pytest.fixture(scope="module")
def raw_signatures(exported):
    """Signatures of a served graph capsule network, as TensorFlow loads them."""
    return importlib.import_module("tensorflow").saved_model.load(str(exported("gracapsnet")[1])).signatures


ANSWER = """
import pathlib, sys
sys.modules["keras_capsvit"] = None  # as if it were not installed
import numpy as np
import tensorflow as tf
answers = {}
for folder in map(pathlib.Path, sys.argv[2:]):
    x = np.load(folder.parent / "x.npy")
    for name, function in tf.saved_model.load(str(folder)).signatures.items():
        for n in (1, 3, 64):
            inputs = {"images": x[:n], "target": np.arange(n) % 5 - 1}
            if name == "serve_bytes":
                inputs["encoded"] = [tf.io.encode_png(np.rint(255 * image).astype("uint8")) for image in x[:n]]
            specs = function.structured_input_signature[1]
            inputs = {key: tf.convert_to_tensor(inputs[key], spec.dtype) for key, spec in specs.items()}
            for key, value in function(**inputs).items():
                answers[f"{folder.parent.name}/{name}/{n}/{key}"] = value
np.savez(sys.argv[1], **answers)
print(len(answers))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "families",
    [("gracapsnet", "vit"), FAMILIES],
    ids=["two", "all"],
)
@tensorflow_only
def test_families_answer_where_the_package_is_not_installed(families, exported, tmp_path, fresh_process):
    folders = {name: exported(name)[1] for name in families}
    for name, folder in folders.items():
        np.save(folder.parent / "x.npy", images(exported(name)[0], 64))
    answers = int(fresh_process(ANSWER, tmp_path / "answers.npz", *folders.values()))
    compared = 0
    with np.load(tmp_path / "answers.npz") as arrays:
        for name, folder in folders.items():
            for endpoint, n, expected in answers_of(exported(name)[0], name, folder):
                for key, value in expected.items():
                    answer = arrays[f"{folder.parent.name}/{endpoint}/{n}/{key}"]
                    scale = max(1, np.abs(value).max())  # logits of random networks may be large
                    # In another order, float32 sums of n terms differ by about the root of n roundings; in a ResNet50 n
                    # is 3 x 3 x 512.
                    close = np.sqrt(4608) * np.finfo("float32").eps / 2 * scale
                    np.testing.assert_allclose(answer, value, atol=close, err_msg=f"{name} {endpoint} {key}")
                    compared += 1
    assert compared == answers


def answers_of(model, name, folder):
    """What the live model says to all that ANSWER asks: endpoint, batch, dict of arrays."""
    x = images(model, 64)
    scores = keras.ops.convert_to_numpy(model(x))
    every = {"outputs": scores, "class": scores.argmax(-1)}
    result = {"serving_default": every}
    if model.input_shape[-1] in (1, 3):
        result["serve_bytes"] = every
    for tap in [] if name in FEW_TAPS else taps.names(model):
        result[tap] = {"outputs": keras.ops.convert_to_numpy(taps.tap(model, tap)(x))}
    if "contributions" in result:
        result["explain"] = {**every, "maps": result["contributions"]["outputs"]}
    elif name in BUILT_IN:
        result["explain"] = {**every, "maps": BUILT_IN[name](model)(x)}
    target = np.arange(64) % 5 - 1
    target = np.where(target < 0, every["class"], target)
    for key, explainer in EXPLAINERS.get(name, {}).items():
        result[key] = {**every, "maps": explainer(model)(x, target)}
    card = json.loads((folder / "model_card.json").read_text())
    assert sorted(card["endpoints"]) == sorted(result)
    for endpoint, expected in result.items():
        for n in (1, 3, 64):
            yield endpoint, n, {key: value[:n] for key, value in expected.items()}


RELOAD = """
import sys, numpy as np
x = np.load(sys.argv[2])
if sys.argv[3] == "keras":
    import keras, keras_capsvit
    model = keras.saving.load_model(sys.argv[1])
    np.savez(sys.argv[4], lengths=model.predict(x, verbose=0), decoded=keras.ops.convert_to_numpy(model.reconstruct(x)))
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    for layer in layers:
        twin = type(layer).from_config(layer.get_config())
        assert twin.get_config() == layer.get_config(), layer
    print(len(layers), "layers", float(keras.ops.convert_to_numpy(model.optimizer.iterations)))
else:
    from keras_capsvit import explain, serving
    model = serving.load(sys.argv[1])
    parts = np.concatenate([model(x[:3]), model(x[3:])])
    maps, decoded = explain.GraphAttention(model)(x), model.taps["reconstruction"](x)
    np.savez(sys.argv[4], lengths=model(x), parts=parts, maps=maps, decoded=decoded)
    print(sorted(model.taps))
"""


@pytest.fixture
def trained(small_model, resized, digits):
    model = small_model(reconstruction="conditional")
    model.compile("adam", MarginLoss(), metrics=["accuracy"])
    model.fit(resized(64, 12), digits[1][:64], epochs=2, verbose=0)
    return model


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("keras", marks=pytest.mark.slow),
        pytest.param("saved_model", marks=[pytest.mark.long, tensorflow_only]),
    ],
)
def test_reload_in_a_fresh_process(trained, resized, tmp_path, fresh_process, kind):
    x = resized(8, 12)
    np.save(tmp_path / "x.npy", x)
    path = tmp_path / "model.keras" if kind == "keras" else tmp_path / "served"
    trained.save(path) if kind == "keras" else serving.export(trained, path)
    printed = fresh_process(RELOAD, path, tmp_path / "x.npy", kind, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["lengths"], trained.predict(x, verbose=0))
        decoded = keras.ops.convert_to_numpy(trained.reconstruct(x))  # not compiled here, hence the tolerance
        np.testing.assert_allclose(arrays["decoded"], decoded, atol=1e-6)
        if kind == "saved_model":
            np.testing.assert_allclose(arrays["parts"], arrays["lengths"], atol=1e-6)
            np.testing.assert_allclose(arrays["maps"], explain.GraphAttention(trained)(x), atol=1e-6)
            assert printed.strip() == str(taps.names(trained))
        else:
            layers, _, steps = printed.split()
            assert int(layers) >= 10
            assert float(steps) == 4


@pytest.mark.slow
@tensorflow_only
def test_served_model_has_the_contract_of_the_live_one(both):
    live, served = both("gracapsnet")
    assert served.input_shape == (None, 12, 12, 1)
    assert taps.names(served) == taps.names(live)
    x = images(live, 7)
    lengths, attention = taps.tap(served, ["lengths", "attention"])(x)
    np.testing.assert_allclose(lengths, live(x), atol=1e-6)
    np.testing.assert_allclose(attention, taps.tap(live, "attention")(x), atol=1e-6)
    for n in (1, 7):
        np.testing.assert_allclose(served(x[:n]), live(x[:n]), atol=1e-6)
    np.testing.assert_allclose(served.predict(x, batch_size=3), live(x), atol=1e-6)
    explained = served.explain(x)
    np.testing.assert_array_equal(explained["class"], np.argmax(live(x), -1))
    of_class = served.explain(x, target=2, endpoint="lrp")["maps"]
    np.testing.assert_allclose(of_class, explain.LRP(live, "epsilon")(x, 2), atol=1e-6)
    predicted = served.explain(x, endpoint="lrp")["maps"]
    np.testing.assert_allclose(predicted, explain.LRP(live, "epsilon")(x), atol=1e-6)
    assert served.card["endpoints"].keys() == set(served.endpoints)
    assert served.card["input"] == {
        "name": "images",
        "shape": [None, 12, 12, 1],
        "dtype": "float32",
        "range": [0, 1],
        "max_pixels": 25_000_000,
    }


@pytest.mark.samples(slow=1)
@pytest.mark.slow
@tensorflow_only
@pytest.mark.parametrize(
    "name, goal", [("convnet_avg", "logits"), ("vit", "logits"), ("dynamic", "capsules"), ("dynamic", "votes")]
)
def test_attacks_find_what_they_find_on_the_live_model(both, name, goal):
    live, served = both(name)
    x, y = images(live, 6), np.arange(6) % CLASSES
    pgd, objective = attacks.PGD(0.1, steps=5, seed=3), getattr(attacks, goal)
    adversarial = pgd(objective(served), x, y)
    np.testing.assert_allclose(adversarial, pgd(objective(live), x, y), atol=1e-6)
    assert np.abs(adversarial - x).max() > 0.05
    single = pgd(objective(served), x[:1], y[:1])  # the SavedModel knows no batch size
    np.testing.assert_allclose(single, pgd(objective(live), x[:1], y[:1]), atol=1e-6)
    assert evaluate.robust_accuracy(served, pgd, (x, y), objective=objective) == pytest.approx(
        evaluate.robust_accuracy(live, pgd, (x, y), objective=objective)
    )


@pytest.mark.samples(slow=1)
@pytest.mark.slow
@tensorflow_only
@pytest.mark.parametrize(
    "name, explainer",
    [
        ("gracapsnet", explain.GraphAttention),
        ("gracapsnet", explain.GraphContribution),
        ("gracapsnet", explain.Saliency),
        ("gracapsnet", lambda model: explain.LRP(model, "epsilon")),
        ("gracapsnet", lambda model: explain.CLRP(model, rules="epsilon")),
        ("convnet_avg", lambda model: explain.IntegratedGradients(model, steps=3)),
        ("convnet_avg", lambda model: explain.LRP(model, input_range=(0, 1))),
        ("vit", explain.AttentionRollout),
    ],
)
def test_explanations_are_those_of_the_live_model(both, name, explainer):
    live, served = both(name)
    x, target = images(live, 5), np.array([0, 3, 1, 2, 2])
    expected = explainer(live)(x, target)
    np.testing.assert_allclose(explainer(served)(x, target), expected, atol=1e-6 * max(1, np.abs(expected).max()))
    assert np.ptp(expected) > 0
    areas = [evaluate.aopc(model, x, expected, patch=4, steps=2, target=target).area for model in (live, served)]
    np.testing.assert_allclose(*areas, atol=1e-6)


@pytest.mark.long
@tensorflow_only
def test_saved_model_cli_shows_and_runs_every_endpoint(exported, tmp_path, capsys, monkeypatch):
    model, folder = exported("gracapsnet")
    x = images(model, 3)
    np.save(tmp_path / "images.npy", x)
    encoded = [keras.utils.array_to_img(255 * image, scale=False) for image in x]
    np.save(tmp_path / "encoded.npy", np.array([_png(image) for image in encoded]))
    tool = importlib.import_module("tensorflow.python.tools.saved_model_cli")  # in this process: it starts slowly
    endpoints = json.loads((folder / "model_card.json").read_text())["endpoints"]

    def run(*command):
        arguments = tool.create_parser().parse_args([str(image) for image in command])
        arguments.func()
        return capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", ["saved_model_cli"])
    shown = run("show", "--dir", folder, "--all")
    assert "shape: (-1, 12, 12, 1)" in shown
    for name, described in endpoints.items():
        assert f"signature_def['{name}']" in shown
        inputs = {"images": f"images={tmp_path}/images.npy", "encoded": f"encoded={tmp_path}/encoded.npy"}
        files = [inputs[image] for image in described["inputs"] if image in inputs]
        target = ["--input_exprs", "target=[-1, 0, 3]" if "target" in described["inputs"] else ""]  # flags are kept
        how = ["--tag_set", "serve", "--signature_def", name, "--inputs", ";".join(files), *target]
        printed = run("run", "--dir", folder, *how, "--outdir", tmp_path / name)
        assert set(described["outputs"]) == {path.stem for path in (tmp_path / name).glob("*.npy")}, printed
        if "class" in described["outputs"]:
            np.testing.assert_array_equal(np.load(tmp_path / name / "class.npy"), np.argmax(model(x), -1))


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@tensorflow_only
@pytest.mark.slow
def test_warm_up_asks_every_endpoint(both, tmp_path):
    log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    tf = importlib.import_module("tensorflow")
    live, _ = both("convnet_avg")
    x = images(live, 2)
    folder = serving.export(live, tmp_path, explainers={"saliency": explain.Saliency(live)}, warmup=x)
    served, asked = serving.load(folder), []
    for record in tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests")):
        request = log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        answer = served.run(request.model_spec.signature_name, **{k: tf.constant(v) for k, v in inputs.items()})
        assert all(len(each) == 2 for each in answer.values())
        asked.append(request.model_spec.signature_name)
        if "outputs" in answer and asked[-1] in ("serving_default", "serve_bytes"):
            np.testing.assert_allclose(answer["outputs"], live(x), atol=1e-6)
    assert sorted(asked) == served.endpoints


BAD = {
    "rank": (lambda x: x[0], "shape"),
    "channels": (lambda x: np.repeat(x, 2, axis=-1), "shape"),
    "size": (lambda x: x[:, :5], "shape"),
    "empty": (lambda x: x[:0], "received an empty batch"),
    "nan": (lambda x: np.where(x > 0.5, np.nan, x), "finite pixels"),
    "infinite": (lambda x: np.where(x > 0.5, np.inf, x), "finite pixels"),
    "dtype": (lambda x: (x * 255).astype("uint8"), "float"),
    "text": (lambda x: np.array(["a", "b"]), "float"),
}


@pytest.mark.samples(3)
@tensorflow_only
@pytest.mark.parametrize("kind", BAD)
def test_malformed_requests_are_refused_by_name(both, raw_signatures, kind):
    tf = importlib.import_module("tensorflow")
    live, served = both("gracapsnet")
    change, said = BAD[kind]
    bad = change(images(live, 2))
    for endpoint in set(served.endpoints) - {"serve_bytes"}:
        inputs = served.card["endpoints"][endpoint]["inputs"]
        arguments = {"images": bad} | ({"target": [-1] * 2} if "target" in inputs else {})
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=rf"(?s)images.*{said}"):
            served.run(endpoint, **arguments)
        raw = {name: tf.constant(value) for name, value in arguments.items()}
        raw |= {"target": tf.constant([-1, -1], "int64")} if "target" in arguments else {}
        # TensorFlow itself tells the place, not the name, of an input of another dtype.
        with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError), match=r"images|input #0"):
            raw_signatures[endpoint](**raw)
    np.testing.assert_allclose(served(images(live, 2)), live(images(live, 2)), atol=1e-6)  # it still answers


@tensorflow_only
def test_bad_bytes_and_targets_are_refused_by_name(both):
    tf = importlib.import_module("tensorflow")
    live, served = both("gracapsnet")
    x = images(live, 2)
    whole = tf.io.encode_png(np.rint(255 * x[0]).astype("uint8")).numpy()
    for bad, said in (([b"text"], "JPEG or PNG"), ([whole[:40]], "encoded"), ([], "empty batch")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s)encoded.*{said}|{said}"):
            served.run("serve_bytes", encoded=tf.constant(bad, tf.string, (len(bad),)))
    with pytest.raises(ValueError, match="Expected encoded of bytes"):
        served.run("serve_bytes", encoded=x)
    for bad, said in (([0, CLASSES], "from 0 to 3"), ([-2, 0], "from 0 to 3"), ([0], "one class id per image")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"target: expected .*{said}"):
            served.explain(x, target=bad, endpoint="lrp")
    with pytest.raises(ValueError, match="takes no target"):
        served.explain(x, target=1)
    with pytest.raises(ValueError, match=r"no explanation 'votes'; it has \["):
        served.explain(x, endpoint="votes")
    with pytest.raises(ValueError, match=r"no endpoint 'nothing'; it has \["):
        served.run("nothing", images=x)


@tensorflow_only
def test_relevance_of_new_weights_is_exported(tmp_path):
    model = ConvNetAvg((12, 12, 3), 4, kernel_size=3, filters=6)
    explainer, x = explain.LRP(model), np.random.default_rng(0).uniform(size=(2, 12, 12, 3)).astype("float32")
    before = explainer(x, 1)
    as_if_trained(model)
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)
    serving.export(model, tmp_path, explainers={"lrp": explainer}, taps=[])
    served = serving.load(tmp_path)
    maps = served.explain(x, 1, endpoint="lrp")["maps"]
    np.testing.assert_allclose(maps, explain.LRP(model)(x, 1), atol=1e-6)
    assert np.abs(maps - before).max() > 1e-4
    assert served.endpoints == ["lrp", "serve_bytes", "serving_default"]


@tensorflow_only
def test_files_have_the_limit_that_the_card_says(tmp_path):
    tf = importlib.import_module("tensorflow")
    served = serving.load(serving.export(flat(), tmp_path, input_range=(0, 1), max_pixels=100))
    assert served.card["input"]["max_pixels"] == 100
    inside, outside = (tf.io.encode_png(np.zeros((10, width, 1), "uint8")).numpy() for width in (10, 11))
    assert served.run("serve_bytes", encoded=[inside])["outputs"].shape == served(np.zeros((1, 8, 8, 1))).shape
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)expected at most 100 pixels.*\[11 10\]"):
        served.run("serve_bytes", encoded=[inside, outside])
    without = serving.load(serving.export(flat(), tmp_path, input_range=None, max_pixels=1))
    assert without.card["input"]["max_pixels"] is None


@tensorflow_only
def test_integers_that_do_not_fit_are_refused(tmp_path):
    images = keras.Input((2, 2, 1), dtype="uint8")
    model = keras.Model(images, keras.layers.Flatten()(keras.layers.Rescaling(1.0)(images)))
    served = serving.load(serving.export(model, tmp_path))
    x = np.array([0, 1, 254, 255]).reshape(1, 2, 2, 1)
    for inputs in (x, x.astype("uint8"), x.astype("float64")):
        np.testing.assert_array_equal(served(inputs)[0], [0, 1, 254, 255])
    for bad in (x + 1, x - 1, x + 2**32):
        with pytest.raises(ValueError, match="Expected images from 0 to 255, as uint8; received others"):
            served(bad)
    with pytest.raises(ValueError, match="images of integers, as uint8; received float"):
        served(x + 0.5)
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size must be an integer from 1"):
            served.predict(x, batch_size=size)


@tensorflow_only
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_decoded_resized_and_scaled(tmp_path, channels):
    tf = importlib.import_module("tensorflow")
    images = keras.Input((4, 6, channels))
    pixels = keras.Model(images, keras.layers.Flatten()(images))
    served = serving.load(serving.export(pixels, tmp_path, input_range=(-1, 1)))

    def read(*files):
        return served.run("serve_bytes", encoded=list(files))["outputs"].numpy() / 2 + 0.5

    x = np.random.default_rng(0).integers(0, 256, (4, 6, 3), "uint8")
    grey = np.repeat(x[..., :1], 3, axis=-1)
    for each in read(tf.io.encode_png(grey).numpy(), tf.io.encode_png(grey[..., :1]).numpy()):
        np.testing.assert_allclose(each, grey[..., :channels].ravel() / 255, atol=3e-3)
    if channels == 3:
        np.testing.assert_allclose(read(tf.io.encode_png(x).numpy())[0], x.ravel() / 255, atol=1e-6)
    plain = np.full((40, 30, 3), 51, "uint8")
    np.testing.assert_allclose(read(tf.io.encode_jpeg(plain).numpy()), 0.2, atol=3e-3)


KILLED = """
import os, pathlib, signal, sys, threading
import keras
from keras_capsvit import serving
path = pathlib.Path(sys.argv[1])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before it is renamed":
    os.rename = die
else:
    def watch():
        while not list(path.glob(".tmp-*/*")):
            pass
        die()
    threading.Thread(target=watch, daemon=True).start()
model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
serving.export(model, path, input_range=(0, 1))
print("survived")
"""


@pytest.mark.slow
@tensorflow_only
@pytest.mark.parametrize("moment", ["while it is written", "before it is renamed"])
def test_an_export_that_is_killed_leaves_no_version(tmp_path, moment):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, moment], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".tmp-"]
    with pytest.raises(FileNotFoundError, match="found none"):
        serving.load(tmp_path)
    assert serving.export(flat(), tmp_path, input_range=(0, 1)) == tmp_path / "1"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]  # what was left is gone, where the system tells


def flat():
    """The smallest model there is; it does not tell the range of its pixels."""
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])


@tensorflow_only
def test_versions_do_not_disturb_each_other(tmp_path, monkeypatch):
    model, x = flat(), np.ones((2, 8, 8, 1), "float32")
    assert serving.export(model, tmp_path, input_range=(0, 1)) == tmp_path / "1"
    reader, before = serving.load(tmp_path), np.array(model(x))
    rename = os.rename

    def late(source, target):  # another exporter was first
        if pathlib.Path(target).name == "2":
            pathlib.Path(target, "assets").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert serving.export(flat(), tmp_path, input_range=(0, 1)) == tmp_path / "3"
    np.testing.assert_array_equal(reader(x), before)
    assert serving.load(tmp_path).card["version"] == 3
    np.testing.assert_array_equal(serving.load(tmp_path, version=1)(x), before)
    assert not list(tmp_path.glob(".tmp-*"))


@tensorflow_only
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError"),
        (lambda text: "", "it is empty"),
        (lambda text: "[1, 2]", "it is no object with a name and an input range"),
        (lambda text: text.replace('"range": [', '"range": [NaN, '), "NaN is no number in JSON"),
        (lambda text: text.replace('"range": [', '"range": [5, '), "it is no object with a name and an input range"),
        (lambda text: text.replace('"name": "', '"name": 3, "other": "', 1), "it is no object with a name"),
    ],
)
def test_a_damaged_model_card_is_left_out_with_a_warning(exported_flat, tmp_path, damage, reason):
    folder, model, x = exported_flat
    path = shutil.copytree(folder, tmp_path / "copy")
    card = path / "1" / "model_card.json"
    card.write_text(damage(card.read_text()))
    with pytest.warns(UserWarning, match=rf"loaded without its card, so .*model_card.json cannot be read .*{reason}"):
        served = serving.load(path)
    assert (served.card, served.name) == ({}, "served_model")
    np.testing.assert_array_equal(served(x), model(x))


@tensorflow_only
@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_damaged_saved_model_is_named(exported_flat, tmp_path, file):
    path = shutil.copytree(exported_flat[0], tmp_path / "copy")
    content = (path / "1" / file).read_bytes()
    (path / "1" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{path}/1 cannot be read as a SavedModel: .*Export the model again"):
        serving.load(path)


@pytest.fixture(scope="module")
def exported_flat(tmp_path_factory):
    """Folder of a small exported model, the model, and images."""
    model, folder = flat(), tmp_path_factory.mktemp("flat")
    serving.export(model, folder, input_range=(0, 1))
    return folder, model, np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype("float32")


@tensorflow_only
def test_says_what_is_wrong(tmp_path):
    model = flat()
    with pytest.raises(FileNotFoundError, match=rf"SavedModel in {tmp_path}.*found none"):
        serving.load(tmp_path)
    with pytest.raises(ValueError, match="Expected a Keras model, whose variables are saved along; received function"):
        serving.export(lambda x: x, tmp_path)
    with pytest.raises(ValueError, match=r"class scores of shape \(batch, classes\); .* returns \(.*, 8, 8\)"):
        serving.export(
            keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Reshape((8, 8))]), tmp_path
        )
    for settings, said in (
        ({"taps": ["votes"]}, r"sequential.* has no tap 'votes'; it has .* and the layers 'flatten"),
        ({"taps": ["serve_bytes"]}, r"other names than endpoints have; received \['serve_bytes'\]"),
        ({"explainers": {"serving_default": explain.Saliency(model)}}, "received 'serving_default'"),
        ({"explainers": {"two words": explain.Saliency(model)}}, "identifiers"),
        ({"explainers": {"map": "saliency"}}, "'map' to be callable; received str"),
        ({"explainers": {"sg": explain.SmoothGrad(lambda x, ids: x)}}, "'sg' cannot run inside an endpoint"),
        ({"input_range": (1, 0)}, r"received \(1, 0\)"),
        ({"input_range": 255}, r"\(lowest, highest\) pixel, finite; received 255"),
        ({"input_range": (-np.inf, 0)}, "finite; received"),
        ({"input_shape": (8, 9, 1)}, r"fit \(None, 8, 8, 1\); received \(8, 9, 1\)"),
        ({"max_pixels": 63}, "max_pixels must allow the model's own 8 x 8; received 63"),
        ({"max_pixels": 0}, "max_pixels must be an integer from 1; received 0"),
        ({"max_pixels": 1e6}, "max_pixels must be an integer from 1"),
        ({"card": {"version": 3}}, r"says \['version'\] by itself"),
        ({"card": {"accuracy": float("nan")}}, "finite JSON values"),
    ):
        with pytest.raises(ValueError, match=said):
            serving.export(model, tmp_path, **{"input_range": (0, 1), **settings})
    pytest.importorskip("tensorflow_serving")
    with pytest.raises(ValueError, match=r"shape \(None, 8, 8, 1\); received \(2, 8, 8, 3\)"):
        serving.export(model, tmp_path, input_range=(0, 1), warmup=np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="finite pixels"):
        serving.export(model, tmp_path, input_range=(0, 1), warmup=np.full((2, 8, 8, 1), np.nan))
    assert not list(tmp_path.iterdir())


@tensorflow_only
def test_warm_up_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"keras-capsvit\[serving\]"):
        serving.export(flat(), tmp_path, input_range=(0, 1), warmup=np.zeros((1, 8, 8, 1)))


def test_export_names_the_backend_it_needs(tmp_path):
    if keras.backend.backend() == "tensorflow":
        pytest.skip("this is about the other backends")
    with pytest.raises(ValueError, match="needs the tensorflow backend; received 'jax'"):
        serving.export(flat(), tmp_path)
