import itertools

import keras
import numpy as np
import pytest

from keras_capsvit import MarginLoss, attacks, data, training
from keras_capsvit.models import CapsNet, ConvNetAvg

pytestmark = pytest.mark.tensorflow  # the streams are
FEW = training.Recipe(epochs=3, learning_rate=0.003, schedule="cosine")


@pytest.fixture
def streams(digits, resized):
    x, y = resized(160, 12), digits[1][:160]
    return data.from_arrays(x, y, batch_size=40), data.from_arrays(x[:40], y[:40], batch_size=40)


def convnet(num_classes=10):
    return ConvNetAvg((12, 12, 1), num_classes, kernel_size=3, filters=16)


def test_trains_and_writes_its_log(streams, small_model, tmp_path):
    model = small_model()
    history = training.fit(model, *streams, FEW, work=tmp_path, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "checkpoint").exists()
    assert isinstance(model.loss, MarginLoss)
    assert float(model.optimizer.learning_rate) < 1e-6  # the end of the cosine


@pytest.mark.slow
def test_an_interrupted_training_ends_where_it_would_have(streams, tmp_path, monkeypatch):
    recipe = training.Recipe(epochs=3, learning_rate=0.003, schedule="cosine", loss="cross_entropy")

    def train(work):
        keras.utils.set_random_seed(0)
        model = convnet()
        return training.fit(model, *streams, recipe, work=work, verbose=0), model

    def cut(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

    _, whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.callbacks.CSVLogger, "on_epoch_begin", cut)
        train(tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint").exists()
    history, resumed = train(tmp_path / "cut")
    assert history.epoch == [2]
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len((tmp_path / "cut" / "epochs.csv").read_text().splitlines()) == 4


def test_stops_at_the_accuracy(streams):
    recipe = training.Recipe(epochs=50, learning_rate=0.01, loss="cross_entropy", stop_at=0.3)
    history = training.fit(convnet(), *streams, recipe, verbose=0).history["val_accuracy"]
    assert len(history) < 50
    assert history[-1] >= 0.3
    assert all(accuracy < 0.3 for accuracy in history[:-1])


def test_optimizers_and_schedules(streams):
    recipe = training.Recipe(epochs=3, optimizer="sgd", learning_rate=0.1, schedule=(1, 2), loss="cross_entropy")
    model = convnet()
    training.fit(model, *streams, recipe, verbose=0)
    assert model.optimizer.momentum == 0.9
    schedule = model.optimizer._learning_rate
    np.testing.assert_allclose([float(schedule(n)) for n in (0, 4, 5, 8, 9)], [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-5)


def test_losses_by_name():
    lengths, logits = CapsNet((12, 12, 1), 3, kernel_size=5, filters=4, num_types=1), convnet(3)
    scores, ids = np.array([[0.2, 0.7, 0.1]], "float32"), np.array([1])
    softmax = np.exp(scores) / np.exp(scores).sum()
    for model in (lengths, logits):
        np.testing.assert_allclose(
            training.loss_for(model, "cross_entropy")(ids, scores), -np.log(softmax[0, 1]), rtol=1e-5
        )
    both = np.array([[1.0, 1.0, 0.0]], "float32")
    expected = -np.mean(np.log([0.2, 0.7, 0.9]))
    np.testing.assert_allclose(training.loss_for(lengths, "binary_cross_entropy")(both, scores), expected, rtol=1e-4)
    sigmoid = 1 / (1 + np.exp(-scores[0]))
    expected = -np.mean(np.log([sigmoid[0], sigmoid[1], 1 - sigmoid[2]]))
    np.testing.assert_allclose(training.loss_for(logits, "binary_cross_entropy")(both, scores), expected, rtol=1e-4)
    assert isinstance(training.loss_for(lengths, "margin"), MarginLoss)
    for model, name, message in (
        (logits, "margin", "one of lengths; convnet_avg returns logits"),
        (logits, "hinge", r"a loss among .*; received 'hinge'"),
        (keras.Sequential([keras.Input((3,))]), "margin", r"a tap 'lengths' or 'logits'.*taps \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            training.loss_for(model, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lion"}, "'adam' or 'sgd'; received 'lion'"),
        ({"schedule": "linear"}, "tuple of epochs; received 'linear'"),
        ({"loss": "hinge"}, "received 'hinge'"),
    ],
)
def test_what_a_recipe_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        training.Recipe(epochs=1, **arguments)


def test_an_unknown_recipe_is_refused(streams):
    with pytest.raises(ValueError, match="Unknown recipe 'long'; expected a Recipe or one of capsnet, affine"):
        training.fit(convnet(), *streams, "long")


def test_augmented_images_are_moved_and_mirrored(digits):
    x = np.zeros((200, 9, 9, 1), "float32")
    x[:, 4, 4] = 1.0
    x[:, 4, 5] = 0.5
    stream = data.from_arrays(x, np.arange(200), batch_size=64)
    moved, labels = data.take(data.augment(stream, shift=2, flip=True, seed=1), 200)
    np.testing.assert_array_equal(labels, np.arange(200))
    spots = [np.argwhere(image[..., 0] == 1.0)[0] for image in moved]
    mirrored = [image[tuple(spot - (0, 1))][0] == 0.5 for image, spot in zip(moved, spots, strict=True)]
    assert 0.3 < np.mean(mirrored) < 0.7
    rows, columns = np.array(spots).T
    assert set(rows) == {2, 3, 4, 5, 6}
    assert set(columns) == {2, 3, 4, 5, 6}
    np.testing.assert_allclose(moved.sum(axis=(1, 2, 3)), 1.5)  # nothing lost, nothing blurred
    again, _ = data.take(data.augment(stream, shift=2, flip=True, seed=1), 200)
    np.testing.assert_array_equal(moved, again)
    augmented = data.augment(stream, shift=2, seed=1)
    first, second = (data.take(augmented, 200)[0] for _ in range(2))
    assert np.any(first != second)  # anew in every epoch
    with pytest.raises(ValueError, match="at least 0; received -1"):
        data.augment(stream, shift=-1)


def test_adversarial_training_sees_what_the_attack_makes_now(streams, small_model):
    seen = []

    def attack(objective, x, y):
        assert objective == "attacked"
        seen.append(model.get_weights()[-1].copy())
        return np.full(x.shape, 0.5, "float32")

    model = small_model()
    model.compile("adam", MarginLoss())
    grey = np.full((4, 12, 12, 1), 0.5, "float32")
    before = model.predict(grey, verbose=0)
    recipe = training.Recipe(epochs=2, learning_rate=0.01)
    history = training.adversarial_fit(model, *streams, recipe, attack, objective=lambda m: "attacked", verbose=0)
    assert len(seen) == 8  # once a batch
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.pairwise(seen))
    assert np.abs(model.predict(grey, verbose=0) - before).max() > 0.01
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(history.history["loss"]) == 2


def test_adversarial_training_reports_means_over_the_epoch(streams):
    recipe = training.Recipe(epochs=1, learning_rate=0.0, loss="cross_entropy")
    model = convnet()
    history = training.adversarial_fit(model, *streams, recipe, lambda objective, x, y: x, verbose=0).history
    expected = model.evaluate(streams[0], verbose=0, return_dict=True)
    for name in ("loss", "accuracy"):
        assert history[name][0] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.slow
def test_adversarial_training_makes_robust(streams):
    # So many steps that the network learns more than chance, which is 1 in 10, from adversarial examples alone.
    recipe = training.Recipe(epochs=40, learning_rate=0.005, loss="cross_entropy")
    pgd = attacks.PGD(0.1, steps=4)
    robust = {}
    x, y = data.take(streams[0], 160)
    for name in ("plain", "adversarial"):
        keras.utils.set_random_seed(0)
        model = convnet()
        if name == "plain":
            training.fit(model, *streams, recipe, verbose=0)
        else:
            training.adversarial_fit(model, *streams, recipe, pgd, verbose=0)
        robust[name] = np.mean(model.predict(pgd(model, x, y), verbose=0).argmax(1) == y)
    assert robust["adversarial"] > robust["plain"] + 0.1


def test_adversarial_training_goes_on_where_no_gradient_reaches_a_batch(streams):
    model = convnet()
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))  # nothing passes the rectifiers
    recipe = training.Recipe(epochs=1, loss="cross_entropy")
    with pytest.warns(UserWarning, match="A batch is trained on as it is: The gradient is exactly zero for all"):
        training.adversarial_fit(model, *streams, recipe, attacks.FGSM(0.1), verbose=0)
    assert np.any(model.get_weights()[-1])


@pytest.mark.slow
def test_an_interrupted_adversarial_training_ends_where_it_would_have(streams, tmp_path):
    recipe = training.Recipe(epochs=3, learning_rate=0.003, schedule="cosine", loss="cross_entropy")
    calls = 0

    def attack(objective, x, y):
        nonlocal calls
        calls += 1
        if calls == 10:  # in the third epoch of the second training
            raise KeyboardInterrupt
        return 1 - np.asarray(x)

    def train(work, attack):
        keras.utils.set_random_seed(0)
        model = convnet()
        return training.adversarial_fit(model, *streams, recipe, attack, work=work, verbose=0), model

    _, whole = train(tmp_path / "whole", lambda objective, x, y: 1 - np.asarray(x))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", attack)
    history, resumed = train(tmp_path / "cut", attack)
    assert history.epoch == [2]
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert len((tmp_path / "cut" / "epochs.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "cut" / "checkpoint").exists()


def test_adversarial_training_stops_at_the_accuracy_and_shows_its_progress(streams, capsys):
    recipe = training.Recipe(epochs=50, learning_rate=0.01, loss="cross_entropy", stop_at=0.3)
    history = training.adversarial_fit(convnet(), *streams, recipe, lambda objective, x, y: x).history["val_accuracy"]
    assert 0 < len(history) < 50
    assert history[-1] >= 0.3
    assert "Epoch 1/50" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Unknown recipe 'robust'"):
        training.adversarial_fit(convnet(), *streams, "robust", lambda objective, x, y: x)
