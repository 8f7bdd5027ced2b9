"""Patch-Fool: against the published steps one after the other, on our transformers and on those of others."""

import dataclasses

import keras
import numpy as np
import pytest
from battery import transformer
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import ConvNetAvg, VisionTransformer, attacks, autodiff, batches, evaluate, serving, taps
from keras_capsvit.attacks import PatchFool
from keras_capsvit.patches import apply_patch

SHAPE = (8, 12, 2)
X = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype("float32")
Y = np.arange(5) % 3


def shaken(model):
    random = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign_add(random.normal(scale=0.4, size=variable.shape))
    return model


@pytest.fixture(scope="module")
def vit():
    size = {"input_shape": SHAPE, "num_classes": 3, "width": 8, "depth": 2, "num_heads": 2, "mlp_units": 8}
    keras.utils.set_random_seed(0)
    return shaken(VisionTransformer("Ti/4", **size))


@pytest.fixture(scope="module")
def convnet():
    keras.utils.set_random_seed(0)
    return ConvNetAvg(SHAPE, 3, kernel_size=3, filters=6)


def received(model, x, block):
    """Attention that the patches get, over heads and queries, ``(b, t)``."""
    return ops.convert_to_numpy(ops.sum(taps.tap(model, f"attention_{block}")(x), axis=(1, 2)))[:, 1:]


def replica(model, x, y, attack, targeted):
    """The steps, with a gradient for the class and one for each block."""
    patches = np.argsort(-received(model, x, 1), axis=1, kind="stable")[:, : attack.patches]
    inside = np.zeros(x.shape, bool)
    for image, cells in zip(inside, patches, strict=True):
        for row, column in zip(*np.divmod(cells, 3), strict=True):
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    radius = np.inf if attack.epsilon is None else attack.epsilon
    low, high = (np.where(inside, np.clip(x + far, 0, 1), x) for far in (-radius, radius))
    noise = np.stack([random.uniform(size=SHAPE) for random in batches.generators(attack.seed, range(len(x)))])
    x = low + noise * (high - low)

    def loss(x):
        return (-1 if targeted else 1) * attacks.logits(model).loss(x, y)

    functions = [loss] + [
        lambda x, k=k: sum(
            ops.take_along_axis(
                ops.sum(taps.tap(model, f"attention_{k}")(x), axis=(1, 2)), patches[:, n : n + 1] + 1, axis=1
            )
            for n in range(attack.patches)
        )
        for k in range(2)
    ]
    gradients = [autodiff.value_and_gradient(function, model.variables) for function in functions]
    mean = square = 0
    conflicts = 0
    for i in range(attack.steps):
        slopes = [inside * ops.convert_to_numpy(each(x.astype("float32"))[1]).astype("float64") for each in gradients]
        loss_slope = slope = slopes[0]
        for attention_slope in slopes[1:]:
            product = (loss_slope * attention_slope).sum(axis=(1, 2, 3), keepdims=True)
            conflicts += np.sum(product < 0)
            share = np.where(product < 0, product / (loss_slope**2).sum(axis=(1, 2, 3), keepdims=True), 0)
            slope = slope + attack.attention_weight * (attention_slope - share * loss_slope)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        change = mean / (1 - 0.9 ** (i + 1)) / (np.sqrt(square / (1 - 0.999 ** (i + 1))) + 1e-8)
        x = np.clip(x + attack.step_size * 0.95 ** (i // 10) * change, low, high)
    return x, patches, conflicts


@pytest.mark.samples(1)
@pytest.mark.parametrize(
    ("attack", "targeted"),
    [
        (PatchFool(steps=12, step_size=0.01, attention_weight=0.5), False),
        pytest.param(
            PatchFool(steps=3, step_size=0.02, attention_weight=0.1, patches=2, epsilon=0.1, seed=3),
            True,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one", "two, bounded, targeted"],
)
def test_the_steps_are_those_of_the_paper(vit, attack, targeted):
    result = attack.run(vit, X, Y, targeted)
    images, cells, conflicts = replica(vit, X, Y, attack, targeted)
    np.testing.assert_array_equal(result.positions, np.stack(np.divmod(cells, 3), axis=-1) * 4)
    assert conflicts > 0
    np.testing.assert_allclose(result.images, images, atol=2e-3)  # Adam divides small gradients by their size
    assert np.mean(np.abs(result.images - images) > 1e-5) < 0.02
    np.testing.assert_array_equal(result.fooled, (ops.convert_to_numpy(vit(result.images)).argmax(1) == Y) == targeted)
    np.testing.assert_array_equal(apply_patch(X, result.patches, result.positions), result.images)
    assert result.iterations.tolist() == [attack.steps] * 5


def test_it_draws_attention(vit):
    attack = PatchFool(steps=40, attention_weight=100.0)
    with_attention, without = (
        dataclasses.replace(attack, attention_weight=weight).run(vit, X, Y) for weight in (100.0, 0.0)
    )
    np.testing.assert_array_equal(with_attention.positions, without.positions)
    cell = (with_attention.positions[:, 0] // 4) @ [3, 1]
    attention = [
        sum(np.take_along_axis(received(vit, result.images, k), cell[:, None], axis=1) for k in range(2))
        for result in (with_attention, without)
    ]
    assert attention[0].mean() > attention[1].mean()


@pytest.mark.slow
def test_a_patch_fools_more_images_than_noise_does(vit):
    y = ops.convert_to_numpy(vit(X)).argmax(axis=1)
    start, end = (PatchFool(steps=60, patches=2, step_size=size).run(vit, X, y) for size in (1e-6, None))
    losses = [ops.convert_to_numpy(attacks.logits(vit).loss(result.images, y)) for result in (start, end)]
    assert np.all(losses[1] > losses[0])
    assert end.fooled.sum() >= start.fooled.sum()


@settings(max_examples=4)
@given(st.integers(0, 10**6), st.sampled_from([None, 0.0, 0.1]), st.sampled_from(["attention", "saliency", "random"]))
@pytest.mark.slow
def test_a_batch_is_its_images_one_by_one_within_bounds(seed, epsilon, select):
    keras.utils.set_random_seed(0)
    attack = PatchFool(steps=1, epsilon=epsilon, seed=seed, select=select, patches=2)
    numbers = np.array([4, 1, 7, 0, 2])
    together = attack.run(MODEL, X, Y, numbers=numbers)
    inside = apply_patch(np.zeros_like(X), np.ones((4, 4, 2)), together.positions) > 0
    np.testing.assert_array_equal(together.images[~inside], X[~inside])
    assert 0 <= together.images.min() <= together.images.max() <= 1
    assert together.images.dtype == "float32"
    if epsilon is not None:
        assert np.abs(together.images - X).max() <= epsilon + 1e-6
    alone = attack.run(MODEL, X[2:3], Y[2:3], numbers=numbers[2:3])
    np.testing.assert_array_equal(alone.positions[0], together.positions[2])
    np.testing.assert_allclose(alone.images[0], together.images[2], atol=1e-4)
    np.testing.assert_array_equal(together.images, attack(MODEL, X, Y, numbers=numbers))


MODEL = shaken(
    VisionTransformer("Ti/4", input_shape=SHAPE, num_classes=3, width=8, depth=1, num_heads=2, mlp_units=8, pool="avg")
)


def test_other_models_have_patches_of_the_highest_saliency(convnet):
    result = PatchFool(patch_size=4, steps=5, patches=2).run(convnet, X, Y)
    slope = np.abs(ops.convert_to_numpy(autodiff.value_and_gradient(attacks.logits(convnet).loss)(X, Y)[1]))
    weights = slope.reshape(5, 2, 4, 3, 4, 2).sum(axis=(2, 4, 5)).reshape(5, 6)
    np.testing.assert_array_equal(result.positions @ [3, 1] // 4, np.argsort(-weights, axis=1)[:, :2])
    before, after = (ops.convert_to_numpy(attacks.logits(convnet).loss(x, Y)) for x in (X, result.images))
    assert after.mean() > before.mean()
    rates = evaluate.fooling_rate({"convnet": convnet}, PatchFool(patch_size=4, steps=3), (X, Y))
    assert rates["examples"][0] > 0


@pytest.mark.slow
def test_bounds_of_channels(vit):
    low, high = np.float32([0, -10]), np.float32([255, 10])
    attack = PatchFool(steps=6)
    plain = attack.run(vit, X, Y)
    scaled = dataclasses.replace(attack, bounds=(low, high)).run(
        keras.Sequential([keras.Input(SHAPE), keras.layers.Rescaling(1 / (high - low), -low / (high - low)), vit]),
        low + X * (high - low),
        Y,
    )
    np.testing.assert_array_equal(scaled.positions, plain.positions)
    assert np.mean(np.abs((scaled.images - low) / (high - low) - plain.images) > 1e-3) < 0.02


@pytest.mark.long
def test_transformers_of_others_live_and_served(tmp_path):
    core = transformer((10, 10, 3))
    x = np.random.default_rng(2).uniform(size=(3, 10, 10, 3)).astype("float32")
    attack = PatchFool(steps=3, attention_weight=1.0)
    result = attack.run(core, x, [0, 1, 2])
    attention = ops.convert_to_numpy(ops.sum(taps.tap(core, "attention_1")(x), axis=(1, 2)))[:, 1:]
    np.testing.assert_array_equal(result.positions[:, 0] // 5 @ [2, 1], attention.argmax(axis=1))
    called = attack.run(lambda x: core(x), x, [0, 1, 2])
    np.testing.assert_allclose(called.images, result.images, atol=1e-3)
    if keras.backend.backend() == "tensorflow":
        serving.export(core, tmp_path, input_range=(0, 1))
        served = attack.run(serving.load(tmp_path), x, [0, 1, 2])
        np.testing.assert_array_equal(served.positions, result.positions)
        np.testing.assert_allclose(served.images, result.images, atol=1e-3)


@pytest.mark.slow
def test_one_trace_serves_all_settings():
    traces = []

    def counted(x):
        traces.append(x.shape)
        return MODEL(x)

    attack = PatchFool(steps=2)
    for size in (5, 4, 2):  # TensorFlow learns that batches differ in size
        attack(counted, X[:size], Y[:size])
    before = len(traces)
    for changes in ({"steps": 4}, {"step_size": 0.2}, {"seed": 4}, {"epsilon": 0.1}, {"attention_weight": 0.1}):
        dataclasses.replace(attack, **changes)(counted, X, Y)
    assert len(traces) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 0}, "patches must be an integer from 1"),
        ({"steps": 0}, "steps must be an integer from 1"),
        ({"attention_weight": -1}, "attention_weight must be a number in"),
        ({"select": "best"}, r"select must be one of \('attention', 'saliency', 'random'\)"),
        ({"layer": 0}, "layer must be an integer from 1"),
        ({"patch_size": 0}, "patch_size must be an integer from 1"),
        ({"epsilon": -0.1}, "epsilon must be a number in"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PatchFool(**options)


def test_models_that_do_not_fit_are_refused(convnet):
    with pytest.raises(ValueError, match=r"Expected a model with self-attention.*of others give patch_size"):
        PatchFool().run(convnet, X, Y)
    with pytest.raises(ValueError, match="Expected a model with self-attention"):
        PatchFool(patch_size=4, select="attention").run(convnet, X, Y)
    with pytest.raises(ValueError, match=r"patch_size must be that of the model's tokens, \(4, 4\), or None"):
        PatchFool(patch_size=2).run(MODEL, X, Y)
    with pytest.raises(ValueError, match="layer must be an integer from 1 to 1; received 2"):
        PatchFool(layer=2).run(MODEL, X, Y)
    with pytest.raises(ValueError, match="patches must be an integer from 1 to 6; received 7"):
        PatchFool(patches=7).run(MODEL, X, Y)
    result = PatchFool(patches=2).run(MODEL, X[:0], Y[:0])
    assert (result.images.shape, result.patches.shape) == ((0, *SHAPE), (0, 2, 4, 4, 2))
