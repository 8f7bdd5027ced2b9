"""What examples/serve/client.py asks, over REST and gRPC, and what it says when something is wrong."""

import contextlib
import http.server
import io
import pathlib
import re
import socket
import sys
import threading
import time
import types
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

MODEL = pathlib.Path(__file__).parent.parent / "saved_models" / "digits_gracapsnet"
pytestmark = pytest.mark.tensorflow


def png(pixels):
    """PNG of pixels ``(H, W, C)`` in [0, 1]."""
    encoded = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype("uint8").squeeze()).save(encoded, "png")
    return encoded.getvalue()


@pytest.mark.slow
def test_client_asks_over_rest(stand_in, enlarged_digits, served_digits, serve_example, serve_main, tmp_path):
    x = enlarged_digits
    client = serve_example("client")

    def run(*args):
        return serve_main("client", "digits_gracapsnet", "--rest", stand_in, *args)

    rest = client.Rest(stand_in, "digits_gracapsnet")
    assert rest.inputs("lrp") == {"images": ("float32", (-1, 28, 28, 1)), "target": ("int64", (-1,))}
    assert rest.inputs("serve_bytes") == {"encoded": ("string", (-1,))}
    np.testing.assert_allclose(rest.predict("lengths", {"images": x})["outputs"], served_digits(x), atol=1e-5)
    with pytest.raises(client.ServingError, match=r"HTTP 400: .*images: expected finite pixels"):
        rest.predict("lengths", {"images": x * np.nan})
    with pytest.raises(client.ServingError, match=r"among attention, .*; received 'length'"):
        rest.inputs("length")

    (tmp_path / "one.png").write_bytes(png(np.repeat(x[0].repeat(2, 0).repeat(2, 1), 3, -1)))  # larger, in colour
    expected = int(served_digits(x[:1]).numpy().argmax())
    for signature in ("serving_default", "serve_bytes", "explain"):
        lines = run(tmp_path / "one.png", "--digits", 0, 1, "--signature", signature)
        assert lines[0].startswith(f"{tmp_path / 'one.png'}: class {expected}, score 0.")
        assert [line.split(", score")[0] for line in lines[1:]] == [f"digit {n}, a {n}: class {n}" for n in (0, 1)]
    run("--digits", 0, "--signature", "clrp", "--target", 3, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["maps"].shape == (1, 28, 28)
    assert run("--digits", 0, "--signature", "lengths")[0].startswith("digit 0, a 0: [")


@pytest.fixture
def refused(serve_main, capsys):
    """The line on standard error that the client ends with, when it is called with arguments."""

    def run(*args):
        with pytest.raises(SystemExit) as end:
            serve_main("client", "digits_gracapsnet", *args)
        assert end.value.code == 2
        printed = capsys.readouterr()
        line = printed.err.splitlines()[-1]
        assert printed.out == "" and "Traceback" not in printed.err and line.startswith("client"), printed
        return line

    return run


def test_client_says_in_a_line_what_is_wrong_with_its_arguments(refused, tmp_path, monkeypatch):
    nobody = ("--rest", "http://localhost:1", "--retries", 0)
    expected = {
        ("--digits", -1): "Expected --digits from 0 to 1796; received -1",
        ("--digits", 0, 1797): "Expected --digits from 0 to 1796; received 1797",
        (tmp_path / "missing.png",): r"Expected image files; .*missing\.png cannot be read: No such file",
        (tmp_path,): "cannot be read: Is a directory",
        (): "give files or --digits",
        (
            "--digits",
            0,
            "--rest",
            "localhost:8501",
        ): "Expected a URL like http://localhost:8501; received 'localhost:8501'",
        ("--digits", 0, "--rest", "http://["): "Invalid IPv6 URL",
        ("--digits", 0, "--rest", "http://a b"): "no answer of HTTP",
        ("--digits", 0, "--rest", "http://" + "a" * 70): "no answer of HTTP",
        ("--digits", 0, "--timeout", 0): "give a --timeout above 0",
        ("--digits", 0, "--timeout", "nan"): "give a --timeout above 0",
        ("--digits", 0, "--retries", -1): "--retries from 0",
        ("--digits", 0, "--input-range", 1, 1): "lowest and the highest pixel",
        ("--digits", 0, *nobody): "Connection refused.* Does a server run there, and is --timeout enough?",
    }
    for args, message in expected.items():
        assert re.search(message, refused(*args)), args
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert "tensorflow-serving-api: pip install" in refused("--digits", 0, "--grpc", "localhost:1")


def test_client_says_in_a_line_what_the_server_refuses(stand_in, refused, tmp_path):
    server = ("--rest", stand_in)
    assert "serving_default takes no --target; its inputs are images" in refused("--digits", 0, "--target", 3, *server)
    assert "target: expected class ids" in refused("--digits", 0, "--target", 10, "--signature", "lrp", *server)
    assert "too large" in refused("--digits", 0, "--target", 2**70, "--signature", "lrp", *server)
    assert "Expected a signature among attention, " in refused("--digits", 0, "--signature", "lrb", *server)
    assert "at most 128 images in a request" in refused("--digits", *range(129), *server)
    (tmp_path / "text.png").write_text("no image")
    assert "text.png is no image that Pillow can read" in refused(tmp_path / "text.png", *server)
    assert "HTTP 400: " in refused(tmp_path / "text.png", "--signature", "serve_bytes", *server)
    assert "missing, the folder of --out, does not" in refused(
        "--digits", 0, "--out", tmp_path / "missing" / "a", *server
    )


def test_client_understands_no_other_server(serve_example, refused):
    client = serve_example("client")
    for content in (b"no json", b"[]", b"{}", b'{"outputs": {"a": [[1], [1, 2]]}}', b"\xff"):
        with (
            answering([200], content=content) as (url, _),
            pytest.raises(client.ServingError, match="TF Serving's REST"),
        ):
            client.Rest(url, "any").predict("any", {"images": np.zeros(1)})
    with answering([404], content=b'{"error": "no such model"}') as (url, _):
        line = refused("--digits", 0, "--rest", url)
    assert line.endswith("HTTP 404: no such model (Is the model served by that name, in that version?)")
    with answering([502], content=b"<html>bad gateway") as (url, _):
        assert "HTTP 502: <html>bad gateway" in refused("--digits", 0, "--rest", url)
    with socket.create_server(("localhost", 0)) as server:

        def speak():
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0\r\n")

        threading.Thread(target=speak, daemon=True).start()
        assert "no answer of HTTP" in refused("--digits", 0, "--rest", f"http://localhost:{server.getsockname()[1]}")


def test_client_takes_outputs_of_other_names_and_refuses_other_numbers(serve_example, capsys, monkeypatch):
    client = serve_example("client")
    args = types.SimpleNamespace(images=[], digits=[0, 1], grpc=None, rest="http://any", model="any", timeout=1)
    args.__dict__.update(retries=0, signature="any", input_range=None, target=-1, out=None)
    monkeypatch.setattr(client.Rest, "inputs", lambda *_: {"images": ("float32", (-1, 8, 8, 1))})
    answers = {"probabilities": np.array([[0.25, 0.75], [0.5, 0.5]])}
    monkeypatch.setattr(client.Rest, "predict", lambda *_: answers)
    client.ask(args)
    assert capsys.readouterr().out.splitlines() == ["digit 0, a 0: [0.25, 0.75]", "digit 1, a 1: [0.5, 0.5]"]
    answers["other"] = np.zeros(3)
    with pytest.raises(client.ServingError, match=r"each of 2 images; received other numbers: \['other'\]"):
        client.ask(args)
    for shape in ((-1, -1, -1, 3), (-1, 8, 8, 2), (-1, 64)):
        monkeypatch.setattr(client.Rest, "inputs", lambda *_, shape=shape: {"images": ("float32", shape)})
        with pytest.raises(ValueError, match="images of a fixed size with 1 or 3 channels"):
            client.ask(args)


def test_client_sends_16_bits_as_8(serve_example):
    client = serve_example("client")
    deep = np.random.default_rng(0).integers(0, 2**16, (6, 5), "uint16")
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "png")
    pixels = client.decoded("deep", file.getvalue(), (6, 5, 1), 0, 255)
    np.testing.assert_allclose(pixels[..., 0], deep // 256, atol=1)


def test_client_sends_what_the_endpoint_takes(serve_example):
    client = serve_example("client")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 1), "uint8")
    args = types.SimpleNamespace(input_range=None, target=-1, signature="serving_default")
    for kind, expected in (("uint8", pixels), ("float32", pixels / np.float32(255))):
        inputs = client.request({"images": (kind, (-1, 4, 5, 1))}, [("one", png(pixels / 255))], args)
        assert inputs["images"].dtype == kind
        np.testing.assert_allclose(inputs["images"][0], expected, rtol=1e-6)


@contextlib.contextmanager
def answering(codes, seconds=0, content=b'{"outputs": [1]}'):
    """URL of a server that answers with these HTTP codes in turn, the last one for ever, each after seconds."""
    left = list(codes)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            time.sleep(seconds)
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://localhost:{server.server_port}", left
        server.shutdown()


def test_client_retries_what_is_unavailable_only(serve_example, monkeypatch):
    client = serve_example("client")
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
def grpc_address(served_digits):
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
                result = served_digits.run(request.model_spec.signature_name, **inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            return predict_pb2.PredictResponse(
                outputs={name: tf.make_tensor_proto(value) for name, value in result.items()}
            )

    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None)


def test_client_asks_over_grpc(serve_example, serve_main, grpc_address, enlarged_digits, served_digits):
    x = enlarged_digits
    client = serve_example("client")
    grpc = client.Grpc(grpc_address, "digits_gracapsnet")
    with pytest.raises(client.UnavailableError, match="gRPC UNAVAILABLE: busy"):
        grpc.inputs("lrp")
    assert grpc.inputs("lrp") == {"images": ("float32", (-1, 28, 28, 1)), "target": ("int64", (-1,))}
    for signature, inputs in {
        "explain": {"images": x},
        "clrp": {"images": x, "target": np.full(5, 3)},
        "serve_bytes": {"encoded": [png(image) for image in x]},
    }.items():
        expected = served_digits.run(signature, **inputs)
        for name, result in grpc.predict(signature, inputs).items():
            np.testing.assert_allclose(result, expected[name], atol=1e-6)
    with pytest.raises(
        client.ServingError, match=r"(?s)gRPC INVALID_ARGUMENT: .*images: expected finite pixels"
    ) as error:
        grpc.predict("explain", {"images": x * np.nan})
    assert not isinstance(error.value, client.UnavailableError)
    (line,) = serve_main("client", "digits_gracapsnet", "--grpc", grpc_address, "--digits", 0)
    assert line.startswith("digit 0, a 0: class 0, score ")
    late = client.Grpc("localhost:1", "digits_gracapsnet", timeout=0.5)
    with pytest.raises(client.UnavailableError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
        late.inputs("lrp")


def test_grpc_client_names_the_extra(serve_example, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ImportError, match=r"tensorflow-serving-api: pip install -e \"\.\[serving\]\""):
        serve_example("client").Grpc("localhost:8500", "any")
