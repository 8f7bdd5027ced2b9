import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, evaluate

WEIGHTS = np.random.default_rng(1).normal(size=(36, 3)).astype("float32")
X = np.random.default_rng(0).uniform(0.3, 0.7, size=(50, 6, 6, 1)).astype("float32")
Y = np.random.default_rng(2).integers(0, 3, 50)
PGD = attacks.PGD(0.03, step_size=0.004, steps=22)


def model(x):
    return ops.reshape(x, (-1, 36)) @ WEIGHTS


CORRECT = (X.reshape(50, 36) @ WEIGHTS).argmax(1) == Y


def batches(size):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, 50, size)]


def unfooled(x, y):
    """How many PGD leaves, applied to the correctly classified of a batch by hand."""
    correct = (x.reshape(-1, 36) @ WEIGHTS).argmax(1) == y
    adversarial = PGD(model, x[correct], y[correct])
    return (ops.convert_to_numpy(model(adversarial)).argmax(1) == y[correct]).sum()


@pytest.mark.parametrize("size", [50, 16])
def test_equals_attacking_every_example_to_the_end(size):
    result = evaluate.robustness(model, PGD, batches(size))
    to_the_end = evaluate.robustness(model, PGD, batches(size), early=False)
    expected = [CORRECT.mean(), sum(unfooled(x, y) for x, y in batches(size)) / 50]
    assert 0 < expected[1] < expected[0]
    for each in (result, to_the_end):
        np.testing.assert_allclose([each.accuracy, each.robust_accuracy], expected, atol=1e-6)
        np.testing.assert_allclose(each.success_rate, 1 - expected[1] / expected[0], atol=1e-6)
        assert each.examples == 50
        assert each.seconds_per_example > 0
        assert each.norms["linf"] <= 0.03 + 1e-6
    assert evaluate.robust_accuracy(model, PGD, batches(size)) == pytest.approx(expected[1])
    assert evaluate.success_rate(model, PGD, batches(size)) == pytest.approx(result.success_rate)


def test_fooled_examples_leave_and_only_correct_ones_are_attacked():
    seen = []

    class Watched(attacks.PGD):
        def advance(self, objective, x, y, state, steps, targeted=False):
            seen.append((len(x), int(steps)))
            return super().advance(objective, x, y, state, steps, targeted)

    weak = Watched(0.5, step_size=0.1, steps=22)
    assert evaluate.robust_accuracy(model, weak, (X, Y)) == 0
    assert sum(steps for _, steps in seen) < 22
    assert max(size for size, _ in seen) <= CORRECT.sum()
    seen.clear()
    evaluate.robustness(model, Watched(0.001, step_size=0.001, steps=22), (X, Y))
    assert [steps for _, steps in seen] == [5, 5, 5, 5, 2]


def test_the_objective_is_attacked_and_the_model_judges():
    calls = []

    def objective(judge):
        assert judge is model
        return lambda x: calls.append(x.shape) or -model(x)  # the wrong way round

    result = evaluate.robustness(model, attacks.BIM(0.05), (X, Y), objective=objective)
    assert calls
    assert result.success_rate == 0
    assert np.isnan(result.norms["l2"])


def scores(x):
    return ops.convert_to_numpy(model(x))


def test_targeted():
    targets = evaluate.random_targets(3, seed=4)
    target_ids = np.stack([targets(Y, numbers) for numbers in np.arange(200)[:, None] + np.arange(len(Y))])
    assert (target_ids != Y).all()
    assert 0.4 < ((target_ids - Y) % 3 == 1).mean() < 0.6
    np.testing.assert_array_equal(targets(Y[10:20], np.arange(10, 20)), targets(Y)[10:20])
    # Success is counted over images that were classified correctly.
    result = evaluate.robustness(model, PGD, (X, Y), targets=lambda y: (y + 1) % 3)
    adversarial = PGD(model, X, (Y + 1) % 3, targeted=True)
    hit = ops.convert_to_numpy(model(adversarial)).argmax(1) == (Y + 1) % 3
    np.testing.assert_allclose(result.success_rate, hit[CORRECT].mean(), atol=1e-6)
    np.testing.assert_allclose(result.robust_accuracy, (CORRECT & ~hit).mean(), atol=1e-6)


def test_all_objectives_and_batches_want_the_same_random_classes():
    seen = {}

    def attack_of(name):
        def attack(objective, x, y, targeted):
            seen.setdefault(name, []).append((x[:, 0, 0, 0], y))
            return x

        return attack

    settings = {"targets": evaluate.random_targets(3, seed=1)}
    for size in (50, 7):
        attacks_of_size = {f"{name} {size}": attack_of(f"{name} {size}") for name in ("a", "b")}
        evaluate.attack_table(model, attacks_of_size, (X, Y), batch_size=size, **settings)
    pixels, targets = (np.concatenate(part) for part in zip(*seen["a 50"], strict=True))
    assert len(seen) == 4
    for batches in seen.values():
        np.testing.assert_array_equal(np.concatenate([pixel for pixel, _ in batches]), pixels)
        np.testing.assert_array_equal(np.concatenate([classes for _, classes in batches]), targets)


def test_norms_of_images_at_which_all_attacks_succeed():
    def towards(step):
        direction = np.sign(WEIGHTS[:, [1, 2, 0]] - WEIGHTS).T.reshape(3, 6, 6, 1)  # of the next class
        return lambda objective, x, y, targeted: x + step * direction[y]

    every = {"weak": towards(0.03), "strong": towards(0.1)}
    own, common = (evaluate.attack_table(model, every, (X, Y), norms=norms) for norms in ("own", "common"))
    fooled = np.all(
        [CORRECT & (scores(attack(model, X, Y, False)).argmax(1) != Y) for attack in every.values()], axis=0
    )
    assert 0 < fooled.sum() < CORRECT.sum()
    for name, norm in zip(every, common["l2"], strict=True):
        change = every[name](model, X, Y, False) - X
        np.testing.assert_allclose(norm, np.sqrt(np.square(change).sum((1, 2, 3)))[fooled].mean(), rtol=1e-5)
    assert own["success_rate"] == common["success_rate"]
    assert own["l2"] != common["l2"]


def test_a_table_names_what_is_judged():
    both = {"PGD": PGD, "whole": lambda objective, x, y, targeted: x}
    assert evaluate.attack_table(model, both, (X, Y))["judged"] == ["any look", "end"]
    assert evaluate.attack_table(model, both, (X, Y), early=False)["judged"] == ["end", "end"]


def test_norms_of_perturbations():
    change = np.zeros((2, 6, 6, 1))
    change[0, 0, :2, 0] = 0.3, -0.4
    result = evaluate.perturbation_norms(X[:2], X[:2] + change)
    for name, expected in {"l0": 2, "l1": 0.7, "l2": 0.5, "linf": 0.4}.items():
        np.testing.assert_allclose(result[name], [expected, 0], atol=1e-6)


def test_attacks_without_steps_are_run_whole():
    result = evaluate.robustness(model, lambda objective, x, y, targeted: 1 - x, (X, Y))
    flipped = ((1 - X).reshape(50, 36) @ WEIGHTS).argmax(1) == Y
    np.testing.assert_allclose(result.robust_accuracy, (flipped & CORRECT).mean(), atol=1e-6)


def test_nothing_to_attack_is_no_crash_and_no_data_an_error():
    wrong = (X, (Y + 1 + (CORRECT == 0)) % 3)
    keep = (X.reshape(50, 36) @ WEIGHTS).argmax(1) != wrong[1]
    result = evaluate.robustness(model, PGD, (X[keep], wrong[1][keep]))
    assert (result.accuracy, result.robust_accuracy) == (0, 0)
    assert np.isnan(result.success_rate)
    with pytest.raises(ValueError, match="at least one example; the data set is empty"):
        evaluate.robustness(model, PGD, [])


def test_a_table_of_attacks_and_objectives():
    goals = {"model": lambda model: model, "reversed": lambda model: lambda x: -model(x)}
    result = evaluate.attack_table(model, {"PGD": PGD, "FGSM": attacks.FGSM(0.03)}, (X, Y), objectives=goals)
    assert result["objective"] == ["model", "model", "reversed", "reversed"]
    assert result["attack"] == ["PGD", "FGSM"] * 2
    assert result["robust_accuracy"][0] == pytest.approx(evaluate.robust_accuracy(model, PGD, (X, Y)))
    assert result["robust_accuracy"][2] == pytest.approx(CORRECT.mean())
    assert {"l0", "l1", "l2", "linf", "seconds_per_example", "success_rate"} <= set(result.columns)
    assert evaluate.attack_table(model, {"PGD": PGD}, (X, Y))["objective"] == ["natural"]


def test_transfer_is_the_share_of_the_targets_correct_examples():
    weights = np.random.default_rng(7).normal(size=(36, 3)).astype("float32") + WEIGHTS

    def related(x):
        return ops.reshape(x, (-1, 36)) @ weights

    attack = attacks.BIM(0.05, step_size=0.02)
    models = {"model": model, "related": related}
    for dataset in ((X, Y), batches(16)):
        result = evaluate.transfer_matrix(models, attack, dataset)
        assert result["target"] == ["model", "related"]
        for row in result.rows:
            for source in models:
                target = models[row["target"]]
                right = ops.convert_to_numpy(target(X)).argmax(1) == Y
                wrong = ops.convert_to_numpy(target(attack(models[source], X, Y))).argmax(1) != Y
                assert row[source] == pytest.approx((right & wrong).sum() / right.sum())
    table = evaluate.transfer_matrix({"related": related}, attack, (X, Y), sources={"reversed": lambda x: -model(x)})
    assert table.columns == ["target", "reversed"]
