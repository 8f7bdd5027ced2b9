"""Tables of several radii and the worst case, their curves, and AutoAttack of whole data sets."""

import json

import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, evaluate, plot


def data(seed, count=40, classes=5):
    """Images, labels that are mostly right, and a linear model with its weights."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(36, classes)).astype("float32")
    x = random.uniform(0.3, 0.7, size=(count, 6, 6, 1)).astype("float32")
    y = (x.reshape(count, 36) @ weights).argmax(1)
    y[:4] = (y[:4] + 1) % classes
    return x, y, weights, lambda x: ops.reshape(x, (-1, 36)) @ weights


def towards(weights, step, low, high):
    """An attack that moves images whose first pixel is within limits only, towards the class after theirs."""

    def attack(objective, x, y, targeted):
        direction = np.sign(np.roll(weights, -1, axis=1) - weights).T.reshape(-1, 6, 6, 1)[y]
        moved = (x[:, :1, :1] >= low) & (x[:, :1, :1] < high)
        return np.where(moved, x + step * direction, x).astype("float32")

    return attack


def test_the_worst_case_is_of_images_that_any_attack_fools():
    x, y, weights, model = data(0)
    parts = {"dark": towards(weights, 0.1, 0, 0.55), "light": towards(weights, 0.07, 0.45, 1)}
    table = evaluate.attack_table(model, parts, (x, y), union=True)
    assert table["attack"] == ["dark", "light", "any of these"]
    assert set(table["objective"]) == {"natural"}
    scores = {name: attack(None, x, y, False).reshape(len(x), 36) @ weights for name, attack in parts.items()}
    correct = (x.reshape(len(x), 36) @ weights).argmax(1) == y
    fooled = {name: correct & (of.argmax(1) != y) for name, of in scores.items()}
    either = fooled["dark"] | fooled["light"]
    assert 0 < fooled["light"].sum() < either.sum() > fooled["dark"].sum()
    worst = table.rows[-1]
    assert worst["robust_accuracy"] == pytest.approx((correct & ~either).mean())
    assert worst["robust_accuracy"] < min(table["robust_accuracy"][:2])
    largest = np.where(fooled["light"], 0.07, 0.1)[either]  # where both do, the smaller
    assert worst["linf"] == pytest.approx(largest.mean(), abs=1e-6)
    assert worst["seconds_per_example"] == pytest.approx(sum(table["seconds_per_example"][:2]))


@pytest.mark.tensorflow
def test_rows_of_other_images_are_refused():
    import tensorflow as tf

    x, y, weights, model = data(0)
    parts = {"dark": towards(weights, 0.1, 0, 0.55), "light": towards(weights, 0.07, 0.45, 1)}
    expected = evaluate.attack_table(model, parts, (x, y), union=True)["robust_accuracy"]
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    same = examples.shuffle(40, seed=0, reshuffle_each_iteration=False).batch(16)
    assert evaluate.attack_table(model, parts, same, union=True)["robust_accuracy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="batch 0 is not the one of before"):
        evaluate.attack_table(model, parts, examples.shuffle(40, seed=0).batch(16), union=True)
    with pytest.raises(ValueError, match="which gives its images once"):
        evaluate.attack_table(model, parts, iter(examples.batch(16)))


def test_the_worst_case_of_several_objectives_is_of_all():
    x, y, _, model = data(1)
    goals = {"model": lambda model: model, "reversed": lambda model: lambda x: -model(x)}
    table = evaluate.attack_table(model, {"FGSM": attacks.FGSM(0.05)}, (x, y), objectives=goals, union=True)
    assert table["objective"] == ["model", "reversed", "any"]
    assert table.rows[-1]["robust_accuracy"] <= min(table["robust_accuracy"][:2])


@pytest.mark.parametrize("of", [dict, lambda settings: {**settings, "step_size": None}])
def test_radii_are_those_of_every_attack(of, tmp_path):
    x, y, _, model = data(2)
    pgd = attacks.PGD(0.5, **of({"steps": 6}))
    radii = [0.0, 0.02, 0.06]
    settings = {"epsilons": radii, "union": True, "work": tmp_path / "work"}
    table = evaluate.attack_table(model, {"PGD": pgd, "FGSM": attacks.FGSM(0.5)}, (x, y), **settings)
    assert table["epsilon"] == [radius for radius in radii for _ in range(3)]
    for row in table.rows:
        if row["attack"] == "PGD":
            alone = evaluate.robust_accuracy(model, attacks.PGD(row["epsilon"], steps=6), (x, y))
            assert row["robust_accuracy"] == alone
    robust = table["robust_accuracy"][2::3]
    assert robust[0] == table.rows[0]["accuracy"] > robust[1] > robust[2]
    again = evaluate.attack_table(model, {"PGD": pgd, "FGSM": attacks.FGSM(0.5)}, (x, y), **settings)
    assert str(again) == str(table)  # seconds, too: all was read
    lines = plot.robustness_curve(table).axes[0].lines
    assert [line.get_label() for line in lines] == ["PGD", "FGSM", "any of these"]
    np.testing.assert_allclose(lines[2].get_xdata(), radii)
    np.testing.assert_allclose(lines[2].get_ydata(), 100 * np.array(robust))


def test_what_is_no_radius_or_has_none_is_refused():
    x, y, _, model = data(3, 5)
    for radii, what in (
        ([], "at least one radius"),
        ([-1], "epsilons"),
        ([float("nan")], "epsilons"),
        ("a", "strings"),
    ):
        with pytest.raises(ValueError, match=what):
            evaluate.attack_table(model, {"FGSM": attacks.FGSM(0.1)}, (x, y), epsilons=radii)
    with pytest.raises(ValueError, match="'mine' has none"):
        evaluate.attack_table(model, {"mine": lambda *_: x}, (x, y), epsilons=[0.1])
    with pytest.raises(ValueError, match="union"):
        evaluate.attack_table(model, {"FGSM": attacks.FGSM(0.1)}, (x, y), union="yes")
    table = evaluate.attack_table(model, {"FGSM": attacks.FGSM(0.1)}, (x, y))
    with pytest.raises(ValueError, match=r"epsilons=\[...\]; received \['objective'"):
        plot.robustness_curve(table)
    with pytest.raises(ValueError, match="received int"):
        plot.robustness_curve(3)


def small():
    """An AutoAttack of little work."""
    parts = {"apgd-ce": attacks.APGD(0.1, steps=5), "square": attacks.Square(0.1, queries=20)}
    return attacks.AutoAttack(0.03, version="custom", attacks=parts)


def test_auto_attack_of_a_data_set(tmp_path):
    x, y, weights, model = data(4)
    report = evaluate.auto_attack(model, small(), (x, y), batch_size=16)
    assert report.examples == 40
    assert report.accuracy == pytest.approx(0.9)
    assert list(report.after) == ["clean", "apgd-ce", "square"]
    assert report.after["clean"] == report.accuracy
    assert report.after["square"] == report.robust_accuracy == np.mean(report.broken_by == "")
    assert 0 < report.robust_accuracy < report.accuracy
    np.testing.assert_array_equal(report.broken_by == "clean", (x.reshape(40, 36) @ weights).argmax(1) != y)
    assert 0 < report.queries <= 20 * report.after["apgd-ce"]
    whole = evaluate.auto_attack(model, small(), (x, y))
    np.testing.assert_array_equal(whole.broken_by, report.broken_by)
    record = json.loads(json.dumps(report.record("linear", "noise", reported=0.5, paper="none")))
    assert record["autoattack_acc"] == round(100 * report.robust_accuracy, 2)
    assert (record["clean_acc"], record["eps"], record["threat"], record["n"]) == (90.0, 0.03, "Linf", 40)
    assert (record["reported"], record["paper"], record["version"]) == (50.0, "none", "custom")
    assert record["versions"]["numpy"] == np.__version__


def test_auto_attack_goes_on_where_it_was(tmp_path, capsys):
    x, y, _, model = data(5)
    whole = evaluate.auto_attack(model, small(), (x, y), batch_size=10)

    def breaks():
        yield x[:10], y[:10]
        yield x[10:20], y[10:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate.auto_attack(model, small(), breaks(), work=tmp_path)
    resumed = evaluate.auto_attack(model, small(), (x, y), batch_size=10, work=tmp_path)
    np.testing.assert_array_equal(resumed.broken_by, whole.broken_by)
    again = evaluate.auto_attack(model, small(), (x, y), batch_size=10, work=tmp_path)
    assert again.seconds == resumed.seconds  # it was read
    assert "robust accuracy" in capsys.readouterr().out
    with pytest.raises(ValueError, match="results of another evaluation"):
        evaluate.auto_attack(model, attacks.AutoAttack(0.03), (x, y), batch_size=10, work=tmp_path)


def test_what_fools_the_objective_alone_does_not_count():
    x, y, _, model = data(6)
    report = evaluate.auto_attack(model, small(), (x, y), objective=lambda model: lambda x: -model(x))
    assert report.robust_accuracy == report.accuracy


def test_other_attacks_and_empty_data_are_refused():
    x, y, _, model = data(7, 4)
    with pytest.raises(ValueError, match=r"Expected an attacks\.AutoAttack; received PGD"):
        evaluate.auto_attack(model, attacks.PGD(0.1), (x, y))
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate.auto_attack(model, small(), [])
    with pytest.raises(ValueError, match="reported"):
        evaluate.auto_attack(model, small(), (x, y)).record("a", "b", reported=46)
