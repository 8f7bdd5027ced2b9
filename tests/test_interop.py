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
    adversarial = pgd(attacks.votes(model), x, y)
    assert (np.abs(adversarial - x).max((1, 2, 3)) > 0.029).all()
    np.testing.assert_allclose(theirs(pgd, attacks.votes(model), x, y, **options), adversarial, atol=1e-6)


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


class Judged:
    """A small classifier, images, positive maps and masks, as Quantus and we take them."""

    def __init__(self, count=4):
        random = np.random.default_rng(0)
        keras.utils.set_random_seed(0)
        self.model = keras_classifier()
        self.x = random.uniform(size=(count, 8, 12, 1)).astype("float32")
        self.maps = random.uniform(size=(count, 8, 12))
        self.masks = np.zeros((count, 8, 12), bool)
        self.masks[:, :6, :8] = True
        self.y = np.arange(count) * 3 % 5

    def by_quantus(self, metric, **more):
        inputs = {"model": self.model, "x_batch": self.x, "y_batch": self.y, "a_batch": self.maps[:, None]}
        inputs |= {"s_batch": self.masks[:, None], "channel_first": False, "softmax": False, "batch_size": len(self.x)}
        return metric(**{**inputs, **more})


def test_perturbation_equals_that_of_quantus(quantus_metrics):
    quantus, judged = quantus_metrics.quantus, Judged()
    theirs = judged.by_quantus(
        quantus.RegionPerturbation(
            patch_size=4, regions_evaluation=5, perturb_baseline=0.5, normalise=False, disable_warnings=True
        )
    )
    ours = evaluate.aopc(judged.model, judged.x, judged.maps, patch=4, steps=5, fill=0.5, target=judged.y)
    np.testing.assert_allclose(ours.curve[:, 1:], theirs, atol=1e-5)
    flipped = judged.by_quantus(
        quantus.PixelFlipping(
            features_in_step=1,
            perturb_baseline=0.5,
            normalise=False,
            return_auc_per_sample=False,
            disable_warnings=True,
        )
    )
    ours = evaluate.aopc(judged.model, judged.x, judged.maps, patch=1, fill=0.5, target=judged.y)
    clean = judged.model.predict(judged.x, verbose=0)[np.arange(4), judged.y]
    np.testing.assert_allclose(clean[:, None] - ours.curve[:, 1:], flipped, atol=1e-5)


def test_deletion_is_pixel_flipping(quantus_metrics):
    """Theirs begins after the first step."""
    judged = Judged()
    for softmax, measure in ((False, "score"), (True, "probability")):
        metric = quantus_metrics.quantus.PixelFlipping(
            features_in_step=8, perturb_baseline=0.5, return_auc_per_sample=False, disable_warnings=True
        )
        if softmax:
            judged.model = keras.Sequential([keras.Input((8, 12, 1)), judged.model, keras.layers.Softmax()])
        theirs = judged.by_quantus(metric, softmax=softmax)
        changed = {"steps": 12, "fill": 0.5, "measure": measure, "target": judged.y}
        ours = evaluate.deletion(judged.model, judged.x, judged.maps, **changed)
        np.testing.assert_allclose(ours.curve[:, 1:], theirs, atol=1e-5)


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_road_is_that_of_quantus_without_noise(quantus_metrics, order):
    judged = Judged(24)
    judged.y = judged.model.predict(judged.x, verbose=0).argmax(axis=1)
    relevance = judged.maps if order == "descending" else 1 - judged.maps
    metric = quantus_metrics.quantus.ROAD(
        percentages=[10, 40, 70, 90], noise=0.0, normalise=False, disable_warnings=True
    )
    theirs = judged.by_quantus(metric, a_batch=relevance[:, None])
    settings = {"shares": [0.1, 0.4, 0.7, 0.9], "noise": 0, "order": order, "target": judged.y}
    ours = evaluate.road(judged.model, judged.x, judged.maps, **settings).curve.mean(axis=0)
    np.testing.assert_allclose(ours, list(theirs.values()))
    assert 0 < ours.min() < ours.max() < 1


def test_infidelity_of_quantus_removes_more_and_more_blocks(quantus_metrics):
    """Not one block at a time, and the same in every sample: one of the choices of perturbations."""
    judged = Judged()
    metric = quantus_metrics.quantus.Infidelity(
        perturb_patch_sizes=[4], perturb_baseline=0.5, n_perturb_samples=2, disable_warnings=True
    )
    changes, removed = [], np.zeros((8, 12, 1), bool)
    for top in (0, 4):
        for left in (0, 4, 8):
            removed[top : top + 4, left : left + 4] = True
            changes.append(np.where(removed, judged.x - 0.5, 0))
    ours = evaluate.infidelity(judged.model, judged.x, judged.maps, perturbations=np.stack(changes), target=judged.y)
    np.testing.assert_allclose(ours, judged.by_quantus(metric), rtol=1e-4)


def test_sensitivity_is_that_of_quantus(quantus_metrics):
    judged = Judged()
    explainer = explain.Saliency(judged.model)
    judged.maps = explainer(judged.x, judged.y)
    samples = iter(range(3))

    def moved(arr, indices, **_):
        sample = next(samples)
        moves = [np.random.default_rng([7, k, sample]).uniform(-1, 1, (8, 12, 1)) for k in range(4)]
        return arr + 0.1 * np.reshape(moves, arr.shape).astype("float32")

    metric = quantus_metrics.quantus.MaxSensitivity(nr_samples=3, perturb_func=moved, disable_warnings=True)
    options = {"explain_func": quantus_metrics.explain_func, "explain_func_kwargs": {"explainer": explainer}}
    wide = {"bounds": (-1, 2), "radius": 0.1 / 3}  # theirs may leave the range of pixels
    ours = evaluate.max_sensitivity(explainer, judged.x, judged.y, samples=3, seed=7, **wide)
    np.testing.assert_allclose(ours, judged.by_quantus(metric, **options), rtol=1e-4)


def test_what_maps_alone_tell_is_that_of_quantus(quantus_metrics):
    quantus, judged = quantus_metrics.quantus, Judged()
    signed = judged.maps - 0.4
    for name, measure in (("Sparseness", evaluate.sparseness), ("Complexity", evaluate.complexity)):
        theirs = judged.by_quantus(getattr(quantus, name)(disable_warnings=True), a_batch=signed[:, None].copy())
        np.testing.assert_allclose(measure(signed), theirs, atol=1e-5)
    settings = {"normalise": False, "disable_warnings": True}
    for name, measure in (
        ("RelevanceRankAccuracy", evaluate.rank_accuracy),
        ("RelevanceMassAccuracy", evaluate.energy_inside),
    ):
        theirs = judged.by_quantus(getattr(quantus, name)(**settings))
        ours = measure(judged.maps, judged.masks)
        assert np.ptp(ours) > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    # Of signed maps they divide by what is left after negative values are subtracted.
    theirs = judged.by_quantus(quantus.RelevanceMassAccuracy(**settings), a_batch=signed[:, None])
    positive = judged.by_quantus(quantus.RelevanceMassAccuracy(**settings), a_batch=signed.clip(min=0)[:, None])
    np.testing.assert_allclose(evaluate.energy_inside(signed, judged.masks), positive, rtol=1e-5)
    assert np.abs(np.subtract(positive, theirs)).max() > 0.01


def test_pointing_game_equals_that_of_quantus(quantus_metrics):
    judged = Judged(8)
    theirs = judged.by_quantus(quantus_metrics.quantus.PointingGame(normalise=False, disable_warnings=True))
    ours = evaluate.pointing_game(judged.maps, judged.masks)
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
