"""Explainers side by side: the table holds what the metrics gave."""

import json

import keras
import numpy as np
import pytest

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
    columns = ["explainer", *(f"{name}{kind}" for name in METRICS for kind in ("", " std", " se"))]
    columns += ["images", "seconds_per_image"]
    assert table.columns == columns
    assert table["explainer"] == ["products", "pixels"]
    assert table["images"] == [5, 5]
    assert all(0 < one < 1 for one in table["seconds_per_image"])
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
    ours, other = table["aopc"]
    assert ours > other  # of a linear model, products are the drops
    assert all(0 <= one <= 1 for one in table["hits"])


def test_says_what_is_wrong():
    for wrong, message in [
        ({"target": "best"}, r"target must be one of \('predicted', 'label'\); received 'best'"),
        ({"explainers": {}}, "at least one explainer"),
        ({"dataset": []}, "the data set is empty"),
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
    assert np.isnan(evaluate.compare(model, EXPLAINERS, (X[:1], Y[:1]), METRICS)["total se"]).all()
