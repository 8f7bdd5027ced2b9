"""The decoder is part of the model, under every Keras that setup.cfg allows: counted, trained, saved and frozen."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import CapsNet, ConvNetCR, GraCapsNet, MarginLoss


def small(**settings):
    return CapsNet(
        (8, 8, 1),
        3,
        num_types=2,
        filters=4,
        kernel_size=3,
        reconstruction="conditional",
        reconstruction_units=(8,),
        **settings,
    )


def data():
    return np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype("float32"), np.array([0, 1, 2, 0])


def test_published_number_of_parameters():
    assert CapsNet((40, 40, 1), 10, reconstruction="conditional").count_params() == 13_475_648
    assert CapsNet((40, 40, 1), 10).count_params() == 11_227_904


@pytest.mark.parametrize("reconstruction", ["conditional", "unconditional"])
@pytest.mark.parametrize("kind", [CapsNet, GraCapsNet])
def test_every_variable_of_the_decoder_is_one_of_the_model(kind, reconstruction):
    settings = {"num_types": 2, "kernel_size": 3} if kind is CapsNet else {"num_heads": 2}
    model = kind((8, 8, 1), 3, filters=4, reconstruction=reconstruction, reconstruction_units=(8,), **settings)
    for of in ("variables", "trainable_variables", "weights"):
        inside = [id(variable) for variable in getattr(model, of)]
        assert {id(variable) for variable in getattr(model.decoder, of)} <= set(inside)
        assert len(inside) == len(set(inside))
    assert ConvNetCR((28, 28, 1), 3, filters=4, reconstruction_units=(8,)).decoder.weights


@pytest.mark.slow
def test_it_is_trained_and_saved_with_its_optimizer(tmp_path):
    x, y = data()
    model = small()
    model.compile("adam", MarginLoss())
    before = [ops.convert_to_numpy(weight) for weight in model.decoder.weights]
    history = model.fit(x, y, epochs=2, verbose=0).history
    assert set(history) == {"loss", "reconstruction_error"}
    after = [ops.convert_to_numpy(weight) for weight in model.decoder.weights]
    assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for own, read in zip(model.decoder.weights, again.decoder.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(own), ops.convert_to_numpy(read))
    assert len(again.optimizer.variables) == len(model.optimizer.variables)
    np.testing.assert_allclose(again.reconstruct(x, y), model.reconstruct(x, y), atol=1e-6)
    model.save_weights(tmp_path / "model.weights.h5")
    restored = small()
    restored.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(restored.reconstruct(x, y), model.reconstruct(x, y), atol=1e-6)


def test_files_hold_every_variable_once(tmp_path):
    import h5py

    small().save_weights(tmp_path / "model.weights.h5")
    names = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, part: names.append(name) if isinstance(part, h5py.Dataset) else None)
    assert len(names) == len(small().weights)
    assert (
        sum(name.startswith("decoder/layers/") for name in names) == 4
    )  # where older versions of this package read it


def test_it_is_frozen_with_the_model_or_alone():
    model = small()
    count = len(model.trainable_variables)
    model.decoder.trainable = False
    assert len(model.trainable_variables) == count - 4
    model.decoder.trainable = True
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert len(model.trainable_variables) == count
