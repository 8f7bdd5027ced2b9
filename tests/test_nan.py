"""NaN in, NaN out: nothing turns it into a number, and measurements, explanations and exports refuse it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, evaluate, explain, layers, losses, models
from keras_capsvit.attacks.norms import NORMS
from keras_capsvit.metrics import SubsetAccuracy
from keras_capsvit.ops import safe_norm, squash

SMALL = {"num_types": 2, "filters": 4, "kernel_size": 3}
IMAGES = {"input_shape": (8, 8, 1), "num_classes": 3, "width": 8}
FAMILIES = {
    **{
        f"CapsNet {routing}": lambda routing=routing: models.CapsNet((8, 8, 1), 3, routing=routing, **SMALL)
        for routing in ("dynamic", "trainable", "uniform", "em", "self")
    },
    "GraCapsNet": lambda: models.GraCapsNet((8, 8, 1), 3, num_heads=2, filters=4),
    "GraCapsNet top_k": lambda: models.GraCapsNet((8, 8, 1), 3, num_heads=2, filters=4, pooling="top_k"),
    "ConvNetCR": lambda: models.ConvNetCR((8, 8, 1), 3, filters=4, kernel_size=3),
    "ConvNetFC": lambda: models.ConvNetFC((8, 8, 1), 3, kernel_size=2, filters=(4,), units=(8,)),
    "AlexNet": lambda: models.AlexNet((64, 63, 1), 3, filters=2, units=4),
    "GoogLeNet": lambda: models.GoogLeNet((15, 16, 1), 3, filters=2),
    "VGG19": lambda: models.VGG19((32, 32, 1), 3, filters=2),
    "ResNet20": lambda: models.ResNet20((8, 8, 1), 3, filters=2),
    "ResNet18 of ImageNet": lambda: models.ResNet18((16, 16, 1), 3, stem="7x7", filters=4),
    "VisionTransformer": lambda: models.VisionTransformer("Ti/4", **IMAGES, depth=2, num_heads=2),
    "LeViT": lambda: models.LeViT(
        "128S", input_shape=(40, 33, 1), num_classes=3, widths=(8, 12), depths=(1, 1), num_heads=(2, 2), key_dim=4
    ),
    "MLPMixer": lambda: models.MLPMixer("S/4", **IMAGES, depth=1, token_units=4, channel_units=4),
}


def images(model, n=2):
    return np.random.default_rng(0).uniform(size=(n, *model.input_shape[1:])).astype("float32")


def broken(model):
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


def test_lengths_and_squashes_of_nan():
    x = np.float32([[np.nan, 1, 2], [0, 0, 0], [3, 4, 0]])
    np.testing.assert_array_equal(safe_norm(x), [np.nan, 0, 5])
    assert np.isnan(ops.convert_to_numpy(squash(x))[0]).all()


@pytest.mark.samples(4)
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_nan_return_nan(family):
    model = broken(FAMILIES[family]())
    assert np.isnan(ops.convert_to_numpy(model(images(model)))).all()
    assert np.isnan(model.predict(images(model), verbose=0)).all()


@pytest.mark.samples(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_nan_have_scores_of_nan(family):
    model = FAMILIES[family]()
    x = images(model)
    x[1] = np.nan
    scores = ops.convert_to_numpy(model(x))
    assert np.isfinite(scores[0]).all()
    assert np.isnan(scores[1]).any()


def test_max_pooling_keeps_nan():
    x = np.zeros((3, 4, 4, 2), "float32")
    x[1, 0, 1, 1], x[2] = np.nan, np.nan
    pooled = ops.convert_to_numpy(layers.MaxPool2D(2)(x))
    assert np.isfinite(pooled[0]).all()
    assert np.isnan(pooled[1:]).all()
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    np.testing.assert_array_equal(layers.MaxPool2D(3, strides=2)(x), keras.layers.MaxPooling2D(3, strides=2)(x))


def test_pooling_of_the_best_nodes_leaves_no_nan_out():
    capsules = np.random.default_rng(0).normal(size=(2, 3, 3, 2, 4)).astype("float32")
    pool = layers.TopKGraphPool(3)
    pool(capsules)
    capsules[1, 2, 2, 1, 0] = np.nan
    pooled = ops.convert_to_numpy(pool(capsules))
    assert np.isfinite(pooled[0]).all()
    assert np.isnan(pooled[1]).any(axis=-1).all()


def test_losses_and_metrics_of_nan():
    lengths = np.float32([[np.nan, 0.5, 0.1], [0.9, 0.1, 0.1]])
    for loss in (losses.MarginLoss(), losses.LogLengths(), losses.CrossEntropy(), losses.BinaryCrossEntropy()):
        assert np.isnan(float(loss(np.array([0, 0]), lengths)))
    metric = SubsetAccuracy()
    metric.update_state(np.array([0, 0]), lengths)
    assert np.isnan(float(metric.result()))


@pytest.mark.samples(1)
@pytest.mark.parametrize("family", ["CapsNet dynamic", "GraCapsNet", "VisionTransformer"])
def test_training_on_nan_ends(family):
    model = broken(FAMILIES[family]())
    loss = losses.CrossEntropy() if family == "VisionTransformer" else losses.MarginLoss()
    model.compile("sgd", loss, metrics=[SubsetAccuracy("accuracy")])
    history = model.fit(
        images(model), np.array([0, 1]), epochs=2, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]
    ).history
    assert len(history["loss"]) == 1
    assert np.isnan(history["loss"][0])
    assert np.isnan(history["accuracy"][0])


@pytest.mark.parametrize("norm", NORMS)
def test_directions_of_nan(norm):
    gradient = np.random.default_rng(0).normal(size=(2, 3, 3, 1)).astype("float32")
    gradient[1, 0, 0, 0] = np.nan
    direction = ops.convert_to_numpy(NORMS[norm].direction(gradient))
    assert np.isfinite(direction[0]).all()
    assert np.isnan(direction[1]).any()


def silent():
    """A model with one bias of NaN, at its end: its scores are NaN, and its gradients are not."""
    model = models.ConvNetFC((8, 8, 1), 3, kernel_size=2, filters=(4,), units=(8,))
    model.get_layer("linear").bias.assign(np.float32([0, np.nan, 0]))
    return model


ATTACKS = {
    "APGD": attacks.APGD(0.1, steps=2),
    "AutoAttack": attacks.AutoAttack(0.1, version="custom", attacks={"apgd": attacks.APGD(0.1, steps=2)}),
    "FGSM": attacks.FGSM(0.1),
    "PGD": attacks.PGD(0.1, steps=2),
    "MIM": attacks.MIM(0.1, steps=2, keep="last"),
    "DeepFool": attacks.DeepFool(steps=2),
    "FAB": attacks.FAB(steps=2),
    "CarliniWagner": attacks.CarliniWagner(steps=2, binary_search_steps=2),
    "CarliniWagnerBox": attacks.CarliniWagnerBox(0.1, steps=2),
    "CarliniWagnerLinf": attacks.CarliniWagnerLinf(steps=2),
    "PatchAttack": attacks.PatchAttack(2, steps=2),
    "Square": attacks.Square(0.1, queries=3),
    "PatchAttack, seen from everywhere": attacks.PatchAttack(
        2, steps=2, transforms=attacks.PatchTransforms(draws=2, translation=None)
    ),
    "PatchFool": attacks.PatchFool(patch_size=2, steps=2),
    "universal PatchAttack": attacks.PatchAttack(2, steps=2, universal=True),
}


@pytest.mark.samples(5)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_refuse_scores_of_nan(name):
    model = models.ConvNetFC((8, 8, 1), 3, kernel_size=2, filters=(4,), units=(8,))
    x, y = images(model), np.array([0, 1])
    ATTACKS[name](model, x, y)  # looked at, and compiled, while it was finite
    for make in (silent, lambda: broken(silent())):
        model.set_weights(make().get_weights())
        with pytest.raises(ValueError, match="NaN or infinite"):
            ATTACKS[name](model, x, y)
        with pytest.raises(ValueError, match="NaN or infinite"):
            evaluate.robust_accuracy(model, ATTACKS[name], (x, y))


def near(x):
    """A linear model that is NaN a little away from the images of 0.5, where attacks go."""
    scores = ops.sum(x, axis=(1, 2)) * ops.convert_to_tensor(np.float32([[1, -1, 0.5]]))
    far = ops.max(ops.abs(x - 0.5), axis=(1, 2, 3)) > 0.001
    return ops.where(far[:, None], float("nan"), scores)


@pytest.mark.samples(5)
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "FGSM"])  # whose only step nobody looks at
def test_attacks_refuse_nan_on_their_way(name):
    with pytest.raises(ValueError, match="NaN or infinite"):
        ATTACKS[name](near, np.full((2, 8, 8, 1), 0.5, "float32"), np.array([0, 0]))


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize(
    "name", ["Saliency", "InputXGradient", "IntegratedGradients", "GradCAM", "GradCAMPlusPlus", "LayerCAM", "HiResCAM"]
)
def test_explainers_refuse_scores_of_nan(name, target):
    for model in (silent(), broken(silent())):
        with pytest.raises(ValueError, match="NaN or infinite"):
            getattr(explain, name)(model)(images(model), target)


def test_graph_attention_for_a_class_that_nobody_knows():
    model = models.GraCapsNet((8, 8, 1), 3, num_heads=2, filters=4)
    x, lengths = images(model), model.get_layer("graph_pooling")
    explain.GraphAttention(model)(x)
    lengths.bias.assign(np.float32([0, np.nan, 0]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        explain.GraphAttention(model)(x)


@pytest.mark.tensorflow
@pytest.mark.parametrize("rules", ["epsilon", "gradient"])
def test_relevance_refuses_scores_of_nan(rules):
    explainer, x = explain.LRP(silent(), rules), np.ones((1, 8, 8, 1))
    for target in (None, 1):
        with pytest.raises(ValueError, match="NaN or infinite"):
            explainer(x, target)


def test_measurements_refuse_a_nan_that_kernels_hide():
    model = models.ConvNetFC((8, 8, 1), 3, kernel_size=2, filters=(4,), units=(8,))
    model.get_layer("conv1").bias.assign(np.full(4, np.nan, "float32"))  # oneDNN's fused ReLU makes 0 of it
    with pytest.raises(ValueError, match=r"finite variables; convnet_fc has NaN or infinite values in 1: .*conv1/bias"):
        evaluate.robust_accuracy(model, attacks.FGSM(0.1), (images(model), np.array([0, 1])))


def test_measurements_refuse_scores_of_nan():
    model = silent()
    x, y = images(model), np.array([0, 1])
    maps, error = np.ones((2, 8, 8), "float32"), lambda x: ops.mean(x, axis=(1, 2, 3))
    attack = attacks.FGSM(0.1)
    measurements = [
        lambda: evaluate.robustness(model, attack, (x, y)),
        lambda: evaluate.transfer_matrix({"a": model}, lambda goal, x, y, targeted: x, (x, y)),
        lambda: evaluate.detection(model, attack, (x, y), error=error, threshold=1.0),
        lambda: evaluate.classified_correctly({"a": model}, (x, y)),
        lambda: evaluate.aopc(model, x, maps),
        lambda: evaluate.deletion(model, x, maps),
        lambda: evaluate.insertion(model, x, maps),
        lambda: evaluate.road(model, x, maps),
        lambda: evaluate.infidelity(model, x, maps),
        lambda: evaluate.ablation_drop(model, x, maps, mean=0.0),
        lambda: evaluate.neuron_ablation(model, x, np.stack([maps] * 3), mean=0.0),
        lambda: evaluate.compare(model, {"a": lambda x, target: maps}, (x, y), {}),
        lambda: evaluate.conservation(lambda x, target: maps, model, x),
        lambda: evaluate.parameter_randomization(lambda model: lambda x, target: maps, model, x),
        lambda: evaluate.sweep(lambda capsules: capsules[..., None] * np.nan, np.ones((3, 4))),
        lambda: evaluate.vote_gradients(lambda votes: votes[:, 0] * np.nan, np.ones((2, 3, 4, 5)), lambda v: v[:, 0]),
        lambda: evaluate.compactness(lambda x: ops.mean(x, axis=(1, 2)) * np.nan, x, y),
    ]
    for measure in measurements:
        with pytest.raises(ValueError, match=r"NaN or infinite|finite"):
            measure()


@pytest.mark.tensorflow
def test_exports_refuse_models_of_nan(tmp_path):
    from keras_capsvit import serving

    with pytest.raises(
        ValueError, match=r"finite variables; convnet_fc has NaN or infinite values in 1: .*linear/bias"
    ):
        serving.export(silent(), tmp_path)
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0, offset=-2.0)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(ops.log(x)))
    with pytest.raises(ValueError, match=r"finite class scores; .* returns NaN or infinite ones"):
        serving.export(model, tmp_path, input_range=(0, 1))
    assert not list(tmp_path.iterdir())
