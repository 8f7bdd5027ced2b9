"""Constructors: arguments recorded once, unknown keywords refused, the ResNets by depth."""

import importlib
import inspect
import json

import keras
import numpy as np
import pytest

import keras_capsvit
from keras_capsvit import models
from keras_capsvit.models.convnet import LogitModel

IMAGE = ((32, 32, 3), 10)
MODELS = {
    name: getattr(models, name)
    for name in models.__all__
    if inspect.isclass(getattr(models, name)) and name != "CapsuleModel"
}
ROOMS = [
    "attacks",
    "data",
    "evaluate",
    "explain",
    "layers",
    "losses",
    "metrics",
    "models",
    "patches",
    "schedules",
    "serving",
    "training",
]


def public_classes():
    for room in ROOMS:
        if room in ("data", "serving") and keras.backend.backend() != "tensorflow":
            continue
        module = importlib.import_module(f"keras_capsvit.{room}")
        for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
            member = getattr(module, name)
            if (
                inspect.isclass(member)
                and not issubclass(member, Exception)
                and member.__module__.startswith("keras_capsvit")
            ):
                yield f"{room}.{name}", member


CLASSES = dict(public_classes())


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_constructor_refuses_what_it_does_not_know(name):
    required = [
        parameter
        for parameter in inspect.signature(CLASSES[name]).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    with pytest.raises((TypeError, ValueError), match=r"nonsense|takes no arguments"):
        CLASSES[name](*(2 for _ in required), nonsense=3)


@pytest.mark.parametrize("name", MODELS)
def test_models_name_the_nearest_argument(name):
    for wrong, nearest in (("trainabel", "trainable"), ("num_clases", "num_classes")):
        with pytest.raises(ValueError, match=f"{name}, which are .*received the unknown '{wrong}'.*mean '{nearest}'"):
            MODELS[name](**{wrong: 3})
    with pytest.raises(ValueError, match=r"unknown 'dtype'\. Call keras\.config\.set_dtype_policy"):
        MODELS[name](dtype="float16")


def test_what_a_class_sets_itself_is_refused_with_the_classes_that_take_it():
    with pytest.raises(ValueError, match=r"ResNet20 sets depth=20 itself; received depth=56\. .*another class: ResNet"):
        models.ResNet20(*IMAGE, depth=56)
    with pytest.raises(ValueError, match=r"ResNet50 sets depth=50 .*class: ResNet18, ResNet34, ResNet101, ResNet152"):
        models.ResNet50(depth=101)
    with pytest.raises(ValueError, match=r"AffCapsNet sets routing='uniform' itself; received routing='em'"):
        models.AffCapsNet(*IMAGE, routing="em")
    with pytest.raises(ValueError, match=r"ConvNetCR sets reconstruction='conditional' itself"):
        models.ConvNetCR(*IMAGE, reconstruction=None)
    with pytest.raises(ValueError, match=r"one of \(20, 32, 44, 56, 110\); received 50\. .* ResNet18 to ResNet152"):
        models.ResNet(*IMAGE, depth=50)
    with pytest.raises(TypeError, match="num_classes"):
        models.ResNet20((32, 32, 3))


def test_signatures_show_the_arguments_of_all_bases():
    deit, vit = (inspect.signature(kind).parameters for kind in (models.DeiT, models.VisionTransformer))
    assert set(deit) == set(vit)
    assert deit["variant"].default == "Ti/16"
    caps, aff = (inspect.signature(kind).parameters for kind in (models.CapsNet, models.AffCapsNet))
    assert set(caps) - set(aff) == {"routing", "shared_transform"}
    assert {"reconstruction_units", "name", "trainable"} < set(aff)
    assert not {"inputs", "capsules", "taps", "logits"} & set(caps)


def test_arguments_are_recorded_as_given_and_resolved():
    model = models.ResNet([8, 8, 3], 10, filters=2, mean=np.array([0.1, 0.2, 0.3]), std=[0.5] * 3, trainable=False)
    expected = {
        "input_shape": (8, 8, 3),
        "num_classes": 10,
        "depth": 20,
        "head": "avg",
        "filters": 2,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5),
        "name": "resnet20",
        "trainable": False,
    }
    assert model.get_config() == expected
    again = models.ResNet.from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config() == expected
    assert not again.trainable_variables
    vit = models.VisionTransformer("Ti/4", input_shape=(8, 8, 3), num_classes=2, depth=1)
    sizes = {"width": 192, "depth": 1, "num_heads": 3, "mlp_units": 768}
    assert sizes.items() <= vit.get_config().items()


def test_a_users_own_model_is_recorded_too():
    class Linear(LogitModel):
        def __init__(self, size, *, scale=1.0, **kwargs):
            images = keras.Input((size, size, 1))
            features = keras.layers.Rescaling(scale)(images)
            super().__init__(images, keras.layers.Flatten()(features), features, **kwargs)

    model = Linear(2, scale=3.0, name="mine")
    assert model.get_config() == {"size": 2, "scale": 3.0, "name": "mine", "trainable": True}
    x = np.random.default_rng(0).uniform(size=(2, 2, 2, 1)).astype("float32")
    np.testing.assert_allclose(Linear.from_config(model.get_config())(x), 3 * x.reshape(2, 4))
    with pytest.raises(ValueError, match=r"which are size, scale, name, trainable; .*Did you mean 'scale'\?"):
        Linear(2, scales=3.0)


def test_a_frozen_backbone_stays_frozen(tmp_path):
    backbone = models.ResNet20((8, 8, 3), 3, filters=2)
    backbone.trainable = False
    model = models.GraCapsNet((8, 8, 3), 3, backbone=backbone, kernel_size=None, num_heads=1)
    model.reconstruction_weight = 0.25  # a setting that may change after construction
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.trainable_variables) == len(model.trainable_variables) == 3
    assert again.reconstruction_weight == 0.25
    assert not any("layer1" in variable.path for variable in again.trainable_variables)


def test_models_are_cloned_by_keras():
    model = models.ResNet20((8, 8, 3), 3, filters=2)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(clone(x), model(x), atol=1e-6)


@pytest.mark.samples(3)
# He et al. 2016, Table 6; torchvision's table of models.
@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_published_sizes_of_networks_for_small_images(depth, parameters):
    model = models.ResNet(*IMAGE, depth=depth)
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == parameters
    # Every block has two convolutions; then there are the first one and the dense layer.
    assert sum("conv" in variable.path and variable.name == "kernel" for variable in model.weights) == depth - 1
    assert model.name == f"resnet{depth}"


@pytest.mark.samples(1)
@pytest.mark.parametrize(("name", "parameters"), [("ResNet34", 21_797_672), ("ResNet101", 44_549_160)])
def test_published_sizes_of_networks_for_imagenet(name, parameters):
    model = getattr(keras_capsvit, name)()
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == parameters
    assert model.output_shape == (None, 1000)


@pytest.mark.slow
def test_published_size_of_the_deepest():
    # With a quarter of the filters, scaled up: kernels have a sixteenth, but those of the first convolution and of the
    # dense layer a quarter, as normalisations have.
    model = keras_capsvit.ResNet152(filters=16)
    kernels = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables if len(variable.shape) == 4)
    vectors = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables if len(variable.shape) == 1)
    stem, dense = 7 * 7 * 3 * 16, 512 * 1000
    assert 16 * (kernels - stem) + 4 * stem + 4 * (vectors - 1000) + 4 * dense + 1000 == 60_192_808


def test_shapes_of_tensorflow_and_numpy_are_shapes():
    tf = pytest.importorskip("tensorflow")
    for shape in (tf.TensorShape([14, 14, 1]), np.array([14, 14, 1]), [14, 14, 1]):
        model = models.ConvNetFC(shape, np.int64(3), filters=np.array([4, 4]), units=[4])
        assert model.input_shape == (None, 14, 14, 1)
        assert model.get_config()["input_shape"] == (14, 14, 1)


LAYERS = {name: kind for name, kind in CLASSES.items() if name.startswith("layers.") and issubclass(kind, keras.Layer)}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_name_the_nearest_argument(name):
    required = [
        each
        for each in inspect.signature(LAYERS[name]).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    kind = LAYERS[name].__name__
    values = {"conv": keras.layers.Conv2D(2, 3), "norm": keras.layers.BatchNormalization(), "grid": (2, 2, 2)}
    arguments = [values.get(each.name, 2) for each in required]
    if kind in ("LeViTBlock", "OffsetAttention"):
        arguments[-1] = (2, 2)
    with pytest.raises(ValueError, match=rf"{kind}, which are .*received the unknown 'trainabel'.*mean 'trainable'\?"):
        LAYERS[name](*arguments, trainabel=False)
    config = LAYERS[name](*arguments, name="mine", trainable=False, dtype="float64").get_config()
    again = LAYERS[name].from_config(json.loads(json.dumps(config)))
    assert json.dumps(again.get_config()) == json.dumps(config)
    assert (again.name, again.trainable, again.dtype) == ("mine", False, "float64")
    own = [each for kind in LAYERS[name].__mro__ if kind.__module__.startswith("keras_capsvit") for each in named(kind)]
    assert set(own) <= set(config)


def named(kind):
    parameters = inspect.signature(vars(kind).get("__init__", test_layers_name_the_nearest_argument)).parameters
    return [
        each.name
        for each in list(parameters.values())[1:]
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]


def test_what_a_layer_is_set_to_later_is_its_configuration():
    from keras_capsvit import layers

    block = layers.LeViTBlock(2, 4, (4, 4), temperature=2)
    block.temperature = 3
    assert layers.LeViTBlock.from_config(block.get_config()).temperature == 3
    assert (
        layers.PatchEmbedding(4, 8, class_token=False, positions=False).get_config().items()
        >= {
            "class_token": False,
            "distillation_token": False,
            "positions": False,
        }.items()
    )


def test_layers_of_users_have_their_arguments_in_the_configuration_too():
    class Scaled(keras_capsvit.DynamicRouting):
        def __init__(self, num_iterations=3, *, scale=2.0, dtype=None, **kwargs):
            super().__init__(num_iterations, dtype=dtype, **kwargs)
            self.scale = scale

    class Named(keras_capsvit.UniformRouting):
        def __init__(self, label, **kwargs):
            super().__init__(**kwargs)
            self._label = label

        def get_config(self):
            return {**super().get_config(), "label": self._label}

    assert Named.from_config(Named("first").get_config()).get_config()["label"] == "first"
    config = Scaled(1, scale=4.0, squash=False).get_config()
    assert {"num_iterations": 1, "scale": 4.0, "squash": False, "rolled": False}.items() <= config.items()
    assert Scaled.from_config(config).scale == 4.0
    mixed = Scaled.from_config(Scaled(dtype="mixed_float16").get_config())
    assert mixed.dtype_policy.name == "mixed_float16"
    with pytest.raises(ValueError, match=r"unknown 'scales'\. Did you mean 'scale'\?"):
        Scaled(scales=4.0)
