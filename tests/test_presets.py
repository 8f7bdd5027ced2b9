import dataclasses
import inspect

import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks


@pytest.mark.slow
def test_every_preset_attacks():
    weights = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    x = np.random.default_rng(1).uniform(0.4, 0.6, size=(4, 4, 4, 1)).astype("float32")
    y = (x.reshape(4, 16) @ weights).argmax(1)

    def model(x):
        return ops.reshape(x, (-1, 16)) @ weights

    for name in attacks.PRESETS:
        attack = attacks.preset(name, 0.3)
        if "carlini" in name:
            attack = dataclasses.replace(attack, steps=5)
        adversarial = attack(model, x, y)
        change = np.abs(adversarial - x).reshape(4, -1)
        size = change.max(1) if attack.norm == "linf" else np.linalg.norm(change, axis=1)
        assert size.max() <= 0.3 + 1e-6, name
        assert name.endswith(attack.norm) or not name.endswith(("l2", "linf"))


# Steps, their size at radius .3, and random start: Foolbox 3.3, ART 1.20, and the code of the thesis for chapter 6.
PUBLISHED = {
    "foolbox_bim": (10, 0.06, False),
    "foolbox_mim": (10, 0.06, False),
    "foolbox_pgd": (40, 0.01, True),
    "foolbox_bim_l2": (10, 0.06, False),
    "foolbox_pgd_l2": (50, 0.0075, True),
    "vote_attack_bim": (10, 0.01, False),
    "vote_attack_mim": (10, 0.01, False),
    "vote_attack_pgd": (40, 0.01, True),
    "art_bim": (100, 0.1, False),
    "art_mim": (100, 0.1, False),
    "art_pgd": (100, 0.1, False),
}


def test_settings_are_the_published_ones():
    for name, expected in PUBLISHED.items():
        attack = attacks.preset(name, 0.3)
        assert (attack.steps, attack.random_start) == expected[::2], name
        assert attack.step == pytest.approx(expected[1]), name
        assert attack.keep == "last"
    assert attacks.preset("vote_attack_carlini_wagner_l2").confidence == 0.5
    deepfool = attacks.preset("art_deepfool_l2")
    assert (deepfool.steps, deepfool.overshoot) == (100, 1e-6)
    carlini = attacks.preset("art_carlini_wagner_l2")
    assert (carlini.steps, carlini.binary_search_steps, carlini.initial_const) == (10, 10, 0.01)
    assert attacks.preset("art_carlini_wagner_linf").steps == 10


@pytest.mark.peers
def test_settings_are_those_of_foolbox():
    library = pytest.importorskip("foolbox").attacks
    for name, theirs in {
        "foolbox_bim": library.LinfBasicIterativeAttack(),
        "foolbox_pgd": library.LinfPGD(),
        "foolbox_bim_l2": library.L2BasicIterativeAttack(),
        "foolbox_pgd_l2": library.L2PGD(),
        "foolbox_mim": library.LinfMomentumIterativeFastGradientMethod(),
    }.items():
        ours = attacks.preset(name, 0.5)
        assert ours.relative_step == pytest.approx(theirs.rel_stepsize)
        assert dataclasses.replace(ours, epsilon=0.2).step == pytest.approx(0.2 * theirs.rel_stepsize)
        assert ours.keep == "last"
        assert (ours.steps, ours.random_start) == (theirs.steps, theirs.random_start)
    assert attacks.preset("foolbox_mim", 0.5).decay == theirs.momentum
    fgsm = library.LinfFastGradientAttack()
    assert attacks.preset("foolbox_fgsm", 0.5).random_start == fgsm.random_start
    for name, theirs in {
        "foolbox_deepfool_l2": library.L2DeepFoolAttack(),
        "foolbox_deepfool_linf": library.LinfDeepFoolAttack(),
    }.items():
        ours = attacks.preset(name)
        assert (ours.steps, ours.candidates, ours.overshoot) == (theirs.steps, theirs.candidates, theirs.overshoot)
    theirs = library.L2CarliniWagnerAttack()
    ours = attacks.preset("foolbox_carlini_wagner_l2")
    assert (ours.steps, ours.binary_search_steps) == (theirs.steps, theirs.binary_search_steps)
    assert (ours.step_size, ours.initial_const) == (theirs.stepsize, theirs.initial_const)
    assert (ours.confidence, ours.abort_early) == (theirs.confidence, theirs.abort_early)


@pytest.mark.peers
def test_settings_are_those_of_art():
    evasion = pytest.importorskip("art.attacks.evasion")

    def defaults(kind):
        return {name: parameter.default for name, parameter in inspect.signature(kind.__init__).parameters.items()}

    for name, kind in {
        "art_bim": evasion.BasicIterativeMethod,
        "art_pgd": evasion.ProjectedGradientDescent,
        "art_mim": evasion.MomentumIterativeMethod,
    }.items():
        ours, theirs = attacks.preset(name, 0.3), defaults(kind)
        assert (ours.step_size, ours.steps) == (theirs["eps_step"], theirs["max_iter"])
        assert not ours.random_start
        assert theirs.get("num_random_init", 0) == 0
    assert attacks.preset("art_mim", 0.3).decay == defaults(evasion.MomentumIterativeMethod)["decay"]
    ours, theirs = attacks.preset("art_deepfool_l2"), defaults(evasion.DeepFool)
    assert (ours.steps, ours.overshoot, ours.candidates) == (
        theirs["max_iter"],
        theirs["epsilon"],
        theirs["nb_grads"],
    )
    ours, theirs = attacks.preset("art_carlini_wagner_l2"), defaults(evasion.CarliniL2Method)
    assert (ours.steps, ours.binary_search_steps, ours.step_size, ours.initial_const, ours.confidence) == tuple(
        theirs[name] for name in ("max_iter", "binary_search_steps", "learning_rate", "initial_const", "confidence")
    )
    ours, theirs = attacks.preset("art_carlini_wagner_linf"), defaults(evasion.CarliniLInfMethod)
    names = ("decrease_factor", "initial_const", "largest_const", "const_factor", "confidence")
    assert (ours.steps, ours.step_size, *(getattr(ours, name) for name in names)) == tuple(
        theirs[name] for name in ("max_iter", "learning_rate", *names)
    )


def test_bad_names_and_missing_radii_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of \('foolbox_fgsm', .*; received 'pgd'"):
        attacks.preset("pgd", 0.1)
    with pytest.raises(ValueError, match=r"foolbox_pgd needs a radius: preset\('foolbox_pgd', epsilon\)"):
        attacks.preset("foolbox_pgd")
    assert attacks.preset("foolbox_deepfool_l2").epsilon is None
