"""Trainings that were interrupted end where they would have without it, bit by bit."""

import csv
import dataclasses
import functools
import pathlib
import tempfile

import keras
import numpy as np
import pytest

from keras_capsvit import GraCapsNet, attacks, data, training
from keras_capsvit.files import FileError
from keras_capsvit.models import ConvNetAvg, VisionTransformer
from keras_capsvit.training import progress
from keras_capsvit.training.streams import at_epoch

pytestmark = pytest.mark.tensorflow  # the streams are
RECIPE = training.Recipe(epochs=3, learning_rate=0.01, schedule="cosine", loss="cross_entropy")
MIXING = dataclasses.replace(
    RECIPE, optimizer="adamw", warmup=1, weight_decay=0.05, label_smoothing=0.1, mixup=0.8, cutmix=1.0
)


def vit():
    size = {"width": 8, "depth": 1, "num_heads": 2, "mlp_units": 8}
    keras.utils.set_random_seed(0)
    return VisionTransformer("Ti/4", input_shape=(8, 8, 1), num_classes=10, dropout=0.3, drop_path=0.3, **size)


def capsnet():
    """With a decoder, whose layers have other names whenever one is made."""
    keras.utils.set_random_seed(0)
    decoder = {"reconstruction": "conditional", "reconstruction_units": (8,)}
    return GraCapsNet((8, 8, 1), 10, num_heads=2, primary_dim=4, capsule_dim=4, filters=4, **decoder)


def streams(kind="fit"):
    keras.utils.set_random_seed(0)  # which the order of TensorFlow's streams depends on, too
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(24, 8, 8, 1)).astype("float32"), random.integers(10, size=24)
    train = data.augment(data.from_arrays(x, y, batch_size=8, shuffle=True, seed=1), shift=1, seed=2)
    if kind == "mixed":
        train = data.mix(train, 10, mixup=MIXING.mixup, cutmix=MIXING.cutmix, seed=3)
    return train, data.from_arrays(x[:8], y[:8], batch_size=8)


def fit(build, train, validation=None, recipe=RECIPE, **kwargs):
    model = build()
    return model, training.fit(model, train, validation, recipe, verbose=0, **kwargs)


def adversarial_fit(attack):
    def fit(build, train, validation=None, recipe=RECIPE, **kwargs):
        model = build()
        return model, training.adversarial_fit(model, train, validation, recipe, attack, verbose=0, **kwargs)

    return fit


FITS = {
    "fit": (fit, vit),
    "mixed": (functools.partial(fit, recipe=MIXING), vit),
    "pgd": (adversarial_fit(attacks.PGD(0.1, steps=2)), capsnet),
    "deepfool": (adversarial_fit(attacks.DeepFool(steps=2)), vit),
}


@functools.cache
def whole(kind):
    """What a training without an interruption comes to: its state, its History, its table."""
    method, build = FITS[kind]
    with tempfile.TemporaryDirectory() as folder:
        model, history = method(build, *streams(kind)[:1], work=folder)
        return state(model), history, (pathlib.Path(folder) / "epochs.csv").read_text()


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
    ("kind", "moment"),
    [
        *(pytest.param("fit", moment, marks=pytest.mark.slow) for moment in MOMENTS),
        pytest.param("mixed", "in the third epoch", marks=pytest.mark.slow),
        pytest.param("pgd", "in the third epoch", marks=pytest.mark.slow),
        pytest.param("deepfool", "before a checkpoint", marks=pytest.mark.long),
    ],
)
def test_it_ends_where_it_would_have(tmp_path, monkeypatch, kind, moment):
    (method, build), (train, _) = FITS[kind], streams(kind)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, *MOMENTS[moment])
        method(build, train, work=tmp_path)
    assert (tmp_path / "checkpoint").exists()

    def other_seeds():  # because the checkpoint has its own
        model = build()
        keras.utils.set_random_seed(99)
        return model

    model, history = method(other_seeds, train, work=tmp_path)  # though the stream has been read
    end, rows, table = whole(kind)
    for a, b in zip(end, state(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "epochs.csv").read_text() == table
    assert [row["epoch"] for row in csv.DictReader(table.splitlines())] == ["0", "1", "2"]
    assert history.epoch == rows.epoch == [0, 1, 2]
    assert history.history == rows.history
    assert [path.name for path in tmp_path.iterdir()] == ["epochs.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["order", "seeds"])
def test_order_and_dropout_matter_here(change):
    """Otherwise the tests above would show less than they seem to."""

    def other_seeds():
        model = vit()
        for variable in model.variables:
            if variable.name == "seed_generator_state":
                variable.assign(variable + 1)
        return model

    train, _ = streams()
    if change == "order":
        model, _ = fit(vit, data.augment(train, shift=1))
    else:
        model, _ = fit(other_seeds, train)
    assert np.any(model.get_weights()[0] != whole("fit")[0][0])


def test_trainings_by_one_stream_see_the_same_order_and_orders_change():
    """Also after it was read elsewhere, so that a script goes on right whatever of it is skipped when it runs again."""
    train, _ = streams()
    seen = []

    class Seen(keras.Model):
        def train_step(self, batch):
            seen.append(batch[1].numpy())
            return {"loss": 0.0}

    def orders(epoch, epochs):
        seen.clear()
        model = Seen()
        model.compile(run_eagerly=True)
        model.fit(at_epoch([train], [3], epoch)[0], initial_epoch=epoch, epochs=epochs, shuffle=False, verbose=0)
        return np.concatenate(seen).reshape(epochs - epoch, -1)

    every_epoch = orders(0, 3)
    assert np.any(every_epoch[0] != every_epoch[1])
    assert np.any(every_epoch[1] != every_epoch[2])
    data.take(train, 5)
    np.testing.assert_array_equal(orders(0, 3), every_epoch)
    np.testing.assert_array_equal(orders(2, 3), every_epoch[2:])


@pytest.mark.slow
def test_a_resumed_model_trains_all_epochs_of_a_later_fit(tmp_path, monkeypatch):
    model, (train, validation) = vit(), streams()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, keras.callbacks.History, "on_train_batch_end", 7)
        fit(lambda: model, train, work=tmp_path)
    assert fit(lambda: model, train, work=tmp_path)[1].epoch == [0, 1, 2]
    assert model.fit(validation, epochs=2, shuffle=False, verbose=0).epoch == [0, 1]


@pytest.mark.slow
def test_a_training_that_has_stopped_early_trains_no_more(tmp_path, monkeypatch):
    recipe = training.Recipe(epochs=50, learning_rate=0.01, loss="cross_entropy", stop_at=0.1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "delete", 0)
        fit(vit, *streams(), recipe, work=tmp_path)
    table = (tmp_path / "epochs.csv").read_text()
    _, history = fit(vit, *streams(), recipe, work=tmp_path)
    assert len(history.epoch) == len(table.splitlines()) - 1 < 50
    assert history.history["val_accuracy"][-1] >= 0.1
    assert (tmp_path / "epochs.csv").read_text() == table


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_an_epoch_and_two_an_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "delete", 0)
        fit(vit, *streams()[:1], work=tmp_path)
    newest, before = (tmp_path / "checkpoint" / f"epoch-00000{k}.checkpoint" for k in (3, 2))
    newest.write_bytes(newest.read_bytes()[:-9])
    content = before.read_bytes()
    before.write_bytes(b"")
    with pytest.raises(FileError, match=r"No checkpoint in .* is whole.*000003.*000002"):
        fit(vit, *streams()[:1], work=tmp_path)
    before.write_bytes(content)
    with pytest.warns(UserWarning, match="000003.checkpoint cannot be read .* goes on from the one before"):
        model, history = fit(vit, *streams()[:1], work=tmp_path)
    assert history.epoch == [0, 1, 2]
    for a, b in zip(whole("fit")[0], state(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_checkpoints_of_other_trainings_are_refused_by_name(tmp_path, monkeypatch):
    train, _ = streams()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, keras.callbacks.History, "on_train_batch_end", 0)
        fit(vit, train, work=tmp_path)
    size = {"width": 8, "depth": 1, "num_heads": 2, "mlp_units": 8, "input_shape": (8, 8, 1), "num_classes": 10}
    slower = training.Recipe(epochs=3, schedule="cosine", loss="cross_entropy")
    for build, recipe, method, stream, message in (
        (lambda: ConvNetAvg((8, 8, 1), 10, kernel_size=3), RECIPE, fit, train, "another model: .*ConvNetAvg"),
        (lambda: VisionTransformer("Ti/4", **size), RECIPE, fit, train, r"dropout=0.3 \(received 0.0\)"),
        (lambda: VisionTransformer("Ti/4", **{**size, "width": 4}), RECIPE, fit, train, r"width=8 \(received 4\)"),
        (vit, slower, fit, train, r"learning_rate=0.01 \(received 0.001\)"),
        (vit, RECIPE, FITS["pgd"][0], train, r"another method: 'fit' \(received .adversarial_fit by PGD\(epsilon=0.1"),
        (vit, RECIPE, fit, train.take(1), r"another batches: 3 \(received 1\)"),
    ):
        with pytest.raises(ValueError, match=rf"Expected to go on with the training of .*{message}.*delete .* anew"):
            method(build, stream, recipe=recipe, work=tmp_path)


@pytest.mark.slow
def test_streams_with_a_state_of_their_own_are_warned_of(tmp_path, monkeypatch):
    import tensorflow as tf

    stream = streams()[0].map(lambda x, y: (x * tf.random.uniform(()), y))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, progress.Progress, "on_epoch_end", 1)
        fit(vit, stream, work=tmp_path)
    with pytest.warns(UserWarning, match="A stream draws random numbers that are TensorFlow's own"):
        fit(vit, stream, work=tmp_path)


def test_a_model_without_variables_is_refused(tmp_path):
    class Unbuilt(keras.Model):
        def call(self, x):
            return x

    unbuilt = Unbuilt(name="unbuilt")
    with pytest.raises(ValueError, match=r"unbuilt has none yet. Call it on a batch of images first"):
        progress.Progress(tmp_path, {}).restore(unbuilt)
