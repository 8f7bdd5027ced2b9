import keras
import numpy as np
import pytest
import replicas

from keras_capsvit import MarginLoss


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
