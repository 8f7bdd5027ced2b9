"""The command of the audit page: models and images of all kinds, and memory that does not grow with the images."""

import json
import os

import keras
import numpy as np
import pytest
from PIL import Image
from test_examples import run

pytest.importorskip("jinja2")
pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]
FEW = ("--quick", "--only", "card", "accuracy")


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes with four coloured pictures each."""
    rng = np.random.default_rng(0)
    for name in ("0", "1"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype="uint8")).save(
                tmp_path / "pictures" / name / f"{number}.png"
            )
    return tmp_path / "pictures"


def small(classes=2, scaled=False):
    layers = [keras.layers.Rescaling(1 / 255)] if scaled else []
    layers += [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(classes)]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers], name="small")


def audited(*args, out):
    printed = run("audit.py", *args, "--out", out)
    results = json.loads((out / "audit.json").read_text())
    figures = {
        f"{step['name']}.{figure['name']}": figure["value"]
        for part in results["parts"]
        for step in part["steps"]
        for figure in step["figures"]
    }
    assert (out / "audit.html").read_text().startswith("<!doctype html>")
    return printed, results, figures


def test_a_keras_file_and_a_folder(pictures, tmp_path):
    small(scaled=True).save(tmp_path / "small.keras")
    (tmp_path / "names.json").write_text(json.dumps(["<i>one</i>", "two"]))
    command = (tmp_path / "small.keras", "--images", pictures, "--labels", tmp_path / "names.json", *FEW)
    printed, results, figures = audited(*command, out=tmp_path / "out")
    assert "[1/7] card.model" in printed
    assert figures["card.model.range"] == "0 to 255"
    assert figures["accuracy.accuracy.images"] == 8
    assert results["settings"]["class_names"] == ["<i>one</i>", "two"]
    assert results["command"].startswith("python examples/audit.py ")
    assert "<i>one" not in (tmp_path / "out" / "audit.html").read_text()
    assert (tmp_path / "out" / "tables" / "accuracy.accuracy.classes.csv").exists()


def test_a_foreign_saved_model_and_arrays(tmp_path):
    rng = np.random.default_rng(0)
    small(3).export(tmp_path / "exported", verbose=False)
    np.savez(tmp_path / "data.npz", x_test=rng.integers(0, 256, (6, 8, 8, 3), dtype="uint8"), y_test=np.arange(6) % 3)
    command = (tmp_path / "exported", "--images", tmp_path / "data.npz", "--range", 0, 1, *FEW)
    _, _, figures = audited(*command, out=tmp_path / "out")
    assert (figures["card.model.classes"], figures["accuracy.accuracy.images"]) == (3, 6)
    assert figures["card.model.parameters"] == small(3).count_params()


def test_a_keras_application_has_its_preprocessing_in_front(pictures, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(os.path.dirname(__file__), "..", "examples"))
    import audit as example

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Identity()])
    whole = example.preprocessed(model, _caffe)
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(whole(x)), _caffe(x), rtol=1e-4, atol=1e-3)
    with pytest.raises(SystemExit, match="scale and mix channels"):
        example.preprocessed(model, np.square)


def _caffe(x):
    return keras.applications.vgg16.preprocess_input(255 * np.asarray(x))


def test_what_cannot_be_audited_says_why(pictures, tmp_path):
    small().save(tmp_path / "small.keras")
    (pictures / "0" / "broken.png").write_text("no picture")
    with pytest.raises(AssertionError, match=r"broken\.png cannot be read as a picture"):
        run("audit.py", tmp_path / "small.keras", "--range", 0, 1, "--images", pictures, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="Expected --images to be a folder"):
        run("audit.py", tmp_path / "small.keras", "--range", 0, 1, "--images", "nothing", "--out", tmp_path / "out")


def test_ten_thousand_pictures_take_no_more_memory_than_few(pictures, fresh_process, tmp_path):
    picture = next((pictures / "0").iterdir())
    for number in range(10_000):
        os.link(picture, pictures / "1" / f"copy{number}.png")
    code = """
import resource, sys
import keras
from keras_capsvit import data, report
side = 96
layers = [keras.layers.AveragePooling2D(32), keras.layers.Flatten(), keras.layers.Dense(2)]
model = keras.Sequential([keras.Input((side, side, 3)), *layers])
pictures = data.Pictures(sys.argv[1], (side, side, 3))
parts = ["card", "accuracy"]
few = report.audit(model, (pictures.read(range(200))[0], pictures.labels[:200]), effort="quick", only=parts)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
whole = report.audit(model, pictures, effort="standard", only=parts)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(whole["accuracy.accuracy.images"], grown)
"""
    images, grown = map(int, fresh_process(code, pictures).split()[-2:])
    assert images == 10_000
    assert 1024 * grown < 200e6  # all images together have 1.1 GB
