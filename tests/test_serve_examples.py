"""What examples/serve does with the model of saved_models, from the C API to the client, and that model itself."""

import base64
import contextlib
import http.server
import importlib
import io
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from keras_capsvit import attacks, data, evaluate, explain, taps

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
found = {}
for name, signature in model.signatures.items():
    outputs = model.run(name, {key: inputs[key] for key in signature["inputs"]})
    found |= {f"{name}/{key}": array for key, array in outputs.items()}
np.savez(sys.argv[5], **found)
print(sorted({"tensorflow", "keras", "keras_capsvit"} & {name.split(".")[0] for name in sys.modules}))
broken = x.copy()
broken[1, 2, 3] = np.inf
shapes = {
    "rank 3": x[0], "rank 5": x[None], "scalar": x[0, 0, 0, 0], "channels": x.repeat(3, -1), "width": x[:, :, 1:],
    "empty": x[:0], "NaN": np.full_like(x, np.nan), "infinite": broken, "float64": x.astype("float64"),
    "uint8": x.astype("uint8"),
}
for name, signature in model.signatures.items():
    for kind, images in shapes.items():
        if "images" in signature["inputs"]:
            try:
                model.run(name, {key: {**inputs, "images": images}[key] for key in signature["inputs"]})
                print(f"{name}, {kind}: answered")
            except (c_api.TensorFlowError, ValueError) as error:
                print(f"{name}, {kind}: {str(error)!r}")
"""


@pytest.fixture(scope="module")
def x():
    """Test images ``(5, 28, 28, 1)`` of the model."""
    return data.take(data.load("digits", split="test"), 5)[0]


@pytest.fixture(scope="module")
def served():
    from keras_capsvit import serving

    return serving.load(MODEL)


@pytest.fixture
def module(monkeypatch):
    """Import of a file in examples/serve."""
    monkeypatch.syspath_prepend(SERVE)
    return importlib.import_module


@pytest.fixture
def main(module, monkeypatch, capsys):
    """Run an example in this process; returns the lines that it printed."""

    def run(name, *args):
        example = module(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        example.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="module")
def address():
    """Of the stand-in for TF Serving, which runs as long as the tests of this file."""
    command = [sys.executable, str(SERVE / "c_api.py"), str(MODEL), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            line = server.stdout.readline().strip()
            assert line.endswith("/v1/models/digits_gracapsnet")
            yield line.removesuffix("/v1/models/digits_gracapsnet")
        finally:
            server.kill()


def png(pixels):
    """PNG of pixels ``(H, W, C)`` in [0, 1]."""
    encoded = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype("uint8").squeeze()).save(encoded, "png")
    return encoded.getvalue()


@pytest.mark.slow
def test_c_api_answers_and_refuses_without_python_tensorflow(x, served, tmp_path, fresh_process):
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "one.png").write_bytes(png(x[0]))
    files = (tmp_path / "x.npy", tmp_path / "one.png", tmp_path / "out.npz")
    imported, *refused = fresh_process(WITHOUT_TENSORFLOW, SERVE, MODEL, *files).splitlines()
    assert imported == "[]"
    assert len(refused) == 9 * 10
    assert [line for line in refused if "images" not in line.split(": ", 1)[1]] == []
    expected = {"serving_default": {"images": x}, "serve_bytes": {"encoded": [png(x[0])] * 2}}
    expected |= {name: {"images": x} for name in (*taps.names(served), "explain")}
    expected |= {name: {"images": x, "target": np.full(5, 3)} for name in ("saliency", "lrp", "clrp")}
    with np.load(tmp_path / "out.npz") as found:
        assert {name.split("/")[0] for name in found} == set(expected) == set(served.endpoints)
        for endpoint, inputs in expected.items():
            for name, value in served.run(endpoint, **inputs).items():
                np.testing.assert_allclose(found[f"{endpoint}/{name}"], value, atol=1e-5)
                assert found[f"{endpoint}/{name}"].dtype == value.numpy().dtype


@pytest.mark.slow
def test_c_api_program_lists_and_answers(x, served, tmp_path):
    def run(*args):
        command = [sys.executable, str(SERVE / "c_api.py"), str(MODEL), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    lines = dict(line.split(": ") for line in run().splitlines())
    assert sorted(lines) == served.endpoints
    assert lines["lengths"] == "images DT_FLOAT (-1, 28, 28, 1) -> outputs DT_FLOAT (-1, 10)"
    (tmp_path / "one.png").write_bytes(png(x[0]))
    found = json.loads(run("--signature", "serve_bytes", f"encoded={tmp_path / 'one.png'}"))
    np.testing.assert_allclose(found["outputs"], served(x[:1]), atol=1e-2)  # rounded to 8 bits
    np.save(tmp_path / "x.npy", x)
    run("--signature", "explain", f"images={tmp_path / 'x.npy'}", "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["maps"], served.explain(x)["maps"], atol=1e-5)


def test_c_api_passes_all_dtypes(module, tmp_path):
    import tensorflow as tf

    c_api = module("c_api")
    given = {name: np.arange(6).reshape(2, 3).astype(name) for name in c_api.CODES if name != "object"}
    texts = [b"", b"short", b"\0with zeros\0", b"longer than what is kept in place" * 9]
    given["object"] = np.array(texts, "object").reshape(2, 2)
    echo = tf.Module()
    specs = {name: tf.TensorSpec(None, "string" if name == "object" else name, name) for name in given}
    echo.call = tf.function(lambda **inputs: {name: tf.identity(value) for name, value in inputs.items()})
    tf.saved_model.save(echo, str(tmp_path / "1"), echo.call.get_concrete_function(**specs))
    model = c_api.SavedModel(c_api.newest(tmp_path))
    signature = model.signatures["serving_default"]
    assert all(info["shape"] is None for info in signature["inputs"].values())
    strided = {name: array[::-1, ::2] for name, array in given.items()}
    for arrays in (given, strided, {name: array[:0] for name, array in given.items()}):
        found = model.run("serving_default", arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_c_api_says_what_is_wrong(module, main, x, tmp_path):
    c_api = module("c_api")
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
        main("c_api", tmp_path / "missing")
    np.save(tmp_path / "x.npy", x[:0])
    with pytest.raises(SystemExit, match="images: expected at least one image"):
        main("c_api", MODEL, f"images={tmp_path / 'x.npy'}")
    with pytest.raises(SystemExit):
        main("c_api", MODEL, "x.npy")


def ask(url, body=None):
    """Status and JSON of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rest_has_rows_and_columns_of_tf_serving(address, x, served):
    model = f"{address}/v1/models/digits_gracapsnet"
    images, scores = x.tolist(), served(x)
    assert ask(model)[1]["model_version_status"][0] | {"status": None} == {
        "version": "1",
        "state": "AVAILABLE",
        "status": None,
    }
    for predict in (f"{model}:predict", f"{model}/versions/1:predict"):
        for instances in (images, [{"images": one} for one in images]):
            found = ask(predict, {"instances": instances})[1]["predictions"]
            np.testing.assert_allclose([one["outputs"] for one in found], scores, atol=1e-5)
            assert [one["class"] for one in found] == np.argmax(scores, -1).tolist()
    for inputs in (images, {"images": images}):
        found = ask(f"{model}:predict", {"signature_name": "capsules", "inputs": inputs})[1]["outputs"]
        np.testing.assert_allclose(found, served.taps["capsules"](x), atol=1e-5)
    found = ask(f"{model}:predict", {"signature_name": "capsules", "instances": images})[1]["predictions"]
    np.testing.assert_allclose(found, served.taps["capsules"](x), atol=1e-5)
    rows = [{"images": one, "target": 3} for one in images]
    found = ask(f"{model}:predict", {"signature_name": "clrp", "instances": rows})[1]["predictions"]
    maps = served.explain(x, 3, endpoint="clrp")["maps"]
    np.testing.assert_allclose([one["maps"] for one in found], maps, atol=1e-5)
    encoded = {"b64": base64.b64encode(png(x[0])).decode()}
    for row in (encoded, {"encoded": encoded}):
        found = ask(f"{model}:predict", {"signature_name": "serve_bytes", "instances": [row]})[1]["predictions"]
        np.testing.assert_allclose(found[0]["outputs"], scores[0], atol=1e-2)


def malformed(x):
    """Requests by what the error says."""
    image = x[0].tolist()
    wide = np.zeros((1, 28, 29, 1)).tolist()
    coloured = np.zeros((1, 28, 28, 3)).tolist()
    yield r"images.*\[28,28,1\] is not compatible", {"inputs": image}
    yield r"images.*\[1,1,28,28,1\] is not compatible", {"inputs": [[image]]}
    yield r"images.*\[\] is not compatible", {"inputs": 3}
    yield r"images.*\[1,28,29,1\] is not compatible", {"inputs": wide}
    yield r"images.*\[1,28,28,3\] is not compatible", {"inputs": coloured}
    yield r"images.*\[0\] is not compatible", {"inputs": []}
    yield "images: expected finite pixels", {"inputs": np.full((2, 28, 28, 1), np.nan).tolist()}
    yield "images: expected finite pixels", {"inputs": np.full((2, 28, 28, 1), np.inf).tolist()}
    yield "float32 values in lists of equal lengths for images", {"inputs": "text"}
    yield "float32 values in lists of equal lengths for images", {"inputs": [image, [1, 2]]}
    yield "float32 values in lists of equal lengths for images", {"inputs": np.full((1, 28, 28, 1), None).tolist()}
    yield "float32 values in lists of equal lengths for images", {"inputs": [[[[True]]]]}
    yield "inputs images; received pictures", {"inputs": {"pictures": [image]}}
    yield "'instances', a list with one entry", {"instances": []}
    yield "either 'instances' or 'inputs'", {}
    yield "either 'instances' or 'inputs'", [image]
    yield "Expecting value", b"no json"
    yield "recursion", b"[" * 100_000
    yield "received 'explains'", {"inputs": [image], "signature_name": "explains"}
    targeted = {"signature_name": "lrp"}
    yield "target: expected class ids", {**targeted, "inputs": {"images": [image], "target": [10]}}
    yield "target: expected one class id per image", {**targeted, "inputs": {"images": [image], "target": [1, 2]}}
    yield (
        "int64 values in lists of equal lengths for target",
        {**targeted, "instances": [{"images": image, "target": 1.5}]},
    )
    yield "inputs (target, images|images, target) by name", {**targeted, "inputs": [image]}
    encoded = {"signature_name": "serve_bytes"}
    yield "encoded: expected bytes of JPEG or PNG", {**encoded, "instances": [{"b64": ""}]}
    yield "encoded: expected bytes of JPEG or PNG", {**encoded, "instances": ["text"]}
    yield "encoded", {**encoded, "instances": [{"b64": base64.b64encode(png(x[0])[:60]).decode()}]}
    yield "encoded: expected at least one image", {**encoded, "inputs": []}
    yield "(?i)base64", {**encoded, "instances": [{"b64": "?"}]}
    yield 'Expected a string or {"b64": string}', {**encoded, "instances": [3]}


def test_malformed_requests_are_refused_and_named(address, x):
    predict = f"{address}/v1/models/digits_gracapsnet:predict"
    for expected, body in malformed(x):
        code, answer = ask(predict, body)
        assert code == 400, body
        with pytest.raises(AssertionError, match=expected):
            raise AssertionError(answer["error"])
    for path in ("digits:predict", "digits_gracapsnet/versions/2:predict", "digits_gracapsnet:classify", ""):
        assert ask(f"{address}/v1/models/{path}", {"inputs": 3})[0] == 404
    assert ask(predict, {"instances": x.tolist()})[0] == 200  # it is still there


def test_client_asks_over_rest(address, x, served, module, main, tmp_path):
    client = module("client")

    def run(*args):
        return main("client", "digits_gracapsnet", "--rest", address, *args)

    rest = client.Rest(address, "digits_gracapsnet")
    assert rest.inputs("lrp") == {"images": ("float32", (-1, 28, 28, 1)), "target": ("int64", (-1,))}
    assert rest.inputs("serve_bytes") == {"encoded": ("string", (-1,))}
    np.testing.assert_allclose(rest.predict("lengths", {"images": x})["outputs"], served(x), atol=1e-5)
    with pytest.raises(client.ServingError, match=r"HTTP 400: .*images: expected finite pixels"):
        rest.predict("lengths", {"images": x * np.nan})
    with pytest.raises(client.ServingError, match=r"among attention, .*; received 'length'"):
        rest.inputs("length")

    (tmp_path / "one.png").write_bytes(png(np.repeat(x[0].repeat(2, 0).repeat(2, 1), 3, -1)))  # larger, in colour
    expected = int(served(x[:1]).numpy().argmax())
    for signature in ("serving_default", "serve_bytes", "explain"):
        lines = run(tmp_path / "one.png", "--digits", 0, 1, "--signature", signature)
        assert lines[0].startswith(f"{tmp_path / 'one.png'}: class {expected}, score 0.")
        assert [line.split(", score")[0] for line in lines[1:]] == [f"digit {n}, a {n}: class {n}" for n in (0, 1)]
    run("--digits", 0, "--signature", "clrp", "--target", 3, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        assert found["maps"].shape == (1, 28, 28)
    assert run("--digits", 0, "--signature", "lengths")[0].startswith("digit 0, a 0: [")
    with pytest.raises(SystemExit, match="serving_default takes no --target; its inputs are images"):
        run("--digits", 0, "--target", 3)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SystemExit, match=r"text\.png is no image that Pillow can read"):
        run(tmp_path / "text.png")
    with pytest.raises(SystemExit, match=r"HTTP 400: .*encoded: expected bytes of JPEG or PNG"):
        run(tmp_path / "text.png", "--signature", "serve_bytes")


def test_client_sends_what_the_endpoint_takes(module):
    client = module("client")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 1), "uint8")
    args = types.SimpleNamespace(input_range=None, target=-1, signature="serving_default")
    for kind, expected in (("uint8", pixels), ("float32", pixels / np.float32(255))):
        inputs = client.request({"images": (kind, (-1, 4, 5, 1))}, [("one", png(pixels / 255))], args)
        assert inputs["images"].dtype == kind
        np.testing.assert_allclose(inputs["images"][0], expected, rtol=1e-6)


@contextlib.contextmanager
def answering(codes, seconds=0):
    """URL of a server that answers with these HTTP codes in turn, the last one for ever, each after seconds."""
    left = list(codes)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            time.sleep(seconds)
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(b'{"outputs": [1]}')

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}", left
        server.shutdown()


def test_client_retries_what_is_unavailable_only(module, monkeypatch):
    client = module("client")
    waits = []
    monkeypatch.setattr(client, "time", types.SimpleNamespace(sleep=waits.append))

    def predict(url, retries=3, timeout=10.0):
        waits.clear()
        rest = client.Rest(url, "any", timeout=timeout)
        return client.retrying(lambda: rest.predict("any", {"images": np.zeros(1)}), retries=retries)

    with answering([503, 429, 504, 200]) as (url, _):
        assert predict(url) == {"outputs": [1]}
        assert [round(wait / 0.2 / 2**k) for k, wait in enumerate(waits)] == [1, 1, 1]
    with answering([503]) as (url, _), pytest.raises(client.UnavailableError, match="HTTP 503"):
        predict(url)
    assert len(waits) == 3
    for code in (400, 404, 500):
        with answering([code, 200]) as (url, left), pytest.raises(client.ServingError, match=f"HTTP {code}"):
            predict(url)
        assert waits == []
        assert left == [200]
    with pytest.raises(client.UnavailableError, match="refused"):
        predict(url, retries=1)  # nobody is there any more
    assert len(waits) == 1
    with answering([200], seconds=1) as (url, _), pytest.raises(client.UnavailableError, match="timed out"):
        predict(url, retries=1, timeout=0.1)
    assert len(waits) == 1


@pytest.fixture
def grpc_address(served):
    """Of a gRPC server that speaks TF Serving's protocol, and is busy when it is asked for the first time."""
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("tensorflow_serving")
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

    graph = saved_model_pb2.SavedModel.FromString((MODEL / "1" / "saved_model.pb").read_bytes()).meta_graphs[0]

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        asked = 0

        def GetModelMetadata(self, request, context):
            self.asked += 1
            if self.asked == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=graph.signature_def)
            answer = get_model_metadata_pb2.GetModelMetadataResponse()
            answer.metadata["signature_def"].Pack(signatures)
            return answer

        def Predict(self, request, context):
            assert request.model_spec.name == "digits_gracapsnet"
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            try:
                found = served.run(request.model_spec.signature_name, **inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            return predict_pb2.PredictResponse(
                outputs={name: tf.make_tensor_proto(value) for name, value in found.items()}
            )

    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None)


def test_client_asks_over_grpc(module, main, grpc_address, x, served):
    client = module("client")
    grpc = client.Grpc(grpc_address, "digits_gracapsnet")
    with pytest.raises(client.UnavailableError, match="gRPC UNAVAILABLE: busy"):
        grpc.inputs("lrp")
    assert grpc.inputs("lrp") == {"images": ("float32", (-1, 28, 28, 1)), "target": ("int64", (-1,))}
    for signature, inputs in {
        "explain": {"images": x},
        "clrp": {"images": x, "target": np.full(5, 3)},
        "serve_bytes": {"encoded": [png(one) for one in x]},
    }.items():
        expected = served.run(signature, **inputs)
        for name, found in grpc.predict(signature, inputs).items():
            np.testing.assert_allclose(found, expected[name], atol=1e-6)
    with pytest.raises(
        client.ServingError, match=r"(?s)gRPC INVALID_ARGUMENT: .*images: expected finite pixels"
    ) as error:
        grpc.predict("explain", {"images": x * np.nan})
    assert not isinstance(error.value, client.UnavailableError)
    (line,) = main("client", "digits_gracapsnet", "--grpc", grpc_address, "--digits", 0)
    assert line.startswith("digit 0, a 0: class 0, score ")
    late = client.Grpc("localhost:1", "digits_gracapsnet", timeout=0.5)
    with pytest.raises(client.UnavailableError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
        late.inputs("lrp")


def test_grpc_client_names_the_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ImportError, match=r"tensorflow-serving-api: pip install -e \"\.\[serving\]\""):
        module("client").Grpc("localhost:8500", "any")


def test_the_saved_model_is_what_its_readme_says(served):
    x, y = data.take(data.load("digits", split="test"), 360)
    right = int((served.predict(x).argmax(-1) == y).sum())
    assert served.card["accuracy"] == {"value": right / 360, "images": 360, "of": "digits, test"}
    text = (ROOT / "saved_models" / "README.md").read_text()
    assert f"{right / 360:.2%}".replace("%", " %") in text
    assert f"({right} right)" in text
    assert right >= 0.97 * 360
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert f"{size / 1e6:.1f} MB" in text
    assert size < 2e6
    ignored = subprocess.run(["git", "check-ignore", MODEL / "1" / "saved_model.pb"], cwd=ROOT, check=False)
    assert ignored.returncode


def test_the_saved_model_is_explained_and_attacked(served):
    x, y = data.take(data.load("digits", split="test"), 16)
    maps = explain.GraphAttention(served)(x)
    np.testing.assert_allclose(explain.GraphAttention(served)(x, served.predict(x).argmax(-1)), maps, atol=1e-6)
    assert maps.max(axis=(1, 2)).min() > 4 / 28**2  # it looks somewhere
    ink = (maps * (x[..., 0] > 0.5)).sum() / maps.sum()
    assert ink > (x > 0.5).mean()
    saliency = served.explain(x, 3, endpoint="saliency")["maps"]
    np.testing.assert_allclose(explain.Saliency(served)(x, 3), saliency, atol=1e-5)
    pgd = attacks.PGD(0.15, step_size=0.03, steps=10)
    result = evaluate.robustness(served, pgd, (x, y), objective=attacks.capsules)
    assert result.accuracy > 0.9
    assert result.robust_accuracy < result.accuracy - 0.3


def test_python_in_the_readme_of_saved_models_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "saved_models" / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert 0 <= float(capsys.readouterr().out) < 0.9


def test_export_writes_endpoints_card_and_warm_up(small_model, main, tmp_path):
    pytest.importorskip("tensorflow_serving")
    from keras_capsvit import serving

    small_model().save(tmp_path / "model.keras")
    options = ("--dataset", "digits", "--explainers", "saliency", "--taps", "capsules", "--trained", "not at all")
    printed = main("export", tmp_path / "model.keras", tmp_path / "out", *options)
    assert printed[0].startswith(f"{tmp_path / 'out' / '1'}: 0.")
    assert printed[0].endswith("endpoints capsules, explain, saliency, serve_bytes, serving_default")
    assert f"-v {tmp_path / 'out'}:/models/out" in printed[1]
    served = serving.load(tmp_path / "out")
    assert served.card["trained"] == "not at all"
    assert served.card["class_names"] == list("0123456789")
    assert 0 <= served.card["accuracy"]["value"] < 0.5
    assert (tmp_path / "out" / "1" / "assets.extra" / "tf_serving_warmup_requests").is_file()


@pytest.mark.slow
def test_digits_model_is_made_by_its_script(main, tmp_path):
    pytest.importorskip("tensorflow_serving")
    printed = "\n".join(main("make_digits_model", "--epochs", 1, "--out", tmp_path))
    made, kept = (json.loads((path / "1" / "model_card.json").read_text()) for path in (tmp_path, MODEL))
    assert made["endpoints"] == kept["endpoints"]
    assert kept["trained"] == made["trained"].replace("; 1 epochs", "; 15 epochs")
    assert f"-e MODEL_NAME={tmp_path.name} tensorflow/serving" in printed


def test_serve_benchmark_compares_with_keras(main, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "benchmarks")
    options = ("--models", "affcapsnet", "--timed", "affcapsnet", "--batch-sizes", 2, "--rounds", 2)
    printed = "\n".join(main("serve", *options, "--out", tmp_path))
    names = ["tf.function", "model(x)", "predict_on_batch", "ServedModel", "signature"]
    rows = json.loads((tmp_path / "latency.json").read_text())["result"]
    assert [row["call"] for row in rows] == names
    assert all(row["least"] <= row["ms"] <= row["most"] for row in rows)
    (row,) = json.loads((tmp_path / "size.json").read_text())["result"]
    assert row["endpoints"] == 7
    assert all(name in printed for name in (*names, "graph MB"))


@pytest.mark.slow
def test_served_benchmark_compares_with_the_live_model(main, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "benchmarks")
    printed = main("served", "--models", "resnet20", "--batch-size", 1, "--rounds", 1)
    kinds = [line.split(",")[1].strip() for line in printed if line.startswith("resnet20")]
    assert kinds == ["PGD", "LRP", "CLRP", "Saliency"]
    assert sum(line.startswith("  served ") for line in printed) == 4
