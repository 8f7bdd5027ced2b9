import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_capsvit import SubsetAccuracy


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_right_where_the_highest_scores_are_the_classes(seed, k):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(20, 5)).astype("float32")
    labels = np.stack([random.permutation([1] * k + [0] * (5 - k)) for _ in scores])
    highest = np.argsort(scores, axis=1)[:, -k:]
    expected = np.mean([set(best) == set(np.flatnonzero(row)) for best, row in zip(highest, labels, strict=True)])
    metric = SubsetAccuracy()
    metric.update_state(labels, scores)
    np.testing.assert_allclose(float(metric.result()), expected, rtol=1e-6)


def test_is_the_usual_accuracy_for_one_class_and_weighs_samples():
    scores, ids = np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]], "float16"), np.array([1, 1, 0])
    for labels in (ids, ids[:, None], np.eye(2)[ids]):
        metric = SubsetAccuracy("accuracy")
        metric.update_state(labels, scores)
        assert float(metric.result()) == pytest.approx(1 / 3)  # the tie is wrong
        metric.reset_state()
        metric.update_state(labels, scores, sample_weight=np.array([3.0, 1.0, 0.0]))
        assert float(metric.result()) == pytest.approx(0.75)


def test_the_largest_share_of_a_mixed_image_counts():
    rows = np.float32([[0.7, 0.3, 0], [0.3, 0.7, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5]])
    scores = np.float32([[0.5, 0.9, 0], [0.5, 0.9, 0], [0.5, 0.9, 0], [0.5, 0, 0.9], [0.5, 0.1, 0.2], [0.1, 0.5, 0.9]])
    for k, right in enumerate([0, 1, 1, 0, 1, 1]):
        metric = SubsetAccuracy()
        metric.update_state(rows[k : k + 1], scores[k : k + 1])
        assert float(metric.result()) == right, k


def test_config_round_trip_and_wrong_labels():
    metric = keras.metrics.deserialize(keras.metrics.serialize(SubsetAccuracy("both")))
    assert (type(metric), metric.name) == (SubsetAccuracy, "both")
    with pytest.raises(ValueError, match=r"multi-hot of shape \(batch, 5\); received shape \(2, 4\)"):
        metric.update_state(np.zeros((2, 4)), np.zeros((2, 5)))
