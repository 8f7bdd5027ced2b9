"""Whole models from .keras files: no code is run, and nothing larger is built than the file has weights for."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest

from keras_capsvit import CapsNet, ConvNetFC, DeiT, GraCapsNet, MLPMixer, ResNet18, VisionTransformer, load_model

SMALL = {"input_shape": (8, 8, 1), "num_classes": 3, "width": 8}
MODELS = {
    "gracapsnet": lambda: GraCapsNet((9, 9, 1), 3, filters=8, num_heads=2, reconstruction="conditional"),
    "capsnet": lambda: CapsNet((14, 14, 1), 3, filters=8, num_types=2, kernel_size=5),
    "convnet": lambda: ConvNetFC((14, 14, 1), 3, filters=(4, 4, 4)),
    "resnet": lambda: ResNet18((16, 16, 3), 3, filters=4, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)),
    "vit": lambda: VisionTransformer("Ti/4", **SMALL, depth=1, num_heads=2, dropout=0.1),
    "deit": lambda: DeiT("Ti/4", **SMALL, depth=1, num_heads=2, distilled=True),
    "mixer": lambda: MLPMixer("S/4", **SMALL, depth=1, token_units=4, channel_units=4),
    "keras": lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    ),
}


@pytest.fixture
def saved(tmp_path):
    model = MODELS["vit"]()
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.samples(2)
@pytest.mark.parametrize("kind", MODELS)
def test_models_are_as_they_were_saved(kind, tmp_path):
    model = MODELS[kind]()
    model.compile("adam", "mse", metrics=["mae"])
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    assert loaded.compiled
    for before, after in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(before, after, err_msg=before.path)
    x = np.random.default_rng(0).uniform(size=(2, *model.input_shape[1:])).astype("float32")
    np.testing.assert_array_equal(loaded(x), model(x))


@keras.saving.register_keras_serializable(package="tests")
class Counted(keras.initializers.Ones):
    """Counts how often it makes values."""

    calls = 0

    def __call__(self, shape, dtype=None):
        type(self).calls += 1
        return super().__call__(shape, dtype)


def test_looking_at_a_file_leaves_no_variables_that_wait_for_values(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer=Counted())])
    model.save(tmp_path / "model.keras")
    Counted.calls = 0
    load_model(tmp_path / "model.keras")
    with keras.StatelessScope():  # at whose end Keras gives values to what waits for them
        pass
    assert Counted.calls == 1


def rewrite(path, change):
    """Change the configuration of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps(change(json.loads(members["config.json"]))).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    path.write_bytes(file.getvalue())


def inside(value):
    return lambda config: {**config, "config": {**config["config"], "epsilon": value}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (inside({"class_name": "Lambda", "module": "keras.layers", "config": {}}), "holds a lambda, whose code is not"),
        (inside({"class_name": "__lambda__", "config": {"value": "code"}}), "holds a lambda, whose code is not"),
        (
            inside({"class_name": "function", "module": "os", "config": "system"}),
            "names os.function, which is not",
        ),
        (inside({"class_name": "Popen", "module": "subprocess", "config": {}}), "names subprocess.Popen, which is not"),
        (
            lambda config: {**config, "class_name": "Adam", "module": "keras.optimizers", "registered_name": None},
            "cannot be read as a .keras file",
        ),
        (lambda config: [], "describes no model, but a list"),
        (lambda config: {**config, "config": {}}, "cannot be read as a .keras file"),
    ],
)
def test_code_and_what_is_no_model_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=f"model.keras .*{message}"):
        load_model(saved)


def test_a_configuration_that_asks_for_more_than_the_file_has_is_refused_before_it_is_built(saved):
    rewrite(saved, lambda config: {**config, "config": {**config["config"], "num_classes": 2**24}})
    with pytest.raises(ValueError, match=r"asks for \d+,\d+,\d+,?\d* weights, of which it holds \d,\d+"):
        load_model(saved)


def test_missing_and_other_files_are_named(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"Expected a .keras file of a model at .*none.keras"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(ValueError, match=r"Expected a .keras file, which model.save writes; received a.h5"):
        load_model(tmp_path / "a.h5")
    saved.write_bytes(saved.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"model.keras cannot be read as a .keras file of a model: BadZipFile"):
        load_model(saved)
