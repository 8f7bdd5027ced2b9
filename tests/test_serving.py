import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_capsvit import MarginLoss, explain, serving, taps

# The module needs TensorFlow; `.keras` files do not.
tensorflow_only = pytest.mark.tensorflow

RELOAD = """
import sys, numpy as np
x = np.load(sys.argv[2])
if sys.argv[3] == "keras":
    import keras, keras_capsvit
    model = keras.saving.load_model(sys.argv[1])
    np.savez(sys.argv[4], lengths=model.predict(x, verbose=0), decoded=keras.ops.convert_to_numpy(model.reconstruct(x)))
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    for layer in layers:
        twin = type(layer).from_config(layer.get_config())
        assert twin.get_config() == layer.get_config(), layer
    print(len(layers), "layers", float(keras.ops.convert_to_numpy(model.optimizer.iterations)))
else:
    from keras_capsvit import explain, serving
    model = serving.load(sys.argv[1])
    parts = np.concatenate([model(x[:3]), model(x[3:])])
    maps, decoded = explain.GraphAttention(model)(x), model.taps["reconstruction"](x)
    np.savez(sys.argv[4], lengths=model(x), parts=parts, maps=maps, decoded=decoded)
    print(sorted(model.taps))
"""


@pytest.fixture
def trained(small_model, resized, digits):
    model = small_model(reconstruction="conditional")
    model.compile("adam", MarginLoss(), metrics=["accuracy"])
    model.fit(resized(64, 12), digits[1][:64], epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("kind", ["keras", pytest.param("saved_model", marks=tensorflow_only)])
def test_reload_in_a_fresh_process(trained, resized, tmp_path, fresh_process, kind):
    x = resized(8, 12)
    np.save(tmp_path / "x.npy", x)
    path = tmp_path / "model.keras" if kind == "keras" else tmp_path / "served"
    trained.save(path) if kind == "keras" else serving.export(trained, path)
    printed = fresh_process(RELOAD, path, tmp_path / "x.npy", kind, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["lengths"], trained.predict(x, verbose=0))
        decoded = keras.ops.convert_to_numpy(trained.reconstruct(x))  # not compiled here, hence the tolerance
        np.testing.assert_allclose(found["decoded"], decoded, atol=1e-6)
        if kind == "saved_model":
            np.testing.assert_allclose(found["parts"], found["lengths"], atol=1e-6)
            np.testing.assert_allclose(found["maps"], explain.GraphAttention(trained)(x), atol=1e-6)
            assert printed.strip() == str(taps.names(trained))
        else:
            layers, _, steps = printed.split()
            assert int(layers) >= 10
            assert float(steps) == 4


@tensorflow_only
def test_served_model_has_the_contract_of_the_live_one(trained, resized, tmp_path):
    assert serving.export(trained, tmp_path) == tmp_path / "1"
    assert serving.export(trained, tmp_path) == tmp_path / "2"
    served = serving.load(tmp_path)
    assert serving.load(tmp_path / "1").input_shape == (None, 12, 12, 1)
    x = resized(7, 12)
    assert taps.names(served) == taps.names(trained)
    for name in taps.names(trained):
        np.testing.assert_allclose(taps.tap(served, name)(x), taps.tap(trained, name)(x), atol=1e-6)
    for n in (1, 7):
        np.testing.assert_allclose(served(x[:n]), trained(x[:n]), atol=1e-6)
    np.testing.assert_allclose(served.predict(x, batch_size=3), trained(x), atol=1e-6)
    explained = served.explain(x)
    np.testing.assert_array_equal(explained["class"], np.argmax(trained(x), -1))
    np.testing.assert_allclose(explained["maps"], np.mean(taps.tap(trained, "attention")(x), axis=3), atol=1e-6)


@tensorflow_only
def test_signatures_are_what_tf_serving_reads(trained, tmp_path):
    tool = pathlib.Path(sys.executable).parent / "saved_model_cli"  # comes with TensorFlow
    command = [tool, "show", "--dir", str(serving.export(trained, tmp_path)), "--all"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("serving_default", "explain", "attention"):
        assert f"signature_def['{name}']" in shown
    assert "shape: (-1, 12, 12, 1)" in shown


@tensorflow_only
def test_says_what_is_wrong(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"SavedModel in {tmp_path}.*found none"):
        serving.load(tmp_path)
    with pytest.raises(ValueError, match="functional model with one input"):
        serving.export(lambda x: x, tmp_path)
    serving.export(trained, tmp_path)
    with pytest.raises(ValueError, match=r"\(None, 12, 12, 1\); received \(2, 12, 12, 3\)"):
        serving.load(tmp_path)(np.zeros((2, 12, 12, 3)))


def test_export_names_the_backend_it_needs(trained, tmp_path):
    if keras.backend.backend() == "tensorflow":
        pytest.skip("this is about the other backends")
    with pytest.raises(ValueError, match="needs the tensorflow backend; received 'jax'"):
        serving.export(trained, tmp_path)
