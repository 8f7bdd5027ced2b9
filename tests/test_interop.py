"""Other libraries drive ours: their PGD on the votes finds what ours finds, Quantus measures what ours measures."""

import importlib
import re
import sys

import keras
import numpy as np
import pytest
from test_examples import ROOT, run

from keras_capsvit import CapsNet, attacks, evaluate, explain

pytestmark = [pytest.mark.tensorflow, pytest.mark.peers]


@pytest.fixture
def attack_of(monkeypatch):
    """The attack that the example of an installed library defines."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "interop")

    def find(library):
        pytest.importorskip(library)
        return importlib.import_module(f"{library}_votes").attack

    return find


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize(
    ("library", "options"),
    [("cleverhans", {"compiled": False}), ("cleverhans", {"compiled": True}), ("foolbox", {}), ("art", {})],
)
def test_their_pgd_on_the_votes_equals_ours(library, options, steps, attack_of, digits, resized):
    theirs = attack_of(library)
    # Without kinks, at which rounding decides which gradient is taken; then all take the same signs, and what is left
    # is the rounding of a sum or two.
    features = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Conv2D(6, 3, strides=2, activation="tanh")])
    model = CapsNet((12, 12, 1), 10, backbone=features, kernel_size=3, num_types=2, primary_dim=4, capsule_dim=5)
    x, y = resized(8, 12), digits[1][:8]
    pgd = attacks.PGD(0.1, step_size=0.03, steps=steps, random_start=False, keep="last")  # as theirs do
    found = pgd(attacks.votes(model), x, y)
    assert (np.abs(found - x).max((1, 2, 3)) > 0.029).all()
    np.testing.assert_allclose(theirs(pgd, attacks.votes(model), x, y, **options), found, atol=1e-6)


@pytest.mark.parametrize("library", ["cleverhans", "foolbox", "art"])
def test_example_prints_what_it_says(library):
    pytest.importorskip(library)
    script = f"interop/{library}_votes.py"
    (printed,) = run(script, "--epochs", 1, "--steps", 2, "--epsilon", 0.2).strip().splitlines()
    assert printed.startswith("360 digits, epsilon 0.2, 2 steps of 0.05: accuracy ")
    clean, by_them, by_us = (float(share) for share in re.findall(r"([\d.]+)%", printed))
    assert 50 < clean <= 100
    assert max(by_them, by_us) < clean
    assert abs(by_them - by_us) < 10  # from other random starts


@pytest.fixture
def quantus_metrics(monkeypatch):
    """The example of Quantus, through which it is imported."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "interop")
    monkeypatch.setitem(sys.modules, "zennit", None)  # as the example does; undone for the tests that need it
    return pytest.importorskip("quantus_metrics", exc_type=ImportError)


def keras_classifier():
    kinds = [keras.layers.Conv2D(4, 3, activation="tanh"), keras.layers.Flatten(), keras.layers.Dense(5)]
    return keras.Sequential([keras.Input((8, 12, 1)), *kinds])


def test_perturbation_equals_that_of_quantus(quantus_metrics):
    quantus = quantus_metrics.quantus
    random = np.random.default_rng(0)
    model, x, maps = (
        keras_classifier(),
        random.uniform(size=(4, 8, 12, 1)).astype("float32"),
        random.uniform(size=(4, 8, 12)),
    )
    y = np.array([0, 3, 1, 4])
    given = {"model": model, "x_batch": x, "y_batch": y, "a_batch": maps[:, None], "channel_first": False}
    given |= {"softmax": False, "batch_size": 4}
    theirs = quantus.RegionPerturbation(
        patch_size=4, regions_evaluation=5, perturb_baseline=0.5, normalise=False, disable_warnings=True
    )(**given)
    ours = evaluate.aopc(model, x, maps, patch=4, steps=5, fill=0.5, target=y)
    np.testing.assert_allclose(ours.curve[:, 1:], theirs, atol=1e-5)
    flipped = quantus.PixelFlipping(
        features_in_step=1, perturb_baseline=0.5, normalise=False, return_auc_per_sample=False, disable_warnings=True
    )(**given)
    ours = evaluate.aopc(model, x, maps, patch=1, fill=0.5, target=y)
    clean = model.predict(x, verbose=0)[np.arange(4), y]
    np.testing.assert_allclose(clean[:, None] - ours.curve[:, 1:], flipped, atol=1e-5)


def test_pointing_game_equals_that_of_quantus(quantus_metrics):
    quantus = quantus_metrics.quantus
    random = np.random.default_rng(0)
    model, x, maps = (
        keras_classifier(),
        random.uniform(size=(8, 8, 12, 1)).astype("float32"),
        random.uniform(size=(8, 8, 12)),
    )
    masks = np.zeros((8, 8, 12), bool)
    masks[:, :6, :8] = True
    theirs = quantus.PointingGame(normalise=False, disable_warnings=True)(
        model=model,
        x_batch=x,
        y_batch=np.zeros(8, int),
        a_batch=maps[:, None],
        s_batch=masks[:, None],
        channel_first=False,
    )
    ours = evaluate.pointing_game(maps, masks)
    assert 0 < ours.mean() < 1
    np.testing.assert_array_equal(ours, theirs)


def test_quantus_calls_our_explainers(quantus_metrics, small_model, resized, digits):
    model, x, y = small_model(), resized(6, 12), digits[1][:6]
    explainer = explain.GraphAttention(model)
    theirs = quantus_metrics.region_perturbation(quantus_metrics.judged(model), x, y, explainer=explainer)
    ours = evaluate.aopc(model, x, explainer(x, y), patch=4, fill=0, target=y)
    np.testing.assert_allclose(theirs, ours.curve[:, 1:], atol=1e-5)


def test_example_of_quantus_prints_what_it_says(quantus_metrics):
    printed = run("interop/quantus_metrics.py", "--epochs", 1, "--examples", 8).strip().splitlines()
    assert [line.split()[0] for line in printed[-3:]] == ["attention", "gradient", "random"]
    for line in printed[-3:]:
        ours, theirs, asked, _ = map(float, line.split()[1:])
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert theirs == pytest.approx(asked, abs=1e-3)
