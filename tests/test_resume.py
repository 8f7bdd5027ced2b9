"""Trainings that were interrupted end where they would have without it, bit by bit."""

import csv

import keras
import numpy as np
import pytest

from keras_capsvit import attacks, data, training
from keras_capsvit.files import FileError
from keras_capsvit.models import ConvNetAvg, VisionTransformer
from keras_capsvit.training import progress

pytestmark = pytest.mark.tensorflow  # the streams are
RECIPE = training.Recipe(epochs=3, learning_rate=0.01, schedule="cosine", loss="cross_entropy")


def vit():
    size = {"width": 8, "depth": 1, "num_heads": 2, "mlp_units": 8}
    keras.utils.set_random_seed(0)
    return VisionTransformer("Ti/4", input_shape=(8, 8, 1), num_classes=10, dropout=0.3, drop_path=0.3, **size)


@pytest.fixture
def streams(digits):
    x, y = digits[0][:48], digits[1][:48]

    def make():
        train = data.augment(data.from_arrays(x, y, batch_size=16, shuffle=True, seed=1), shift=1, seed=2)
        return train, data.from_arrays(x[:16], y[:16], batch_size=16)

    return make


def pgd(model, *args, **kwargs):
    return training.adversarial_fit(model, *args, attacks.PGD(0.1, steps=2), **kwargs)


def deepfool(model, *args, **kwargs):
    return training.adversarial_fit(model, *args, attacks.DeepFool(steps=2), **kwargs)


def state(model):
    return [*model.get_weights(), *(np.asarray(variable) for variable in model.optimizer.variables)]


def interrupt(monkeypatch, owner, name, number):
    """Have the ``number``-th call of a method end the training, before it does anything."""
    original, calls = getattr(owner, name), iter(range(number + 1))

    def instead(self, *args, **kwargs):
        if next(calls) == number:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, instead)


MOMENTS = {
    "in the first epoch": (keras.callbacks.History, "on_train_batch_end", 1),
    "in the third epoch": (keras.callbacks.History, "on_train_batch_end", 7),
    "before a checkpoint": (progress.Progress, "on_epoch_end", 1),
    "between a checkpoint and its row": (progress.Progress, "_write_table", 2),
    "before the end is told": (progress.Progress, "delete", 0),
}


@pytest.mark.parametrize(
    ("fit", "moment"),
    [*((training.fit, moment) for moment in MOMENTS), (pgd, "in the third epoch"), (deepfool, "before a checkpoint")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_it_ends_where_it_would_have(streams, tmp_path, monkeypatch, fit, moment):
    whole = vit()
    rows = fit(whole, *streams(), RECIPE, work=tmp_path / "whole", verbose=0)
    table = (tmp_path / "whole" / "epochs.csv").read_text()
    assert [row["epoch"] for row in csv.DictReader(table.splitlines())] == ["0", "1", "2"]
    same = streams()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, *MOMENTS[moment])
        fit(vit(), *same, RECIPE, work=tmp_path / "cut", verbose=0)
    assert (tmp_path / "cut" / "checkpoint").exists()
    resumed = vit()
    keras.utils.set_random_seed(99)  # the checkpoint has its own
    again = fit(resumed, *same, RECIPE, work=tmp_path / "cut", verbose=0)  # though the streams have been read
    for a, b in zip(state(whole), state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "cut" / "epochs.csv").read_text() == table
    assert again.epoch == rows.epoch == [0, 1, 2]
    assert again.history == rows.history
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["epochs.csv"]


def test_order_and_dropout_matter_here(streams):
    """Otherwise the tests above would show less than they seem to."""
    ends = []
    for change in ("nothing", "order", "seeds"):
        model = vit()
        train, validation = streams()
        if change == "order":
            train = data.augment(train, shift=1)
        if change == "seeds":
            for variable in model.variables:
                if variable.name == "seed_generator_state":
                    variable.assign(variable + 1)
        training.fit(model, train, validation, RECIPE, verbose=0)
        ends.append(model.get_weights()[0])
    assert np.any(ends[0] != ends[1])
    assert np.any(ends[0] != ends[2])


def test_trainings_by_one_stream_see_the_same_order_and_orders_change(streams):
    """Also after it was read elsewhere, so that a script goes on right whatever of it is skipped when it runs again."""
    train, _ = streams()
    seen = []

    class Seen(keras.Model):
        def train_step(self, batch):
            seen.append(batch[1].numpy())
            return {"loss": 0.0}

    from keras_capsvit.training.streams import at_epoch

    def orders(epoch, epochs):
        seen.clear()
        model = Seen()
        model.compile(run_eagerly=True)
        model.fit(at_epoch([train], [3], epoch)[0], initial_epoch=epoch, epochs=epochs, shuffle=False, verbose=0)
        return np.concatenate(seen).reshape(epochs - epoch, -1)

    first = orders(0, 3)
    assert np.any(first[0] != first[1])
    assert np.any(first[1] != first[2])
    data.take(train, 5)
    np.testing.assert_array_equal(orders(0, 3), first)
    np.testing.assert_array_equal(orders(2, 3), first[2:])


def test_a_resumed_model_trains_all_epochs_of_a_later_fit(streams, tmp_path, monkeypatch):
    model, (train, validation) = vit(), streams()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, keras.callbacks.History, "on_train_batch_end", 7)
        training.fit(model, train, validation, RECIPE, work=tmp_path, verbose=0)
    training.fit(model, train, validation, RECIPE, work=tmp_path, verbose=0)
    assert model.fit(train, epochs=2, verbose=0).epoch == [0, 1]
    assert training.fit(model, train, validation, RECIPE, verbose=0).epoch == [0, 1, 2]
    assert training.fit(model, train, validation, RECIPE, work=tmp_path, verbose=0).epoch == [0, 1, 2]


def test_a_training_that_has_stopped_early_trains_no_more(streams, tmp_path, monkeypatch):
    recipe = training.Recipe(epochs=50, learning_rate=0.01, loss="cross_entropy", stop_at=0.05)
    model = vit()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "delete", 0)
        training.fit(model, *streams(), recipe, work=tmp_path, verbose=0)
    table = (tmp_path / "epochs.csv").read_text()
    resumed = vit()
    history = training.fit(resumed, *streams(), recipe, work=tmp_path, verbose=0)
    assert len(history.epoch) == len(table.splitlines()) - 1 < 50
    assert (tmp_path / "epochs.csv").read_text() == table
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_checkpoint_costs_an_epoch_and_two_an_error(streams, tmp_path, monkeypatch):
    whole = vit()
    training.fit(whole, *streams(), RECIPE, verbose=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "delete", 0)
        training.fit(vit(), *streams(), RECIPE, work=tmp_path, verbose=0)
    newest, before = (tmp_path / "checkpoint" / f"epoch-00000{k}.checkpoint" for k in (3, 2))
    newest.write_bytes(newest.read_bytes()[:-9])
    content = before.read_bytes()
    before.write_bytes(b"")
    with pytest.raises(FileError, match=r"No checkpoint in .* is whole.*000003.*000002"):
        training.fit(vit(), *streams(), RECIPE, work=tmp_path, verbose=0)
    before.write_bytes(content)
    resumed = vit()
    with pytest.warns(UserWarning, match="000003.checkpoint cannot be read .* goes on from the one before"):
        history = training.fit(resumed, *streams(), RECIPE, work=tmp_path, verbose=0)
    assert history.epoch == [0, 1, 2]
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_of_other_trainings_are_refused_by_name(streams, tmp_path, monkeypatch):
    train, validation = streams()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "delete", 0)
        training.fit(vit(), train, validation, RECIPE, work=tmp_path, verbose=0)
    size = {"width": 8, "depth": 1, "num_heads": 2, "mlp_units": 8, "input_shape": (8, 8, 1), "num_classes": 10}
    other = {"epochs": 3, "schedule": "cosine", "loss": "cross_entropy"}
    wider = VisionTransformer("Ti/4", **{**size, "width": 4})
    for model, recipe, fit, train_, message in (
        (
            ConvNetAvg((8, 8, 1), 10, kernel_size=3, filters=4),
            RECIPE,
            training.fit,
            train,
            "model: .*ConvNetAvg",
        ),
        (VisionTransformer("Ti/4", **size), RECIPE, training.fit, train, r"dropout=0.3 \(received 0.0\)"),
        (wider, RECIPE, training.fit, train, r"width=8 \(received 4\)"),
        (vit(), training.Recipe(**other), training.fit, train, r"learning_rate=0.01 \(received 0.001\)"),
        (vit(), RECIPE, pgd, train, r"another method: 'fit' \(received .adversarial_fit by PGD\(epsilon=0.1"),
        (vit(), RECIPE, training.fit, train.take(1), r"another batches: 3 \(received 1\)"),
    ):
        with pytest.raises(ValueError, match=rf"Expected to go on with the training of .*{message}.*delete .* anew"):
            fit(model, train_, validation, recipe, work=tmp_path, verbose=0)


def test_streams_with_a_state_of_their_own_are_warned_of(digits, tmp_path, monkeypatch):
    import tensorflow as tf

    x, y = digits[0][:16], digits[1][:16]
    stream = data.from_arrays(x, y, batch_size=8).map(lambda x, y: (x * tf.random.uniform(()), y))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "on_epoch_end", 1)
        training.fit(vit(), stream, None, RECIPE, work=tmp_path, verbose=0)
    with pytest.warns(UserWarning, match="A stream draws random numbers that are TensorFlow's own"):
        training.fit(vit(), stream, None, RECIPE, work=tmp_path, verbose=0)


def test_a_model_without_variables_is_refused(streams, tmp_path):
    class Unbuilt(keras.Model):
        def call(self, x):
            return x

    unbuilt = Unbuilt(name="unbuilt")
    with pytest.raises(ValueError, match=r"unbuilt has none yet. Call it on a batch of images first"):
        progress.Progress(tmp_path, {}).restore(unbuilt)
