"""Settings that make nonsense are refused, by name, before anything is computed or allocated."""

import importlib
import pathlib
import re
import sys
import warnings

import keras
import numpy as np
import pytest

from keras_capsvit import attacks, checks, evaluate, explain, layers, models, versions
from keras_capsvit.losses import MarginLoss

NO_NUMBERS = (np.nan, np.inf, -np.inf, "1", True)
X = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype("float32")
MAPS = X[..., 0]
Y = np.array([0, 1])


def model(**settings):
    return models.GraCapsNet((8, 8, 1), 3, num_heads=2, filters=4, **settings)


def scores(x):
    return keras.ops.concatenate([x[:, 0, 0], 1 - x[:, 0, 0]], axis=-1)


scores.variables = ()
PGD = attacks.PGD(0.1)

# Constructors and functions, the name of a setting, and values besides NO_NUMBERS that are none.
NUMBERS = [
    (layers.MultiHeadSelfAttention, (2,), "temperature", (0, -1)),
    (layers.MultiHeadSelfAttention, (2,), "dropout", (-0.1, 1)),
    (layers.MLP, (2,), "dropout", (-0.1, 1)),
    (layers.TransformerBlock, (2, 2), "drop_path", (-0.1, 1)),
    (layers.TransformerBlock, (2, 2), "epsilon", (0, -1)),
    (layers.MixerBlock, (2, 2), "epsilon", (0, -1)),
    (layers.CapsuleInitializer, (), "scale", (0, -1)),
    (layers.EMRouting, (), "inverse_temperature", (0, -1)),
    (layers.EMRouting, (), "eps", (0, -1)),
    (layers.SelfRouting, (2,), "eps", (0, -1)),
    (layers.GraphCapsPool, (2,), "sigma", (-1,)),
    (layers.TopKGraphPool, (2,), "ratio", (0, 1.1)),
    (layers.gaussian_adjacency, (2, 2), "sigma", (-1,)),
    (MarginLoss, (), "m_plus", ()),
    (MarginLoss, (), "m_minus", ()),
    (MarginLoss, (), "lam", (-1,)),
    (models.GraCapsNet, ((8, 8, 1), 3), "sigma", (-1,)),
    (models.GraCapsNet, ((8, 8, 1), 3), "reconstruction_weight", (-1,)),
    (models.VisionTransformer, ("Ti/4",), "epsilon", (0, -1)),
    (models.VisionTransformer, ("Ti/4",), "dropout", (-0.1, 1)),
    (models.VisionTransformer, ("Ti/4",), "temperature", (0, -1)),
    (models.MLPMixer, ("S/4",), "drop_path", (-0.1, 1)),
    (models.LeViT, (), "drop_path", (-0.1, 1)),
    (models.LeViT, (), "temperature", (0, -1)),
    (models.AlexNet, (), "dropout", (-0.1, 1)),
    (models.GoogLeNet, (), "dropout", (-0.1, 1)),
    (attacks.FGSM, (), "epsilon", (-1,)),
    (attacks.PGD, (0.1,), "step_size", (-1,)),
    (attacks.PGD, (0.1,), "relative_step", (-1,)),
    (attacks.MIM, (0.1,), "decay", (-1,)),
    (attacks.DeepFool, (), "epsilon", (-1,)),
    (attacks.DeepFool, (), "overshoot", (-1,)),
    (attacks.APGD, (), "epsilon", (-1,)),
    (attacks.APGD, (0.1,), "rho", (-0.1, 1.1)),
    (attacks.AutoAttack, (), "epsilon", (-1,)),
    (attacks.FAB, (), "epsilon", (-1,)),
    (attacks.FAB, (), "alpha_max", (-0.1, 1.1)),
    (attacks.FAB, (), "eta", (0.9,)),
    (attacks.FAB, (), "beta", (-0.1, 1.1)),
    (attacks.CarliniWagner, (), "step_size", (-1,)),
    (attacks.CarliniWagner, (), "initial_const", (-1,)),
    (attacks.CarliniWagner, (), "confidence", (-1,)),
    (attacks.CarliniWagnerBox, (), "epsilon", (-1,)),
    (attacks.CarliniWagnerBox, (0.1,), "confidence", (-1,)),
    *(
        (attacks.CarliniWagnerLinf, (), name, (-1, 0))
        for name in ("initial_const", "largest_const", "const_factor", "decrease_factor", "smallest_limit")
    ),
    (attacks.PatchAttack, (2,), "epsilon", (-1,)),
    (attacks.Square, (), "epsilon", (-1,)),
    (attacks.Square, (0.1,), "p", (-1, 0, 1.1)),
    (attacks.PatchAttack, (2,), "step_size", (-1,)),
    (lambda **settings: attacks.DetectionAware(0.1, error=scores, **settings), (), "beta", (-0.1, 1.1)),
    (lambda **settings: explain.SmoothGrad(explain.RandomMap(), **settings), (), "noise", (-1,)),
    (lambda **settings: explain.AttentionRollout(scores, **settings), (), "discard_ratio", (-0.1, 1)),
    (evaluate.pointing_game, (MAPS, MAPS > 0), "tolerance", (-1,)),
    (lambda **settings: evaluate.road(scores, X, MAPS, **settings), (), "noise", (-1,)),
    (lambda **settings: evaluate.infidelity(scores, X, MAPS, **settings), (), "noise", (-1, 0)),
    (lambda **settings: evaluate.max_sensitivity(lambda x, target: x, X, Y, **settings), (), "radius", (-1, 0)),
    (lambda **settings: evaluate.detection_threshold(scores, (X, Y), **settings), (), "percentile", (0, 100)),
    (lambda **settings: evaluate.detection(scores, PGD, (X, Y), error=scores, **settings), (), "threshold", ()),
]
INTEGERS = [
    (layers.MultiHeadSelfAttention, (), "num_heads"),
    (layers.MLP, (), "units"),
    (layers.MixerBlock, (2,), "channel_units"),
    (layers.PrimaryCaps, (2,), "capsule_dim"),
    (layers.PrimaryCaps, (2, 2), "strides"),
    (layers.PrimaryCaps, (2, 2), "kernel_size"),
    (layers.CapsuleTransform, (), "capsule_dim"),
    (layers.CapsuleTransform, (2,), "num_capsules"),
    (layers.DynamicRouting, (), "num_iterations"),
    (layers.EMRouting, (), "num_iterations"),
    (layers.SelfRouting, (), "num_capsules"),
    (layers.GraphCapsPool, (), "num_capsules"),
    (layers.PatchEmbedding, (2,), "dim"),
    (lambda **settings: layers.PatchEmbedding(dim=2, **settings), (), "patch_size"),
    *((models.CapsNet, ((28, 28, 1), 3), name) for name in ("num_types", "capsule_dim", "filters", "kernel_size")),
    *((models.GraCapsNet, ((8, 8, 1), 3), name) for name in ("num_heads", "primary_dim", "capsule_dim", "filters")),
    (models.ConvNetCR, ((28, 28, 1), 3), "group_dim"),
    (models.ConvNetFC, ((8, 8, 1), 3), "kernel_size"),
    (models.ResNet18, ((8, 8, 1), 3), "filters"),
    *((models.VisionTransformer, ("Ti/4",), name) for name in ("width", "depth", "num_heads", "mlp_units")),
    (models.MLPMixer, ("S/4",), "token_units"),
    *((models.AlexNet, (), name) for name in ("filters", "units")),
    (models.GoogLeNet, (), "filters"),
    (models.LeViT, (), "key_dim"),
    (attacks.PGD, (0.1,), "steps"),
    (attacks.PGD, (0.1,), "restarts"),
    (attacks.DeepFool, (), "steps"),
    (attacks.DeepFool, (), "candidates"),
    *((attacks.APGD, (0.1,), name) for name in ("steps", "restarts", "targets", "eot_iter")),
    *((attacks.FAB, (), name) for name in ("steps", "restarts", "targets")),
    (attacks.CarliniWagner, (), "binary_search_steps"),
    (attacks.PatchAttack, (2,), "num_patches"),
    (attacks.Square, (0.1,), "queries"),
    (attacks.Square, (0.1,), "restarts"),
    (attacks.PatchAttack, (2,), "batch_size"),
    (explain.Saliency, (scores,), "batch_size"),
    (explain.IntegratedGradients, (scores,), "steps"),
    (lambda **settings: explain.SmoothGrad(explain.RandomMap(), **settings), (), "samples"),
    (lambda **settings: evaluate.aopc(scores, X, MAPS, **settings), (), "patch"),
    (lambda **settings: evaluate.aopc(scores, X, MAPS, **settings), (), "batch_size"),
    (lambda **settings: evaluate.ablation_drop(scores, X, MAPS, mean=0.0, **settings), (), "size"),
    *(
        (lambda **settings: evaluate.deletion(scores, X, MAPS, **settings), (), name)
        for name in ("steps", "batch_size")
    ),
    (lambda **settings: evaluate.insertion(scores, X, MAPS, **settings), (), "steps"),
    (lambda **settings: evaluate.road(scores, X, MAPS, **settings), (), "batch_size"),
    (lambda **settings: evaluate.infidelity(scores, X, MAPS, **settings), (), "samples"),
    (lambda **settings: evaluate.infidelity(scores, X, MAPS, perturbations="square", **settings), (), "size"),
    (lambda **settings: evaluate.max_sensitivity(lambda x, target: x[..., 0], X, Y, **settings), (), "samples"),
    (lambda **settings: evaluate.robustness(scores, PGD, (X, Y), **settings), (), "batch_size"),
    (evaluate.random_targets, (), "num_classes"),
]
SEEDS = [
    (attacks.PGD, (0.1,)),
    (attacks.PatchAttack, (2,)),
    (attacks.FAB, ()),
    (explain.RandomMap, ()),
    (lambda **settings: explain.SmoothGrad(explain.RandomMap(), **settings), ()),
    (evaluate.random_targets, (3,)),
    (lambda **settings: evaluate.aopc(scores, X, MAPS, **settings), ()),
    (lambda **settings: evaluate.deletion(scores, X, MAPS, **settings), ()),
    (lambda **settings: evaluate.insertion(scores, X, MAPS, **settings), ()),
    (lambda **settings: evaluate.road(scores, X, MAPS, **settings), ()),
    (lambda **settings: evaluate.infidelity(scores, X, MAPS, **settings), ()),
    (lambda **settings: evaluate.max_sensitivity(lambda x, target: x[..., 0], X, Y, **settings), ()),
]
FLAGS = [
    (lambda **settings: PGD(scores, X, Y, **settings), "targeted"),
    (lambda **settings: attacks.DeepFool()(scores, X, Y, **settings), "targeted"),
    (lambda **settings: attacks.PatchAttack(2).run(scores, X, Y, **settings), "targeted"),
    (lambda **settings: attacks.PGD(0.1, **settings), "random_start"),
    (lambda **settings: attacks.PatchAttack(2, **settings), "universal"),
    (lambda **settings: attacks.CarliniWagner(**settings), "abort_early"),
    (model, "self_loops"),
    (model, "trainable"),
    (lambda **settings: models.CapsNet((8, 8, 1), 3, **settings), "squash"),
    (lambda **settings: models.VisionTransformer("Ti/4", **settings), "distilled"),
    (lambda **settings: models.ResNet34(**settings), "weight_standardization"),
    (lambda **settings: layers.PrimaryCaps(2, 2, **settings), "squash"),
    (lambda **settings: layers.PrimaryCaps(2, 2, **settings), "batch_norm"),
    (lambda **settings: models.CapsNet((28, 28, 1), 3, **settings), "batch_norm"),
    (lambda **settings: layers.DynamicRouting(**settings), "rolled"),
    (lambda **settings: layers.CapsuleTransform(2, **settings), "shared"),
    (lambda **settings: layers.GraphCapsPool(2, **settings), "normalize"),
    (lambda **settings: layers.PatchEmbedding(2, 2, **settings), "class_token"),
    (lambda **settings: explain.Saliency(scores, **settings), "channels"),
    (lambda **settings: evaluate.robustness(scores, PGD, (X, Y), **settings), "early"),
    (lambda **settings: evaluate.rank_correlation(MAPS, MAPS, **settings), "absolute"),
    (lambda **settings: evaluate.ablation_drop(scores, X, MAPS, mean=0.0, **settings), "relative"),
    (lambda **settings: evaluate.infidelity(scores, X, MAPS, **settings), "normalize"),
]


def named(value):
    return getattr(value, "__name__", None) if callable(value) else value if isinstance(value, str) else None


@pytest.mark.parametrize(("make", "args", "name", "others"), NUMBERS, ids=named)
def test_numbers_that_are_none(make, args, name, others):
    for wrong in (*NO_NUMBERS, *others):
        message = rf"{name} must be a number in [\[(].*; received {re.escape(repr(wrong))}"
        with pytest.raises(ValueError, match=message):
            make(*args, **{name: wrong})


@pytest.mark.parametrize(("make", "args", "name"), INTEGERS, ids=named)
def test_integers_that_are_none(make, args, name):
    for wrong in (0, -1, 2.5, np.nan, "2", True):
        with pytest.raises(ValueError, match=rf"{name} must be an integer from [12].*; received {wrong!r}"):
            make(*args, **{name: wrong})


@pytest.mark.parametrize(("make", "args"), SEEDS, ids=named)
def test_seeds_that_are_none(make, args):
    for wrong in (-1, 0.5, "0", None):
        with pytest.raises(ValueError, match=f"seed must be an integer from 0; received {wrong!r}"):
            make(*args, seed=wrong)


@pytest.mark.parametrize(("make", "name"), FLAGS, ids=named)
def test_flags_that_are_none(make, name):
    for wrong in ("no", 1, None, np.nan):
        with pytest.raises(ValueError, match=f"{name} must be True or False; received {wrong!r}"):
            make(**{name: wrong})


@pytest.mark.tensorflow
@pytest.mark.parametrize("explainer", ["LRP", "CLRP", "GuidedBackprop"])
def test_settings_of_relevance(explainer):
    net = models.ConvNetAvg((8, 8, 1), 3, kernel_size=2, filters=4)
    for wrong in (-1, 0, 2.5):
        with pytest.raises(ValueError, match=f"batch_size must be an integer from 1 to 2147483647; received {wrong}"):
            getattr(explain, explainer)(net, batch_size=wrong)
    with pytest.raises(ValueError, match="channels must be True or False; received 'no'"):
        getattr(explain, explainer)(net, channels="no")


@pytest.mark.tensorflow
def test_settings_of_data():
    from keras_capsvit import data

    digits = lambda **settings: data.load("digits", **settings)  # noqa: E731
    stream = data.from_arrays(X, Y)
    for make, name, wrongs in [
        (digits, "batch_size", (0, -1, 2.5)),
        (digits, "seed", (-1, 0.5)),
        (digits, "image_size", (0, 2.5)),
        (lambda **settings: data.take(stream, **settings), "n", (0, -1, 2.5)),
        (lambda **settings: data.from_arrays(X, Y, **settings), "batch_size", (0, 2.5)),
        (lambda **settings: data.augment(stream, **settings), "shift", (-1, 2.5, np.nan)),
        (lambda **settings: data.affine.place(X, seed=0, **settings), "size", (0, 9.5)),
    ]:
        for wrong in wrongs:
            with pytest.raises(ValueError, match=rf"{name} must be an integer from [01].*; received {wrong!r}"):
                make(**{name: wrong})
    for make, name in [
        (digits, "download"),
        (lambda **settings: data.from_arrays(X, Y, **settings), "shuffle"),
        (lambda **settings: data.augment(stream, **settings), "flip"),
        (lambda **settings: data.affine.transform(X, 0, **settings), "keep_inside"),
    ]:
        with pytest.raises(ValueError, match=f"{name} must be True or False; received 'no'"):
            make(**{name: "no"})
    for name in ("rotation", "shear", "translation"):
        for wrong in (*NO_NUMBERS, -1):
            with pytest.raises(ValueError, match=f"{name} must be a number in .*; received {re.escape(repr(wrong))}"):
                data.affine.transform(X, 0, **{name: wrong})


@pytest.mark.parametrize("wrong", [(0, np.nan), (0, np.inf), (-np.inf, 1)])
def test_bounds_that_are_not_finite(wrong):
    for make in (attacks.FGSM, attacks.PGD, attacks.PatchAttack):
        with pytest.raises(ValueError, match="Expected bounds"):
            make(2, bounds=wrong)


def test_settings_that_are_set_later():
    net = models.CapsNet((8, 8, 1), 3, num_types=2, filters=4, kernel_size=3, reconstruction="conditional")
    with pytest.raises(ValueError, match=r"reconstruction_weight must be a number in \[0, inf\); received -1"):
        net.reconstruction_weight = -1
    assert net.reconstruction_weight == 0.0005
    vit = models.VisionTransformer("Ti/4", input_shape=(8, 8, 1), num_classes=3, width=8, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=r"temperature must be a number in \(0, inf\); received nan"):
        vit.temperature = np.nan


@pytest.mark.samples(8)
# What would not fit into any memory is refused before it is allocated; without that the process is killed.
@pytest.mark.parametrize(
    "make",
    [
        lambda: models.CapsNet((28, 28, 1), 10**7),
        lambda: models.GraCapsNet((28, 28, 1), 10**7),
        lambda: models.GraCapsNet((2000, 2000, 1), 3),
        lambda: models.ConvNetR((28, 28, 1), 10**7),
        lambda: models.ConvNetFC((28, 28, 1), 3, units=(10**7,)),
        lambda: models.ConvNetFC((28, 28, 1), 3, filters=(10**6, 10**6)),
        lambda: models.ConvNetAvg((28, 28, 1), 10**7, filters=10**5),
        lambda: models.VGG19((32, 32, 1), 3, filters=10**6),
        lambda: models.AlexNet(units=10**7),
        lambda: models.LeViT(input_shape=(8000, 8000, 3)),
        lambda: models.LeViT(widths=(10**7, 8), depths=(1, 1), num_heads=(1, 1)),
        lambda: models.GoogLeNet(filters=10**6),
        lambda: models.ResNet18((32, 32, 1), 3, filters=10**6),
        lambda: models.VisionTransformer("H/14", num_classes=10**7),
        lambda: models.VisionTransformer("Ti/16", width=3 * 10**6),
        lambda: models.VisionTransformer("Ti/16", mlp_units=10**7),
        lambda: models.MLPMixer("S/16", token_units=10**7),
        lambda: models.CapsNet((28, 28, 1), 3, reconstruction="conditional", reconstruction_units=(10**7, 10**7)),
        lambda: models.CapsNet((10**6, 10**6, 3), 3),
        lambda: models.CapsNet((2000, 2000, 1), 1000),
        lambda: layers.SelfRouting(10**7).build((None, 10**4, 1, 16), (None, 10**4, 16), (None, 10**4)),
        lambda: layers.PatchEmbedding(10**4, 10**4).build((None, 10**4, 10**4, 3)),
    ],
)
def test_what_does_not_fit_into_memory_is_refused(make, monkeypatch):
    monkeypatch.setattr(checks.settings, "_physical_memory", lambda: 16 * 2**30)
    with pytest.raises(ValueError, match=r", of shape \(.*\), would take [\d.]+ GiB.*; this machine has 16\.0 GiB\. "):
        make()


def test_strides_that_overflow():
    for make in (
        lambda: models.CapsNet((28, 28, 1), 3, strides=(1, 2**31)),
        lambda: models.GraCapsNet((28, 28, 1), 3, strides=(2**31, 1)),
        lambda: layers.PrimaryCaps(2, 2, strides=2**31),
        lambda: layers.PrimaryCaps(2, 2, strides=(2, 2**31)),
    ):
        with pytest.raises(ValueError, match=r"strides must be .* to 16777216.*received .*2147483648"):
            make()
    for wrong in (2, (1, 2, 3), "12"):
        with pytest.raises(ValueError, match="strides must be a pair of ints"):
            models.CapsNet((28, 28, 1), 3, strides=wrong)


def test_numbers_of_numpy_are_numbers():
    assert attacks.PGD(np.float32(0.1), steps=np.int64(3)).steps == 3
    assert checks.number("x", np.float64(0.5), 0, 1) == 0.5
    assert isinstance(checks.number("x", np.float32(0.5)), float)
    assert isinstance(checks.integer("x", np.int8(5)), int)
    net = models.GraCapsNet((8, 8, 1), 3, num_heads=np.int64(2), filters=4, sigma=np.float32(1.5))
    again = type(net).from_config(net.get_config())
    assert again.get_config() == net.get_config()


def test_versions_that_no_test_ran_on(monkeypatch):
    installed = {"Python": "3.99", "tensorflow": "2.18.1", "keras": "3.7.0", "numpy": None}
    monkeypatch.setattr(versions, "_installed", installed.get)
    with pytest.warns(
        UserWarning, match=r"not tested with Python 3\.99, keras 3\.7\.0; .* Python 3\.\S+ to .* keras 3\."
    ):
        versions.warn_of_untested()
    monkeypatch.setattr(versions, "_installed", {name: newest for name, (_, newest) in versions.TESTED.items()}.get)
    with warnings.catch_warnings(action="error"):
        versions.warn_of_untested()


def test_what_needs_tensorflow_says_so_where_it_is_not_installed(monkeypatch):
    versions.require_tensorflow("anything")
    monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: None)
    for name in ("data", "serving"):
        module = f"keras_capsvit.{name}"
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(ModuleNotFoundError, match=f"{module} needs TensorFlow, .* pip install tensorflow"):
            importlib.import_module(module)


def test_the_lowest_versions_are_those_of_setup_cfg():
    setup = pathlib.Path(__file__).parent.parent.joinpath("setup.cfg").read_text()
    for name, (lowest, _) in versions.TESTED.items():
        assert f"{'python_requires = ' if name == 'Python' else f'    {name}'}>={lowest}\n" in setup
