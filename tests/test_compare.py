"""Explainers side by side: the table holds what the metrics gave."""

import json

import keras
import numpy as np
import pytest
from scipy import stats

from keras_capsvit import evaluate

rng = np.random.default_rng(0)
X = rng.uniform(size=(5, 6, 6, 1)).astype("float32")
Y = np.array([0, 1, 2, 0, 1])
KERNEL = rng.normal(size=(36, 3)).astype("float32")


def model(x):
    return keras.ops.matmul(keras.ops.reshape(x, (-1, 36)), KERNEL)


def products(x, target):
    return x[..., 0] * KERNEL.T[target].reshape(-1, 6, 6)


def total(model, x, y, maps):
    return maps.sum(axis=(1, 2))


EXPLAINERS = {"products": products, "pixels": lambda x, target: x[..., 0]}
METRICS = {"total": total, "class": lambda model, x, y, maps: y}


@pytest.mark.parametrize("dataset", [(X, Y), [(X[:2], Y[:2]), (X[2:], Y[2:])]])
@pytest.mark.parametrize("target", ["label", "predicted"])
def test_table_holds_means_and_deviations(dataset, target, tmp_path):
    scores = X.reshape(5, 36) @ KERNEL
    classes = Y if target == "label" else scores.argmax(axis=1)
    table = evaluate.compare(model, EXPLAINERS, dataset, METRICS, target=target)
    kinds = ("", " std", " se", " 95 % low", " 95 % high")
    columns = ["explainer", *(f"{name}{kind}" for name in METRICS for kind in kinds)]
    columns += ["images", "seconds_per_image"]
    assert table.columns == columns
    assert table["explainer"] == ["products", "pixels"]
    assert table["images"] == [5, 5]
    assert all(0 < each < 1 for each in table["seconds_per_image"])
    expected = scores[np.arange(5), classes]
    np.testing.assert_allclose(table["total"], [expected.mean(), X.sum(axis=(1, 2, 3)).mean()], rtol=1e-5)
    np.testing.assert_allclose(table["total std"], [expected.std(), X.sum(axis=(1, 2, 3)).std()], rtol=1e-5)
    np.testing.assert_allclose(table["class"], [classes.mean()] * 2)
    table.to_json(tmp_path / "table.json", seed=0)
    assert json.loads((tmp_path / "table.json").read_text())["result"] == table.rows


@pytest.mark.tensorflow
def test_streams_tf_data():
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    streamed = evaluate.compare(model, EXPLAINERS, stream, METRICS, target="label")
    np.testing.assert_allclose(
        streamed["total"], evaluate.compare(model, EXPLAINERS, (X, Y), METRICS, target="label")["total"]
    )


def test_metrics_of_the_package_fit(digits):
    metrics = {
        "aopc": lambda model, x, y, maps: evaluate.aopc(model, x, maps, patch=2, fill=0, target=y).area,
        "drop": lambda model, x, y, maps: evaluate.ablation_drop(model, x, maps, mean=0, size=3, target=y),
        "hits": lambda model, x, y, maps: evaluate.pointing_game(maps, [(0, 0, 4, 4)] * len(x)),
    }
    table = evaluate.compare(model, EXPLAINERS, (X, Y), metrics)
    of_products, of_pixels = table["aopc"]
    assert of_products > of_pixels  # of a linear model, products are the drops
    assert all(0 <= each <= 1 for each in table["hits"])


def test_says_what_is_wrong():
    for wrong, message in [
        ({"target": "best"}, r"target must be one of \('predicted', 'label'\); received 'best'"),
        ({"explainers": {}}, "at least one explainer"),
        ({"dataset": []}, "the data set is empty"),
        ({"dataset": (X, Y + 1)}, "Expected class ids between 0 and 2; received values between 1 and 3"),
        ({"explainers": {"odd": lambda x, y: x}}, r"Maps of explainer 'odd': Expected maps of shape \(b, H, W\)"),
        ({"explainers": {"odd": lambda x, y: x[..., 0] * np.nan}}, "Maps of explainer 'odd': Expected finite maps"),
        ({"metrics": {"one": lambda *a: 1.0}}, r"Metric 'one' must return a value for each image, of shape \(5,\)"),
        (
            {"metrics": {"none": lambda *a: [np.nan] * 5}},
            "Metric 'none' returned NaN or infinite values for maps of 'pro",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate.compare(
                **{"model": model, "explainers": EXPLAINERS, "dataset": (X, Y), "metrics": METRICS, **wrong}
            )


def test_standard_errors_and_values_of_each_image():
    table, values = evaluate.compare(model, EXPLAINERS, (X, Y), METRICS, target="label", batch_size=2, per_image=True)
    expected = (X.reshape(5, 36) @ KERNEL)[np.arange(5), Y]
    np.testing.assert_allclose(values["products"]["total"], expected, rtol=1e-5)
    deviation = np.sqrt(np.sum((expected - expected.mean()) ** 2) / 4)
    assert table["total se"][0] == pytest.approx(deviation / np.sqrt(5), rel=1e-5)
    low, high = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
    assert table["total 95 % low"][0] == pytest.approx(low, rel=1e-5)
    assert table["total 95 % high"][0] == pytest.approx(high, rel=1e-5)
    single = evaluate.compare(model, EXPLAINERS, (X[:1], Y[:1]), METRICS)
    assert np.isnan([single["total se"], single["total 95 % low"], single["total 95 % high"]]).all()


def test_paired_tests_are_those_of_scipy():
    random = np.random.default_rng(3)
    base = random.normal(size=12)
    values = {
        name: {"m": base + shift + 0.3 * random.normal(size=12), "n": base + 0.0}
        for name, shift in (("a", 0.0), ("b", 0.1), ("c", 0.4))
    }
    for test, theirs in (("t", stats.ttest_rel), ("wilcoxon", stats.wilcoxon)):
        table = evaluate.paired_tests(values, test=test)
        assert table["metric"] == ["m"] * 3 + ["n"] * 3
        assert list(zip(table["first"], table["second"], strict=True))[:3] == [("a", "b"), ("a", "c"), ("b", "c")]
        assert table["images"] == [12] * 6
        for row in table.rows[:3]:
            first, second = values[row["first"]]["m"], values[row["second"]]["m"]
            assert row["difference"] == pytest.approx(np.mean(first - second))
            assert row["p"] == pytest.approx(theirs(first, second).pvalue)
            interval = stats.ttest_rel(first, second).confidence_interval(0.95)
            assert (row["95 % low"], row["95 % high"]) == pytest.approx(interval)
        smallest, middle, largest = sorted(table["p"][:3])
        adjusted = [3 * smallest, max(3 * smallest, 2 * middle), max(3 * smallest, 2 * middle, largest)]
        assert sorted(table["p by Holm"][:3]) == pytest.approx([min(1, p) for p in adjusted])
        assert table["p"][3:] == table["p by Holm"][3:] == [1] * 3  # they do not differ at all
    always = {"a": {"m": [1.0, 2.0]}, "b": {"m": [0.5, 1.5]}}
    assert evaluate.paired_tests(always)["p"] == [0]


def test_values_of_a_comparison_are_tested_and_written(tmp_path):
    _, values = evaluate.compare(model, EXPLAINERS, (X, Y), METRICS, per_image=True)
    table = evaluate.paired_tests(values)
    assert table["metric"] == list(METRICS)
    table.to_csv(tmp_path / "paired.csv")
    table.to_json(tmp_path / "paired.json")
    assert len((tmp_path / "paired.csv").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "paired.json").read_text())["result"] == table.rows


def test_paired_tests_say_what_is_wrong():
    pair = {"m": [1.0, 2.0]}
    for values, message in [
        ({"a": pair}, r"values of at least two explainers; received those of \['a'\]"),
        ({"a": pair, "b": {"n": [1.0, 2.0]}}, r"the metrics \['m'\] of every explainer; 'b' has \['n'\]"),
        (
            {"a": pair, "b": {"m": [1.0, 2.0, 3.0]}},
            r"the same images of every explainer, of shape \(2,\); received \(3,",
        ),
        ({"a": {"m": [1.0]}, "b": {"m": [1.0]}}, r"of each of at least two images; received \(1,\)"),
        ({"a": {"m": [[1.0, 2.0]]}, "b": pair}, r"of each of at least two images; received \(1, 2\)"),
        ({"a": {"m": [1.0, np.nan]}, "b": pair}, "Expected finite values of 'a' by 'm'; received NaN"),
        ([pair], "values must be a dict from names to dicts from metrics"),
        ({"a": 3, "b": pair}, "Values of 'a' must be a dict from names"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate.paired_tests(values)
    with pytest.raises(ValueError, match=r"test must be one of \('t', 'wilcoxon'\); received 'sign'"):
        evaluate.paired_tests({"a": pair, "b": pair}, test="sign")
