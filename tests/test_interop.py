"""Other libraries drive an objective: their PGD on the votes finds what ours finds, and the examples run."""

import importlib
import re

import keras
import numpy as np
import pytest
from test_examples import ROOT, run

from keras_capsvit import CapsNet, attacks

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
    pgd = attacks.PGD(0.1, step_size=0.03, steps=steps, random_start=False)
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
