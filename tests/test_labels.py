"""Labels that are none: refused where their values are known, NaN in compiled steps, never another class."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import CapsNet, ConvNetAvg, MarginLoss, SubsetAccuracy, training
from keras_capsvit.autodiff import compiled
from keras_capsvit.losses import BinaryCrossEntropy, CrossEntropy
from keras_capsvit.ops import as_multi_hot, check_labels

NONE_IN_COMPILED_STEPS = [
    np.array([1, -1], "int32"),
    np.array([1, -3], "int64"),
    np.array([1, 3], "uint8"),
    np.array([1, 300], "uint16"),
    np.array([1, 1.7], "float32"),
    np.array([1, np.nan], "float32"),
    np.array([1, -1], "float16"),
]
ROWS = [
    np.float32([[0, 1, 0], [0, 2, 0]]),
    np.float32([[0, 1, 0], [-1, 0, 1]]),
    np.float32([[0, 1, 0], [np.nan, 0, 1]]),
]


class Stream(keras.utils.PyDataset):
    """One batch, whose labels Keras does not know before the step runs."""

    def __init__(self, x, y):
        super().__init__()
        self.batch = x, y

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def known():
    return compiled(lambda labels: as_multi_hot(labels, 3))


@pytest.mark.parametrize("labels", NONE_IN_COMPILED_STEPS, ids=lambda labels: f"{labels.dtype} {labels[1]}")
def test_ids_that_are_none_are_nan_when_compiled_and_refused_when_known(labels):
    rows = ops.convert_to_numpy(known()(labels))
    np.testing.assert_array_equal(rows, [[0, 1, 0], [np.nan] * 3])
    with pytest.raises(ValueError, match=r"class ids|not all of them integers"):
        as_multi_hot(labels, 3)


@pytest.mark.tensorflow
def test_ids_are_compared_before_they_are_cast():
    rows = ops.convert_to_numpy(known()(np.array([0, 2**32, 2**32 + 1, -(2**32)])))
    np.testing.assert_array_equal(rows, [[1, 0, 0], *[[np.nan] * 3] * 3])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float16", "float32"])
def test_ids_of_every_type(dtype):
    labels = np.array([2, 0], dtype)
    expected = [[0, 0, 1], [1, 0, 0]]
    np.testing.assert_array_equal(known()(labels), expected)
    np.testing.assert_array_equal(known()(labels[:, None]), expected)
    np.testing.assert_array_equal(as_multi_hot(labels, 3), expected)
    np.testing.assert_array_equal(
        compiled(lambda labels: as_multi_hot(labels, 300))(np.array([255], "uint8"))[0, 255], 1
    )


@pytest.mark.parametrize("rows", ROWS, ids=["2", "-1", "nan"])
def test_rows_that_are_no_multi_hot(rows):
    result = ops.convert_to_numpy(known()(rows))
    np.testing.assert_array_equal(result[0], rows[0])
    assert np.isnan(result[1]).any()
    with pytest.raises(ValueError, match="multi-hot entries between 0 and 1; received values"):
        as_multi_hot(rows, 3)


def test_cross_entropy_takes_shares_that_sum_to_one_and_no_others():
    logits, loss = np.random.default_rng(0).normal(size=(2, 3)).astype("float32"), CrossEntropy()
    measured = compiled(lambda labels: loss(labels, logits))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    shares = np.float32([[0.3, 0.7, 0], [0, 0, 1]])
    expected = -np.mean(np.sum(shares * log_probabilities, axis=1))
    for labels in (shares, ops.cast(shares, "bfloat16"), ops.cast(shares, "float16")):
        np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-2)
        np.testing.assert_allclose(measured(labels), expected, rtol=1e-2)
    for row in ([1, 1, 0], [0.9, 0.9, 0], [0, 0, 0], [0.5, 0.4, 0]):
        labels = np.float32([[0, 1, 0], row])
        assert np.isnan(float(measured(labels)))
        with pytest.raises(ValueError, match=r"shares that sum to 1, in each row; received sums between .*margin loss"):
            loss(labels, logits)
        assert np.isfinite(float(BinaryCrossEntropy(from_logits=True)(labels, logits)))


@pytest.mark.parametrize("labels", [np.array([True, False]), np.array([1j, 0]), np.array(["1", "0"])], ids=str)
def test_types_that_are_no_labels_are_refused_when_compiled_too(labels):
    with pytest.raises(ValueError, match=r"Labels must be integers, or floats that are; received (bool|complex|str)"):
        as_multi_hot(labels, 3)
    if labels.dtype.kind != "U":
        with pytest.raises(ValueError, match="Labels must be integers, or floats that are; received"):
            known()(labels)


def test_whether_rows_are_shares_is_said_by_a_bool():
    assert check_labels(np.array([[0.5, 0.5]]), 2, shares=True) == "multi-hot"
    with pytest.raises(ValueError, match="shares must be True or False; received 'no'"):
        check_labels(np.array([[1.0, 1.0]]), 2, shares="no")


def test_a_stream_with_labels_that_are_none_has_a_loss_of_nan():
    settings = {"num_types": 2, "filters": 4, "kernel_size": 3, "reconstruction_units": (8,)}
    model = CapsNet((8, 8, 1), 3, reconstruction="conditional", **settings)
    model.compile("sgd", MarginLoss(), metrics=[SubsetAccuracy("accuracy")])
    x = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype("float32")
    measured = model.evaluate(Stream(x, np.float32([2, 0, 1])), verbose=0, return_dict=True)
    assert np.isfinite([*measured.values()]).all()
    for wrong in (-1, 3, 1.7):
        measured = model.evaluate(Stream(x, np.float32([2, 0, wrong])), verbose=0, return_dict=True)
        assert np.isnan([*measured.values()]).all()
    ending = [keras.callbacks.TerminateOnNaN()]
    assert len(model.fit(Stream(x, np.float32([2, 0, 7])), epochs=2, verbose=0, callbacks=ending).epoch) == 1
    for wrong in (-1, 3, 1.7):
        with pytest.raises(ValueError, match=r"class ids between 0 and 2|not all of them integers"):
            model.fit(x, np.array([2, 0, wrong]), verbose=0)
    with pytest.raises(ValueError, match="Labels must be integers, or floats that are; received bool"):
        model.evaluate(Stream(x, np.array([True, False, True])), verbose=0)


def test_cross_entropies_of_legal_labels_are_those_of_keras():
    random = np.random.default_rng(0)
    logits, ids = random.normal(size=(5, 3)).astype("float32"), random.integers(3, size=5)
    rows = np.eye(3, dtype="float32")[ids]
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(ids, logits)
    for labels in (ids, ids[:, None], rows):
        np.testing.assert_allclose(CrossEntropy()(labels, logits), expected, rtol=1e-6)
    expected = keras.losses.BinaryCrossentropy(from_logits=True)(rows, logits)
    for labels in (ids, ids[:, None], rows):
        np.testing.assert_allclose(BinaryCrossEntropy(from_logits=True)(labels, logits), expected, rtol=1e-6)
    for loss in (CrossEntropy(label_smoothing=0.1), BinaryCrossEntropy(from_logits=True)):
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        np.testing.assert_allclose(again(rows, logits), loss(rows, logits))


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy"])
def test_losses_of_recipes_take_no_label_for_another(name):
    model = ConvNetAvg((9, 9, 1), 3, kernel_size=3, filters=4)
    logits, loss = np.random.default_rng(0).normal(size=(2, 3)).astype("float32"), training.loss_for(model, name)
    for labels in ([1, -1], [1, 3], [1, 1.7], [[0, 1, 0], [0, 2, 0]]):
        labels = np.float32(labels)
        assert np.isnan(float(compiled(lambda labels: loss(labels, logits))(labels))), labels
        with pytest.raises(ValueError, match=r"class ids|multi-hot entries|not all of them integers"):
            loss(labels, logits)
    assert np.isfinite(float(compiled(lambda labels: loss(labels, logits))(np.array([1, 2]))))
    with pytest.raises(ValueError, match="Labels must be integers, or floats that are; received bool"):
        compiled(lambda labels: loss(labels, logits))(np.array([True, False]))


def test_classes_of_parts_that_are_none():
    settings = {"num_types": 2, "filters": 4, "kernel_size": 3, "reconstruction_units": (8,)}
    model = CapsNet((8, 8, 1), 3, reconstruction="conditional", **settings)
    model.compile("sgd", MarginLoss())
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype("float32")
    parts = np.stack([x, x], axis=1)
    losses = [
        model.evaluate(Stream(x, {"classes": np.array([[0, 1], [1, last]]), "parts": parts}), verbose=0)
        for last in (1, 2, 3, -1)
    ]
    assert np.isfinite(losses[:2]).all()
    assert np.isnan(losses[2:]).all()
    with pytest.raises(ValueError, match="class ids between 0 and 2; received values between 0 and 3"):
        model.fit(x, {"classes": np.array([[0, 1], [1, 3]]), "parts": parts}, verbose=0)
