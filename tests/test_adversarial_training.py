"""Adversarial training: a train step that attacks its images first, in Keras's own ``fit``."""

import itertools

import keras
import numpy as np
import pytest

from keras_capsvit import MarginLoss, attacks, data, training
from keras_capsvit.models import CapsNet, ConvNetAvg

pytestmark = pytest.mark.tensorflow  # the streams are


def convnet(num_classes=10):
    return ConvNetAvg((12, 12, 1), num_classes, kernel_size=3, filters=16)


@pytest.mark.slow
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


@pytest.mark.samples(1)
@pytest.mark.parametrize("attack", [attacks.FGSM(0.0), lambda objective, x, y: x])
def test_adversarial_training_reports_means_over_the_epoch(streams, attack):
    recipe = training.Recipe(epochs=1, learning_rate=0.0, loss="cross_entropy")
    model = convnet()
    history = training.adversarial_fit(model, *streams, recipe, attack, verbose=0).history
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


@pytest.mark.samples(1)
@pytest.mark.parametrize("inside", [True, False])
def test_it_warns_and_goes_on_where_no_gradient_reaches_the_images(streams, inside):
    model = convnet()
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))  # nothing passes the rectifiers
    recipe = training.Recipe(epochs=1, loss="cross_entropy")
    fgsm = attacks.FGSM(0.1)
    with pytest.warns(UserWarning, match="Images are trained on as they are: The gradient is exactly zero for all"):
        training.adversarial_fit(model, *streams, recipe, fgsm if inside else lambda *args: fgsm(*args), verbose=0)
    assert np.any(model.get_weights()[-1])


@pytest.mark.samples(3)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("settings", [{}, {"restarts": 2}, {"keep": "last"}, {"keep": "last", "restarts": 2}])
def test_within_a_step_an_attack_does_what_a_call_does(streams, norm, settings):
    """From starts that it is given: those of NumPy and of Keras differ."""
    model = convnet()
    x, y = data.take(streams[0], 40)
    attack = attacks.PGD(0.3, steps=4, norm=norm, bounds=(-1, 2), random_start="restarts" in settings, **settings)
    seed = keras.random.SeedGenerator(0)
    images = keras.ops.convert_to_numpy(attack.within_step(model)(x, y, seed))
    change = images - x
    size = np.abs(change).max((1, 2, 3)) if norm == "linf" else np.sqrt((change**2).sum((1, 2, 3)))
    assert np.all(size <= 0.3 + 1e-5)
    if "restarts" not in settings:
        np.testing.assert_allclose(images, attack(model, x, y), atol=2e-6)
    else:  # as strong as the call, though by another start
        scores = [attacks.logits(model).loss(keras.ops.convert_to_tensor(z), y) for z in (images, attack(model, x, y))]
        inside, outside = (np.mean(keras.ops.convert_to_numpy(each)) for each in scores)
        assert inside == pytest.approx(outside, rel=0.05)
        assert inside > np.mean(keras.ops.convert_to_numpy(attacks.logits(model).loss(x, y)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm):
    draw = attacks.norms.NORMS[norm].draw((500, 2, 2, 1), 0.5, keras.random.SeedGenerator(3))
    draw = keras.ops.convert_to_numpy(draw).reshape(500, 4)
    size = np.abs(draw).max(1) if norm == "linf" else np.sqrt((draw**2).sum(1))
    assert size.max() <= 0.5 + 1e-6
    # The share of the volume within a radius r is (r / 0.5)^4.
    for radius in (0.3, 0.4, 0.45):
        assert np.mean(size < radius) == pytest.approx((radius / 0.5) ** 4, abs=0.08)
    assert np.abs(draw.mean(0)).max() < 0.05


@pytest.mark.slow
def test_images_and_labels_that_an_attack_refuses_end_the_training(streams):
    recipe = training.Recipe(epochs=1, loss="cross_entropy")
    good = streams[1]
    for change in (lambda x, y: (x * 2, y), lambda x, y: (x, keras.ops.cast(y, "float32") + 0.7)):
        with pytest.raises(ValueError, match=r"The loss of epoch 1 is nan.*outside an attack's bounds"):
            training.adversarial_fit(convnet(), streams[0].map(change), good, recipe, attacks.FGSM(0.1), verbose=0)
        with pytest.raises(ValueError, match=r"Pixels must lie within the bounds|not all of them integers"):
            training.adversarial_fit(convnet(), good, good.map(change), recipe, attacks.FGSM(0.1), verbose=0)
    labels = good.map(lambda x, y: (x, {"classes": y}))
    with pytest.raises(ValueError, match=r"class ids .* received a dict of labels"):
        training.adversarial_fit(convnet(), labels, labels, recipe, attacks.FGSM(0.1), verbose=0)


@pytest.mark.slow
def test_the_decoder_is_trained_with_it(streams):
    model = CapsNet((12, 12, 1), 10, kernel_size=5, filters=4, num_types=2, reconstruction="conditional")
    before = [variable.numpy() for variable in model.decoder.trainable_variables]
    recipe = training.Recipe(epochs=1)
    history = training.adversarial_fit(model, *streams, recipe, attacks.PGD(0.1, steps=2), verbose=0).history
    assert history["reconstruction_error"][0] > 0
    assert all(np.any(a != b.numpy()) for a, b in zip(before, model.decoder.trainable_variables, strict=True))


@pytest.mark.slow
def test_nothing_is_left_on_the_model(streams):
    model, attack = convnet(), attacks.FGSM(0.1)
    recipe = training.Recipe(epochs=1, loss="cross_entropy")
    for each in (attack, lambda *args: attack(*args)):
        training.adversarial_fit(model, *streams, recipe, each, verbose=0)
        assert not {"train_step", "test_step"} & set(vars(model))
        assert not model.run_eagerly
    x, y = data.take(streams[0], 160)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    clean = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert model.fit(x, y, batch_size=160, verbose=0).history["loss"][0] == pytest.approx(clean, rel=1e-4)


@pytest.mark.slow
def test_adversarial_training_stops_at_the_accuracy_and_shows_its_progress(streams, capsys):
    recipe = training.Recipe(epochs=50, learning_rate=0.01, loss="cross_entropy", stop_at=0.3)
    history = training.adversarial_fit(convnet(), *streams, recipe, lambda objective, x, y: x).history["val_accuracy"]
    assert 0 < len(history) < 50
    assert history[-1] >= 0.3
    assert "Epoch 1/50" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Unknown recipe 'robust'"):
        training.adversarial_fit(convnet(), *streams, "robust", lambda objective, x, y: x)
