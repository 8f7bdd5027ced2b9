"""The KServe runtime, asked by KServe's clients and by plain HTTP, in an environment of its own: .ci/kserve."""

import asyncio
import base64
import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

kserve = pytest.importorskip("kserve")
ROOT = pathlib.Path(__file__).parent.parent
SERVE = ROOT / "examples" / "serve"
MODEL = ROOT / "saved_models" / "digits_gracapsnet"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(url, body=None, headers=()):
    """Status and JSON of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **dict(headers)})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def ports():
    """Of REST and gRPC of a runtime that is ready."""
    http, grpc = free_port(), free_port()
    command = [SERVE / "kserve_runtime.py", "--model_dir", MODEL, "--model_name", "digits", "--explainer", "clrp"]
    command += ["--http_port", http, "--grpc_port", grpc]
    log = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=log) as process:
        until = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < until, "the runtime did not start"
            try:
                if ask(f"http://localhost:{http}/v2/models/digits/ready")[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield http, grpc
        process.terminate()


@pytest.fixture
def url(ports):
    return f"http://localhost:{ports[0]}"


@pytest.fixture(scope="module")
def model():
    """The SavedModel itself, which other tests compare with the live model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SERVE)
        import c_api
    return c_api.SavedModel(MODEL / "1")


@pytest.fixture
def x():
    return np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype("float32")


def test_readiness_and_metadata(url):
    assert ask(f"{url}/v2/health/ready") == (200, {"ready": True})
    assert ask(f"{url}/v1/models/digits")[1] == {"name": "digits", "ready": True}
    about = ask(f"{url}/v2/models/digits")[1]
    assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 28, 28, 1]}]
    assert {each["name"]: (each["datatype"], each["shape"]) for each in about["outputs"]} == {
        "outputs": ("FP32", [-1, 10]),
        "class": ("INT64", [-1]),
    }
    assert ask(f"{url}/v2/models/digits/card")[1] == json.loads((MODEL / "1" / "model_card.json").read_text())
    assert ask(f"{url}/v2/models/others/card")[0] == ask(f"{url}/v2/models/others")[0] == 404


def infer_request(x, binary, signature=None, only=None):
    inputs = kserve.InferInput("images", list(x.shape), "FP32")
    inputs.set_data_from_numpy(x, binary_data=binary)
    parameters = {"binary_data_output": binary} | ({"signature_name": signature} if signature else {})
    asked = [kserve.protocol.infer_type.RequestedOutput(name) for name in only or ()]
    return kserve.InferRequest(
        model_name="digits", infer_inputs=[inputs], parameters=parameters, request_outputs=asked or None
    )


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("signature", [None, "explain", "capsules"])
def test_rest_of_v2_answers_as_the_model(url, model, x, binary, signature):
    config = kserve.RESTConfig(protocol="v2", timeout=60)
    request = infer_request(x, binary, signature)
    answer = asyncio.run(kserve.InferenceRESTClient(config).infer(url, request, model_name="digits"))
    check(answer, model.run(signature or "serving_default", {"images": x}))


def check(answer, expected):
    assert {output.name for output in answer.outputs} == set(expected)
    for output in answer.outputs:
        value = output.as_numpy()
        assert value.dtype == expected[output.name].dtype
        np.testing.assert_allclose(value, expected[output.name], atol=1e-5)


@pytest.mark.parametrize("binary", [False, True])
def test_grpc_answers_as_the_model(ports, model, x, binary):
    async def infer(request):
        client = kserve.InferenceGRPCClient(f"localhost:{ports[1]}", timeout=60)
        assert await client.is_model_ready("digits")
        return await client.infer(request)

    check(asyncio.run(infer(infer_request(x, binary))), model.run("serving_default", {"images": x}))
    lengths = asyncio.run(infer(infer_request(x, binary, "lengths")))
    check(lengths, model.run("lengths", {"images": x}))
    with pytest.raises(Exception, match="Expected a signature among attention"):
        asyncio.run(infer(infer_request(x, binary, "others")))
    with pytest.raises(Exception, match="expected finite pixels"):
        asyncio.run(infer(infer_request(np.full_like(x, np.nan), binary)))


def test_v1_predicts_and_explains_as_the_model(url, model, x):
    expected = model.run("serving_default", {"images": x})
    rows = ask(f"{url}/v1/models/digits:predict", {"instances": x.tolist()})[1]["predictions"]
    np.testing.assert_allclose([row["outputs"] for row in rows], expected["outputs"], atol=1e-5)
    assert [row["class"] for row in rows] == expected["class"].tolist()
    targets = np.array([1, 2, 3])
    cases = [
        ({"instances": x.tolist()}, "clrp", {"target": np.full(3, -1)}),
        ({"instances": [{"images": image} for image in x.tolist()]}, "clrp", {"target": np.full(3, -1)}),
        (
            {"instances": [{"images": image, "target": k + 1} for k, image in enumerate(x.tolist())]},
            "clrp",
            {"target": targets},
        ),
        ({"instances": x.tolist(), "signature_name": "saliency"}, "saliency", {"target": np.full(3, -1)}),
        ({"instances": x.tolist(), "signature_name": "explain"}, "explain", {}),
    ]
    for body, endpoint, more in cases:
        status, answer = ask(f"{url}/v1/models/digits:explain", body)
        assert status == 200, answer
        maps = model.run(endpoint, {"images": x, **more})["maps"]
        np.testing.assert_allclose(answer["explanations"], maps, atol=1e-5)
        np.testing.assert_allclose([row["outputs"] for row in answer["predictions"]], expected["outputs"], atol=1e-5)
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1", timeout=60))
    answer = asyncio.run(client.explain(url, "digits", {"instances": x.tolist()}))
    np.testing.assert_allclose(
        answer["explanations"], model.run("clrp", {"images": x, "target": np.full(3, -1)})["maps"], atol=1e-5
    )


def test_files_are_classified(url, ports, model):
    png = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
        b"\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82"
    )
    expected = model.run("serve_bytes", {"encoded": np.array([png], "object")})
    inputs = kserve.InferInput("encoded", [1], "BYTES")
    inputs.set_data_from_numpy(np.array([png], "object"), binary_data=True)
    request = kserve.InferRequest("digits", [inputs], parameters={"signature_name": "serve_bytes"})

    async def infer():
        return await kserve.InferenceGRPCClient(f"localhost:{ports[1]}", timeout=60).infer(request)

    check(asyncio.run(infer()), expected)
    body = {"instances": [{"b64": base64.b64encode(png).decode()}], "signature_name": "serve_bytes"}
    (row,) = ask(f"{url}/v1/models/digits:predict", body)[1]["predictions"]
    np.testing.assert_allclose(row["outputs"], expected["outputs"][0], atol=1e-5)


def malformed(x):
    """Verbs of V1 or V2, bodies, and what messages say."""
    images = x.tolist()

    def tensor(**changes):
        inputs = {"name": "images", "shape": [3, 28, 28, 1], "datatype": "FP32", "data": x.ravel().tolist(), **changes}
        return {"inputs": [inputs]}

    infer = "v2/models/digits/infer"
    yield infer, tensor(name="pictures"), "inputs images; received pictures"
    yield infer, tensor(datatype="FP64"), "datatype FP32; received FP64"
    yield infer, tensor(datatype="FP33"), "datatype FP32; received FP33"
    yield infer, tensor(shape=[3, 28, 28]), "is not compatible"
    yield infer, tensor(shape=[2, 28, 28, 1]), "as many values of images as its shape"
    yield infer, tensor(shape=[-3, 28, 28, 1]), "as many values of images as its shape|shape"
    yield infer, tensor(data=["1"] * 2352), "float32 values"
    yield infer, tensor(data=[None] * 2352), "float32 values"
    yield infer, tensor(data=[]), "as many values"
    yield infer, {**tensor(), "parameters": {"signature_name": "others"}}, "Expected a signature among"
    yield infer, {**tensor(), "parameters": {"signature_name": 3}}, "signature_name as a string"
    yield infer, {**tensor(), "outputs": [{"name": "maps"}]}, "received maps"
    yield infer, {"inputs": []}, "inputs images; received none"
    for verb in ("predict", "explain"):
        verb = f"v1/models/digits:{verb}"
        yield verb, {"inputs": images, "instances": images}, "either 'instances' or 'inputs'"
        yield verb, {"instances": []}, "one entry per image"
        yield verb, {"instances": [[1, 2], [3]]}, "float32 values in lists of equal lengths"
        yield verb, {"instances": images, "signature": "lrp"}, "no other keys"
        yield verb, b"no json", "Unrecognized request format"
    explain = "v1/models/digits:explain"
    yield explain, {"instances": images, "signature_name": "capsules"}, "Expected an explainer"
    yield explain, {"inputs": images}, "Expected 'instances'"
    rows = [{"images": image, "target": 10} for image in images]
    yield explain, {"instances": rows}, "expected class ids"
    rows = [{"images": image, "target": 1.5} for image in images]
    yield explain, {"instances": rows}, "int64 values"


def test_malformed_requests_are_refused(url, x):
    for verb, body, message in malformed(x):
        status, answer = ask(f"{url}/{verb}", body)
        assert status in (400, 422) and re.search(f"(?s){message}", str(answer)), (verb, message, status, answer)
    assert ask(f"{url}/v1/models/digits:predict", {"instances": x.tolist()})[0] == 200  # it is still there


def test_what_cannot_be_served_is_said(tmp_path):
    def error(*options):
        command = [SERVE / "kserve_runtime.py", *options]
        return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=120).stderr

    assert "Expected a SavedModel" in error("--model_dir", tmp_path)
    assert "Expected an explainer among clrp, " in error("--model_dir", MODEL, "--explainer", "others")
