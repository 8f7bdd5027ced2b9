import keras
import numpy as np
import pytest

from keras_capsvit import LinearWarmup, models, training
from keras_capsvit.training import recipes

FOUR_EPOCHS = {"epochs": 10, "learning_rate": 0.5, "warmup": 4, "loss": "cross_entropy"}


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in range(steps)])


def test_it_grows_linearly_to_the_first_rate_and_hands_over():
    decay = keras.optimizers.schedules.CosineDecay(0.8, 20)
    warm = rates(LinearWarmup(decay, 4), 24)
    np.testing.assert_allclose(warm[:4], 0.8 * np.arange(1, 5) / 5, rtol=1e-6)
    np.testing.assert_allclose(warm[4:], rates(decay, 20), rtol=1e-6)
    np.testing.assert_allclose(rates(LinearWarmup(0.8, 3), 6), [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(rates(LinearWarmup(decay, 0), 20), rates(decay, 20), rtol=1e-6)


@pytest.mark.parametrize("schedule", [0.8, keras.optimizers.schedules.PiecewiseConstantDecay([5, 9], [0.8, 0.1, 0.2])])
def test_it_is_saved(schedule):
    warm = LinearWarmup(schedule, 4)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(warm))
    np.testing.assert_array_equal(rates(again, 16), rates(warm, 16))


def test_what_is_refused():
    for schedule in (-1.0, np.nan, "cosine", None, True):
        with pytest.raises(ValueError, match=r"schedule, unless it is one of keras\.optimizers\.schedules, must be"):
            LinearWarmup(schedule, 4)
    for steps in (-1, 1.5, True):
        with pytest.raises(ValueError, match="steps must be an integer from 0"):
            LinearWarmup(0.1, steps)


@pytest.mark.parametrize("schedule", ["constant", "cosine", (6, 8)])
def test_recipes_warm_up_and_end_where_they_do_without(schedule):
    """Three steps an epoch; the optimizer's own rate, read while it steps."""
    model = models.ConvNetAvg((6, 6, 1), 3, kernel_size=3, filters=2)
    recipes.compile_by(model, training.Recipe(**FOUR_EPOCHS, schedule=schedule), 3)
    measured = []
    for step in range(30):
        model.optimizer.iterations.assign(step)
        measured.append(float(model.optimizer.learning_rate))
    np.testing.assert_allclose(measured[:12], 0.5 * np.arange(1, 13) / 13, rtol=1e-5)
    expected = {
        "constant": np.full(18, 0.5),
        "cosine": 0.25 * (1 + np.cos(np.pi * np.arange(18) / 18)),
        (6, 8): np.repeat([0.5, 0.05, 0.005], 6),
    }[schedule]
    np.testing.assert_allclose(measured[12:], expected, rtol=1e-4)


@pytest.mark.long
def test_a_model_with_a_warm_up_is_reloaded_in_a_fresh_process(tmp_path, fresh_process):
    model = models.ConvNetAvg((6, 6, 1), 3, kernel_size=3, filters=2)
    recipes.compile_by(model, training.Recipe(**FOUR_EPOCHS, optimizer="adamw", weight_decay=0.05), 3)
    model.save(tmp_path / "model.keras")
    code = """
import sys, keras, keras_capsvit
model = keras.saving.load_model(sys.argv[1])
print(type(model.optimizer).__name__, float(model.optimizer.learning_rate))
"""
    kind, rate = fresh_process(code, tmp_path / "model.keras").split()[-2:]
    assert kind == "AdamW"
    assert float(rate) == pytest.approx(0.5 / 13)
