"""What examples/serve does with the model of saved_models, from the C API to the client, and that model itself."""

import io
import json
import pathlib
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from keras_capsvit import attacks, data, evaluate, explain

ROOT = pathlib.Path(__file__).parent.parent
SERVE = ROOT / "examples" / "serve"
MODEL = ROOT / "saved_models" / "digits_gracapsnet"
pytestmark = pytest.mark.tensorflow

WITHOUT_TENSORFLOW = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
import c_api
model = c_api.SavedModel(c_api.newest(sys.argv[2]))
x = np.load(sys.argv[3])
target = np.full(len(x), 3)
inputs = {"images": x, "target": target, "encoded": np.array([open(sys.argv[4], "rb").read()] * 2, "object")}
answers = {}
kinds = sys.argv[6].split()  # an endpoint of each
for name in kinds:
    signature = model.signatures[name]
    outputs = model.run(name, {key: inputs[key] for key in signature["inputs"]})
    answers |= {f"{name}/{key}": array for key, array in outputs.items()}
np.savez(sys.argv[5], **answers)
print(sorted({"tensorflow", "keras", "keras_capsvit"} & {name.split(".")[0] for name in sys.modules}))
broken = x.copy()
broken[1, 2, 3] = np.inf
shapes = {
    "rank 3": x[0], "rank 5": x[None], "scalar": x[0, 0, 0, 0], "channels": x.repeat(3, -1), "width": x[:, :, 1:],
    "empty": x[:0], "NaN": np.full_like(x, np.nan), "infinite": broken, "float64": x.astype("float64"),
    "uint8": x.astype("uint8"),
}
for name in kinds:
    signature = model.signatures[name]
    for kind, images in shapes.items():
        if "images" in signature["inputs"]:
            try:
                model.run(name, {key: {**inputs, "images": images}[key] for key in signature["inputs"]})
                print(f"{name}, {kind}: answered")
            except (c_api.TensorFlowError, ValueError) as error:
                print(f"{name}, {kind}: {str(error)!r}")
"""


def png(pixels):
    """PNG of pixels ``(H, W, C)`` in [0, 1]."""
    encoded = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype("uint8").squeeze()).save(encoded, "png")
    return encoded.getvalue()


@pytest.mark.slow
def test_c_api_answers_and_refuses_without_python_tensorflow(enlarged_digits, served_digits, tmp_path, fresh_process):
    x = enlarged_digits
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "one.png").write_bytes(png(x[0]))
    files = (tmp_path / "x.npy", tmp_path / "one.png", tmp_path / "out.npz")
    expected = {"serving_default": {"images": x}, "serve_bytes": {"encoded": [png(x[0])] * 2}}
    expected |= {"capsules": {"images": x}, "explain": {"images": x}, "clrp": {"images": x, "target": np.full(5, 3)}}
    imported, *refused = fresh_process(WITHOUT_TENSORFLOW, SERVE, MODEL, *files, " ".join(expected)).splitlines()
    assert imported == "[]"
    assert len(refused) == 4 * 10
    assert [line for line in refused if "images" not in line.split(": ", 1)[1]] == []
    with np.load(tmp_path / "out.npz") as arrays:
        assert {name.split("/")[0] for name in arrays} == set(expected)
        for endpoint, inputs in expected.items():
            for name, value in served_digits.run(endpoint, **inputs).items():
                np.testing.assert_allclose(arrays[f"{endpoint}/{name}"], value, atol=1e-5)
                assert arrays[f"{endpoint}/{name}"].dtype == value.numpy().dtype


def test_c_api_program_lists_and_answers(enlarged_digits, served_digits, serve_main, tmp_path):
    x = enlarged_digits
    lines = dict(line.split(": ") for line in serve_main("c_api", MODEL))
    assert sorted(lines) == served_digits.endpoints
    assert lines["lengths"] == "images DT_FLOAT (-1, 28, 28, 1) -> outputs DT_FLOAT (-1, 10)"
    (tmp_path / "one.png").write_bytes(png(x[0]))
    (line,) = serve_main("c_api", MODEL, "--signature", "serve_bytes", f"encoded={tmp_path / 'one.png'}")
    arrays = json.loads(line)
    np.testing.assert_allclose(arrays["outputs"], served_digits(x[:1]), atol=1e-2)  # rounded to 8 bits
    np.save(tmp_path / "x.npy", x)
    serve_main("c_api", MODEL, "--signature", "explain", f"images={tmp_path / 'x.npy'}", "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_allclose(arrays["maps"], served_digits.explain(x)["maps"], atol=1e-5)


def test_c_api_passes_all_dtypes(serve_example, tmp_path):
    import tensorflow as tf

    c_api = serve_example("c_api")
    arguments = {name: np.arange(6).reshape(2, 3).astype(name) for name in c_api.CODES if name != "object"}
    texts = [b"", b"short", b"\0with zeros\0", b"longer than what is kept in place" * 9]
    arguments["object"] = np.array(texts, "object").reshape(2, 2)
    echo = tf.Module()
    specs = {name: tf.TensorSpec(None, "string" if name == "object" else name, name) for name in arguments}
    echo.call = tf.function(lambda **inputs: {name: tf.identity(value) for name, value in inputs.items()})
    tf.saved_model.save(echo, str(tmp_path / "1"), echo.call.get_concrete_function(**specs))
    model = c_api.SavedModel(c_api.newest(tmp_path))
    signature = model.signatures["serving_default"]
    assert all(info["shape"] is None for info in signature["inputs"].values())
    strided = {name: array[::-1, ::2] for name, array in arguments.items()}
    for arrays in (arguments, strided, {name: array[:0] for name, array in arguments.items()}):
        result = model.run("serving_default", arrays)
        for name, array in arrays.items():
            assert result[name].dtype == array.dtype
            np.testing.assert_array_equal(result[name], array)


def test_c_api_says_what_is_wrong(serve_example, serve_main, enlarged_digits, tmp_path):
    x = enlarged_digits
    c_api = serve_example("c_api")
    with pytest.raises(FileNotFoundError, match=r"version folders of one, in .*; found none"):
        c_api.newest(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(c_api.TensorFlowError, match=r"saved_model\.pb"):
        c_api.SavedModel(tmp_path)
    model = c_api.SavedModel(MODEL / "1")
    with pytest.raises(ValueError, match=r"among attention, capsules, .*; received 'explains'"):
        model.run("explains", {"images": x})
    with pytest.raises(ValueError, match="Expected the inputs images; received x"):
        model.run("explain", {"x": x})
    with pytest.raises(ValueError, match="images of dtype float32; received float64"):
        model.run("explain", {"images": x.astype("float64")})
    with pytest.raises(ValueError, match="encoded of bytes; received other objects"):
        model.run("serve_bytes", {"encoded": np.array(["text"], "object")})
    with pytest.raises(SystemExit, match=r"Expected a SavedModel, or version folders of one, in .*missing"):
        serve_main("c_api", tmp_path / "missing")
    np.save(tmp_path / "x.npy", x[:0])
    with pytest.raises(SystemExit, match="images: expected at least one image"):
        serve_main("c_api", MODEL, f"images={tmp_path / 'x.npy'}")
    with pytest.raises(SystemExit):
        serve_main("c_api", MODEL, "x.npy")


def test_the_saved_model_is_what_its_readme_says(served_digits):
    x, y = data.take(data.load("digits", split="test"), 360)
    right = int((served_digits.predict(x).argmax(-1) == y).sum())
    assert served_digits.card["accuracy"] == {"value": right / 360, "images": 360, "of": "digits, test"}
    text = (ROOT / "saved_models" / "README.md").read_text()
    assert f"{right / 360:.2%}".replace("%", " %") in text
    assert f"({right} right)" in text
    assert right >= 0.97 * 360
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert f"{size / 1e6:.1f} MB" in text
    assert size < 2e6
    ignored = subprocess.run(["git", "check-ignore", MODEL / "1" / "saved_model.pb"], cwd=ROOT, check=False)
    assert ignored.returncode


@pytest.mark.slow
def test_the_saved_model_is_explained_and_attacked(served_digits):
    x, y = data.take(data.load("digits", split="test"), 16)
    maps = explain.GraphAttention(served_digits)(x)
    np.testing.assert_allclose(
        explain.GraphAttention(served_digits)(x, served_digits.predict(x).argmax(-1)), maps, atol=1e-6
    )
    assert maps.max(axis=(1, 2)).min() > 4 / 28**2  # it looks somewhere
    ink = (maps * (x[..., 0] > 0.5)).sum() / maps.sum()
    assert ink > (x > 0.5).mean()
    saliency = served_digits.explain(x, 3, endpoint="saliency")["maps"]
    np.testing.assert_allclose(explain.Saliency(served_digits)(x, 3), saliency, atol=1e-5)
    pgd = attacks.PGD(0.15, step_size=0.03, steps=10)
    result = evaluate.robustness(served_digits, pgd, (x, y), objective=attacks.capsules)
    assert result.accuracy > 0.9
    assert result.robust_accuracy < result.accuracy - 0.3


@pytest.mark.slow
def test_python_in_the_readme_of_saved_models_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "saved_models" / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert 0 <= float(capsys.readouterr().out) < 0.9


@pytest.mark.slow
def test_export_writes_endpoints_card_and_warm_up(small_model, serve_main, tmp_path):
    pytest.importorskip("tensorflow_serving")
    from keras_capsvit import serving

    small_model().save(tmp_path / "model.keras")
    options = ("--dataset", "digits", "--explainers", "saliency", "--taps", "capsules", "--trained", "not at all")
    printed = serve_main("export", tmp_path / "model.keras", tmp_path / "out", *options)
    assert printed[0].startswith(f"{tmp_path / 'out' / '1'}: 0.")
    assert printed[0].endswith("endpoints capsules, explain, saliency, serve_bytes, serving_default")
    assert f"-v {tmp_path / 'out'}:/models/out" in printed[1]
    card = serving.load(tmp_path / "out").card
    assert card["trained"] == "not at all"
    assert card["class_names"] == list("0123456789")
    assert 0 <= card["accuracy"]["value"] < 0.5
    assert (tmp_path / "out" / "1" / "assets.extra" / "tf_serving_warmup_requests").is_file()


@pytest.mark.long
def test_digits_model_is_made_by_its_script(serve_main, tmp_path):
    pytest.importorskip("tensorflow_serving")
    printed = "\n".join(serve_main("make_digits_model", "--epochs", 1, "--out", tmp_path))
    new, kept = (json.loads((path / "1" / "model_card.json").read_text()) for path in (tmp_path, MODEL))
    assert new["endpoints"] == kept["endpoints"]
    assert kept["trained"] == new["trained"].replace("; 1 epochs", "; 15 epochs")
    assert f"-e MODEL_NAME={tmp_path.name} tensorflow/serving" in printed


@pytest.mark.slow
def test_serve_benchmark_compares_with_keras(serve_main, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "benchmarks")
    options = ("--models", "affcapsnet", "--timed", "affcapsnet", "--batch-sizes", 2, "--rounds", 2)
    printed = "\n".join(serve_main("serve", *options, "--out", tmp_path))
    names = ["tf.function", "model(x)", "predict_on_batch", "ServedModel", "signature"]
    rows = json.loads((tmp_path / "latency.json").read_text())["result"]
    assert [row["call"] for row in rows] == names
    assert all(row["least"] <= row["ms"] <= row["most"] for row in rows)
    (row,) = json.loads((tmp_path / "size.json").read_text())["result"]
    assert row["endpoints"] == 9  # scores, those of bytes, the explanation, and six taps
    assert all(name in printed for name in (*names, "graph MB"))


@pytest.mark.long
def test_served_benchmark_compares_with_the_live_model(serve_main, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "benchmarks")
    printed = serve_main("served", "--models", "resnet20", "--batch-size", 1, "--rounds", 1)
    kinds = [line.split(",")[1].strip() for line in printed if line.startswith("resnet20")]
    assert kinds == ["PGD", "LRP", "CLRP", "Saliency"]
    assert sum(line.startswith("  served ") for line in printed) == 4
