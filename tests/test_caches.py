"""What is kept for models: it knows them apart, goes with them, sees that they changed, and stays small."""

import copy
import dataclasses
import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, autodiff, caches, evaluate
from keras_capsvit.attacks import base_objective

ATTACKS = [
    attacks.FGSM(0.1),
    attacks.MIM(0.1, steps=2),
    attacks.PGD(0.1, steps=2),
    attacks.APGD(0.1, steps=2),
    attacks.DeepFool(steps=2),
    attacks.FAB(steps=2),
    attacks.CarliniWagner(steps=2, binary_search_steps=1),
    attacks.CarliniWagnerBox(0.1, steps=2),
    attacks.CarliniWagnerLinf(steps=2, largest_const=1e-4),
    attacks.PatchAttack(2, steps=2),
    attacks.PatchFool(patch_size=2, steps=2),
]
NAMES = [type(attack).__name__ for attack in ATTACKS]


def images(n=4):
    return np.random.default_rng(0).uniform(size=(n, 6, 6, 1)).astype("float32")


LABELS = np.array([0, 1, 2, 0])


def net(activation="tanh"):
    layers = [keras.layers.Conv2D(4, 3, activation=activation), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


class Subclass(keras.Model):
    """The same as a subclass of a user."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def call(self, x):
        return self.inner(x)


class Linear:
    """A model whose scores are a method."""

    def __init__(self, seed):
        self.kernel = np.random.default_rng(seed).normal(size=(36, 3)).astype("float32")
        self.temperature = 1.0

    def scores(self, x):
        return ops.matmul(ops.reshape(x, (-1, 36)), self.kernel) / self.temperature


class Slotted:
    """A callable without ``__dict__``, of which there are no weak references."""

    __slots__ = ("calls", "kernel")

    def __init__(self):
        self.kernel, self.calls = Linear(0).kernel, []

    def __call__(self, x):
        self.calls.append(x.shape)
        return ops.matmul(ops.reshape(x, (-1, 36)), self.kernel)


def test_methods_of_two_objects_are_two_models():
    single, double = Linear(1), Linear(2)
    for model in (single, double, single):
        adversarial = attacks.FGSM(0.1)(model.scores, images(), LABELS)
        fresh = Linear(1 if model is single else 2)
        expected = attacks.FGSM(0.1)(lambda x, fresh=fresh: fresh.scores(x), images(), LABELS)
        np.testing.assert_array_equal(adversarial, expected)


def test_callables_without_attributes_are_traced_once():
    model = Slotted()
    attack = attacks.BIM(0.1, steps=3)
    attack(model, images(), LABELS)
    before = len(model.calls)
    attack(model, images(), LABELS)
    assert len(model.calls) == before


@pytest.mark.samples(2)
@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_a_model_that_was_attacked_can_go(attack):
    model = net()
    before = set(vars(model))
    attack(model, images(), LABELS)
    evaluate.robust_accuracy(model, attack, (images(), LABELS))
    assert {name for name in set(vars(model)) - before if "objective" in name or "attack" in name} == set()
    gone = [weakref.ref(model), weakref.ref(model.layers[0])]
    del model
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_what_an_attack_hides_from_can_go_too():
    gone = hidden()
    gc.collect()
    assert gone() is None


def hidden():
    """A weak reference to a model that an attack hid from."""
    model = net()
    attacks.DetectionAware(0.1, error=lambda x: ops.sum(model(x), axis=1), steps=2)(model, images(), LABELS)
    return weakref.ref(model)


@pytest.mark.slow
def test_a_changed_model_is_seen():
    model, attack = net("relu"), attacks.FGSM(0.1)
    attack(model, images(), LABELS)
    for change in (keras.activations.tanh, ops.sigmoid, keras.activations.relu):
        model.layers[0].activation = change
        twin = keras.models.clone_model(model)
        twin.set_weights(model.get_weights())
        twin.layers[0].activation = change
        np.testing.assert_allclose(attack(model, images(), LABELS), attack(twin, images(), LABELS), atol=1e-6)
        np.testing.assert_allclose(evaluate.judge.Judge(model)(images()), twin.predict(images(), verbose=0), atol=1e-5)
    linear = Linear(0)
    scores = evaluate.judge.Judge(linear.scores)(images())
    for temperature in (1.0, 2.0):
        linear.temperature = temperature
        compiled = attacks.logits(linear.scores).compiled("scores", lambda objective: objective.__call__)
        np.testing.assert_allclose(compiled(images()), scores / temperature, rtol=1e-4, atol=1e-6)


def test_copies_have_their_own():
    model = net()
    attack = attacks.FGSM(0.1)
    attack(model, images(), LABELS)
    twin = copy.deepcopy(model)
    twin.layers[-1].kernel.assign(-1.0 * twin.layers[-1].kernel)
    assert np.abs(attack(twin, images(), LABELS) - attack(model, images(), LABELS)).max() > 0.1


@pytest.mark.parametrize("make", [net, Subclass])
def test_training_changes_no_fingerprint(make):
    model = make()
    model(images())  # what builds lazily is built
    before = caches.fingerprint(model)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images(), LABELS, verbose=0)
    model.predict(images(), verbose=0)
    assert caches.fingerprint(model) == before
    (model.inner if make is Subclass else model).layers[0].strides = (2, 2)
    assert caches.fingerprint(model) != before


class Counted(keras.layers.Layer):
    """Identity that counts how often it is traced."""

    def build(self, shape):
        self.traces = []

    def call(self, x):
        self.traces.append(x.shape)
        return x


SWEEPS = {
    "FGSM": {"epsilon": [0.1, 0.2], "step_size": [0.05, 0.3], "bounds": [(-1, 1), (0, 2)]},
    "BIM": {"epsilon": [0.1, 0.2], "steps": [3, 5], "relative_step": [0.1, 0.7]},
    "MIM": {"epsilon": [0.1, 0.2], "decay": [0.5, 0.9]},
    "PGD": {"epsilon": [0.1, 0.2], "seed": [1, 2], "steps": [3, 4], "bounds": [((-1,), (1.5,))]},
    "APGD": {
        **{"epsilon": [0.05, 0.2], "steps": [5, 9], "restarts": [2], "rho": [0.3], "seed": [1], "bounds": [(-1, 1)]},
    },
    "FAB": {
        **{"targets": [1, 2], "restarts": [2, 3], "seed": [1], "epsilon": [0.2], "steps": [4], "bounds": [(-1, 1)]},
        **{"alpha_max": [0, 0.5], "eta": [1, 1.5], "beta": [0.2, 0.7]},
    },
    "AutoAttack": {"epsilon": [0.05, 0.2], "seed": [1, 2], "bounds": [(-1, 1)]},
    "DeepFool": {"overshoot": [0.1, 0.3], "steps": [3, 4], "bounds": [(-1, 1)]},
    "CarliniWagner": {"epsilon": [0.1, 0.2], "confidence": [0.1, 1], "initial_const": [1, 2], "step_size": [0.1, 0.2]},
    "CarliniWagnerBox": {"epsilon": [0.05, 0.2], "confidence": [0.1, 1], "step_size": [0.2, 0.3], "bounds": [(-1, 1)]},
    "CarliniWagnerLinf": {"decrease_factor": [0.5, 0.7], "confidence": [0.1, 1], "bounds": [(-1, 1)]},
    "PatchAttack": {"epsilon": [0.1, 0.2], "step_size": [0.1, 0.2], "seed": [3, 4], "patch_size": [3, 4]},
    "PatchFool": {"epsilon": [0.1, 0.2], "step_size": [0.1, 0.2], "seed": [3, 4], "steps": [4, 5]},
    "DetectionAware": {"beta": [0.2, 0.8], "epsilon": [0.05, 0.2]},
    "Square": {"epsilon": [0.05, 0.2], "queries": [3, 300], "p": [0.1, 1.0], "seed": [1, 2], "bounds": [(-1, 1)]},
}


def small(name, **settings):
    """An attack that takes little time."""
    few = {
        "AutoAttack": {"version": "custom", "attacks": {"apgd": attacks.APGD(1, steps=3)}},
        "CarliniWagner": {"steps": 3, "binary_search_steps": 2},
        "CarliniWagnerLinf": {"steps": 3, "initial_const": 0.01, "largest_const": 0.1},
        "PatchAttack": {"patch_size": 2, "steps": 3, "early_stop": False},
        "PatchFool": {"patch_size": 2, "steps": 3},
        "DeepFool": {"steps": 3},
        "FAB": {"steps": 3, "targets": 1, "restarts": 2},
        "FGSM": {},
        "Square": {"queries": 6},
    }.get(name, {"steps": 3})
    unlimited = ("CarliniWagner", "CarliniWagnerLinf", "PatchAttack", "PatchFool", "DeepFool", "FAB")
    if name not in unlimited:
        few["epsilon"] = 0.1
    return getattr(attacks, name)(**{**few, **settings})


@pytest.mark.samples(3)
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_costs_no_trace_and_finds_what_single_attacks_find(name, monkeypatch):
    model = keras.Sequential([keras.Input((6, 6, 1)), Counted(), *net().layers])
    settings = {"error": lambda x: ops.sum(ops.square(x), axis=(1, 2, 3))} if name == "DetectionAware" else {}
    attack = small(name, **settings)
    attack(model, images(), LABELS)
    if name == "PatchAttack":  # judges those that are left
        dataclasses.replace(attack, step_size=0.0)(model, images(), LABELS)
    if name.startswith("CarliniWagner"):  # looks why images did not move
        dataclasses.replace(attack, confidence=1e6)(model, images(), LABELS)
    if name == "Square":  # some images are fooled, and the others go on
        dataclasses.replace(attack, epsilon=0.3, queries=200)(model, images(), LABELS)
    if name == "PGD":  # bounds of channels are another function than those of all
        dataclasses.replace(attack, bounds=((0.0,), (1.0,)))(model, images(), LABELS)
    if name in ("CarliniWagner", "DeepFool"):  # with and without a limit are two functions
        dataclasses.replace(attack, epsilon=0.3)(model, images(), LABELS)
        attack = dataclasses.replace(attack, epsilon=0.3) if "epsilon" in SWEEPS[name] else attack
    variants = [dataclasses.replace(attack, **{key: value}) for key, values in SWEEPS[name].items() for value in values]
    model.layers[0].traces.clear()
    before = autodiff.traces()
    adversarial = [variant(model, images(), LABELS) for variant in variants]
    assert model.layers[0].traces == [] and autodiff.traces() == before
    for variant, result in list(zip(variants, adversarial, strict=True))[-3:]:
        monkeypatch.setattr(base_objective, "_COMPILED", caches.Cache(64))
        np.testing.assert_allclose(variant(model, images(), LABELS), result, atol=1e-6)


@pytest.mark.samples(3)
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", SWEEPS)
def test_batches_of_other_sizes_cost_no_trace(name):
    model = net()
    settings = {"error": lambda x: ops.sum(ops.square(x), axis=(1, 2, 3))} if name == "DetectionAware" else {}
    attack = small(name, **settings)
    for count in (4, 3):  # of one size a function knows that size only
        attack(model, images(count), LABELS[:count])
        attack(model, images(count), LABELS[:count], targeted=True)
        attack(model, images(count) * 0, LABELS[:count])  # looks why images did not move
    before = autodiff.traces()
    for count in (1, 2, 3, 4):
        attack(model, images(count), LABELS[:count])
    assert autodiff.traces() == before


def test_universal_patches_of_any_shape_are_one_function():
    model, labels = net(), LABELS
    for size in (2, (3, 1)):
        attacks.PatchAttack(size, universal=True, num_patches=3, steps=1)(model, images(), labels)
    before = autodiff.traces()
    result = attacks.PatchAttack((1, 2), universal=True, num_patches=3, steps=2).run(model, images(), labels)
    assert result.patches.shape == (3, 1, 2, 1)
    if keras.backend.backend() == "tensorflow":
        assert autodiff.traces() == before


def test_all_attacks_are_swept():
    kinds = [kind for kind in map(attacks.__dict__.get, attacks.__all__) if isinstance(kind, type)]
    attack_kinds = {kind.__name__ for kind in kinds if issubclass(kind, attacks.Attack)}
    assert attack_kinds - {"Attack", "GradientAttack"} == set(SWEEPS)


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago():
    cache, owner, keys = caches.Cache(2), net(), []

    def get(key):
        return cache.get((owner,), key, lambda: keys.append(key) or key)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert get(key) == key
    assert keys == ["a", "b", "c", "b"]
    assert len(cache) == 2
    owner = None
    gc.collect()
    assert len(cache) == 0


def test_a_subclass_that_compiles_its_own_settings_gets_its_own_function():
    @dataclasses.dataclass(frozen=True)
    class Scaled(attacks.BIM):
        factor: float = 1.0

        def within(self, x, epsilon, limits):
            back = super().within(x, epsilon, limits)
            return lambda moved: back(x + self.factor * (moved - x))

    model, x = Linear(0), images() / 2 + 0.25
    halves, wholes = (Scaled(0.1, steps=1, factor=f)(model.scores, x, LABELS) for f in (0.5, 1.0))
    np.testing.assert_allclose(2 * (halves - x), wholes - x, atol=1e-6)
