import keras
import numpy as np
import pytest
import replicas

from keras_capsvit import MarginLoss
from keras_capsvit.autodiff import value_and_gradient
from keras_capsvit.losses import CrossEntropy, LogLengths


@pytest.fixture
def lengths():
    return np.random.default_rng(0).uniform(size=(6, 4)).astype("float32")


@pytest.mark.parametrize("settings", [{}, {"m_plus": 0.8, "m_minus": 0.2, "lam": 1.0}])
def test_equals_the_plain_formula_for_ids_and_one_hot(lengths, settings):
    labels = np.array([0, 1, 2, 3, 3, 0])
    expected = replicas.margin_loss(labels, lengths, **settings)
    for y in (labels, labels[:, None], np.eye(4)[labels]):
        np.testing.assert_allclose(MarginLoss(**settings)(y, lengths), expected, rtol=1e-5)


def test_two_present_classes():
    np.testing.assert_allclose(MarginLoss()([[1, 1, 0]], np.array([[0.9, 0.4, 0.3]])), 0.5**2 + 0.5 * 0.2**2, rtol=1e-5)


def test_config_round_trip():
    loss = keras.losses.deserialize(keras.losses.serialize(MarginLoss(m_plus=0.95, lam=0.3)))
    assert (loss.m_plus, loss.m_minus, loss.lam) == (0.95, 0.1, 0.3)


def test_refuses_logits_options_and_wrong_shapes(lengths):
    with pytest.raises(ValueError, match=r"received \['from_logits'\].*lengths in \[0, 1\]"):
        MarginLoss(from_logits=True)
    with pytest.raises(ValueError, match="m_minus < m_plus <= 1; received m_minus=0"):
        MarginLoss(m_minus=0.9, m_plus=0.1)
    with pytest.raises(ValueError, match=r"received shape \(6, 3\)"):
        MarginLoss()(np.zeros((6, 3)), lengths)
    with pytest.raises(ValueError, match=r"scores of shape \(b, M\); received shape \(6,\)"):
        MarginLoss()(np.zeros(6), lengths[:, 0])


def test_log_lengths_are_the_plain_formula_for_ids_and_rows(lengths):
    labels = np.array([0, 1, 2, 3, 3, 0])
    expected = replicas.log_lengths(labels, lengths)
    for y in (labels, labels[:, None], np.eye(4)[labels]):
        np.testing.assert_allclose(LogLengths()(y, lengths), expected, rtol=1e-5)
    both = replicas.log_lengths([0], lengths[:1]) + replicas.log_lengths([2], lengths[:1])
    np.testing.assert_allclose(LogLengths()([[1, 0, 1, 0]], lengths[:1]), both, rtol=1e-5)
    each = LogLengths(reduction="none")(labels, lengths)
    np.testing.assert_allclose(each, [replicas.log_lengths([y], [row]) for y, row in zip(labels, lengths, strict=True)])


def test_log_lengths_can_be_sure_and_the_softmax_of_lengths_cannot():
    sure = np.eye(10, dtype="float32")[:1]
    np.testing.assert_allclose(LogLengths()([0], sure), 0, atol=2e-6)
    np.testing.assert_allclose(np.exp(-float(CrossEntropy()([0], sure))), np.e / (np.e + 9), rtol=1e-5)


def test_lengths_of_zero_and_what_is_no_length():
    zero, tie = np.float32([[0, 0.5, 0.5]]), np.zeros((1, 3), "float32")
    np.testing.assert_allclose(LogLengths()([0], zero), -np.log(1e-7), rtol=1e-5)
    np.testing.assert_allclose(LogLengths()([0], tie), np.log(3), rtol=1e-5)
    loss = value_and_gradient(lambda lengths: LogLengths()(np.array([0]), lengths))
    for row in (zero, tie, np.float32([[0.2, 0.5, 0.5]])):
        assert all(np.isfinite(keras.ops.convert_to_numpy(each)).all() for each in loss(row))
    for broken in (np.nan, np.inf, -0.1):
        for place in range(3):
            row = np.float32([[0.2, 0.5, 0.3]])
            row[0, place] = broken
            assert np.isnan(float(LogLengths()([0], row))), (broken, place)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("of_loss", [None, "half"])
def test_log_lengths_in_half_precision(dtype, of_loss, lengths):
    labels = np.array([0, 1, 2, 3, 3, 0])
    half = keras.ops.cast(lengths, dtype)
    expected = replicas.log_lengths(labels, keras.ops.convert_to_numpy(keras.ops.cast(half, "float32")))
    loss = LogLengths(dtype=dtype if of_loss else None)(labels, half)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-2 if of_loss else 1e-5)
    zero = keras.ops.cast(np.float32([[0, 0.5, 0.5]]), dtype)
    np.testing.assert_allclose(float(LogLengths(dtype=dtype if of_loss else None)([0], zero)), 16.1, rtol=1e-2)


def test_log_lengths_are_saved_and_refuse_what_they_do_not_know(lengths):
    loss = keras.losses.deserialize(keras.losses.serialize(LogLengths(reduction="sum")))
    assert (type(loss), loss.reduction, loss.name) == (LogLengths, "sum", "log_lengths")
    with pytest.raises(TypeError, match="from_logits"):
        LogLengths(from_logits=True)
    with pytest.raises(ValueError, match=r"received shape \(6, 3\)"):
        LogLengths()(np.zeros((6, 3)), lengths)
    with pytest.raises(ValueError, match="class ids between 0 and 3"):
        LogLengths()(np.array([0, 1, 2, 3, 4, 0]), lengths)
