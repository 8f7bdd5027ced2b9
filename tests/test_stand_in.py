"""server.py over REST: its answers, what it refuses, and that nothing is lost or left unanswered."""

import base64
import functools
import json
import pathlib
import re
import sys
import types
import urllib.error
import urllib.request

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow
MODEL = pathlib.Path(__file__).parent.parent / "saved_models" / "digits_gracapsnet"
NAME = "digits_gracapsnet"


def ask(url, body=None):
    """Status and JSON of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rest_has_rows_and_columns_of_tf_serving(stand_in, enlarged_digits, served_digits, load_test):
    x = enlarged_digits
    model = f"{stand_in}/v1/models/digits_gracapsnet"
    images, scores = x.tolist(), served_digits(x)
    assert ask(model)[1]["model_version_status"][0] | {"status": None} == {
        "version": "1",
        "state": "AVAILABLE",
        "status": None,
    }
    for predict in (f"{model}:predict", f"{model}/versions/1:predict"):
        for instances in (images, [{"images": image} for image in images]):
            predictions = ask(predict, {"instances": instances})[1]["predictions"]
            np.testing.assert_allclose([image["outputs"] for image in predictions], scores, atol=1e-5)
            assert [image["class"] for image in predictions] == np.argmax(scores, -1).tolist()
    for inputs in (images, {"images": images}):
        predictions = ask(f"{model}:predict", {"signature_name": "capsules", "inputs": inputs})[1]["outputs"]
        np.testing.assert_allclose(predictions, served_digits.taps["capsules"](x), atol=1e-5)
    predictions = ask(f"{model}:predict", {"signature_name": "capsules", "instances": images})[1]["predictions"]
    np.testing.assert_allclose(predictions, served_digits.taps["capsules"](x), atol=1e-5)
    rows = [{"images": image, "target": 3} for image in images]
    predictions = ask(f"{model}:predict", {"signature_name": "clrp", "instances": rows})[1]["predictions"]
    maps = served_digits.explain(x, 3, endpoint="clrp")["maps"]
    np.testing.assert_allclose([image["maps"] for image in predictions], maps, atol=1e-5)
    encoded = {"b64": base64.b64encode(load_test.encoded(np.rint(x[0] * 255).astype("uint8"))).decode()}
    for row in (encoded, {"encoded": encoded}):
        predictions = ask(f"{model}:predict", {"signature_name": "serve_bytes", "instances": [row]})[1]["predictions"]
        np.testing.assert_allclose(predictions[0]["outputs"], scores[0], atol=1e-2)


@pytest.fixture
def load_test(serve_example):
    return serve_example("load_test")


def test_no_request_of_many_clients_is_lost_and_limits_hold(stand_in, load_test, serve_example):
    endpoints = ("serve_bytes", "serving_default")
    asked = load_test.questions(serve_example("c_api").SavedModel(MODEL / "1"), 80, endpoints)
    connect = functools.partial(serve_example("client").Rest, stand_in, NAME)
    ends, seconds = load_test.load(connect, asked, clients=8)
    assert ends == {"right": 80} and len(seconds) == 80
    wrong = [
        (name, inputs, {key: value + 1 for key, value in expected.items()}) for name, inputs, expected in asked[:1]
    ]
    assert load_test.load(connect, wrong, clients=1)[0] == {"wrong": 1}
    rows = list(load_test.beyond(stand_in, NAME))
    assert len(rows) == 4
    assert [row for row in rows if not row[-1]] == []


def malformed(image, png, bomb):
    """What messages say, and bodies of predict requests, bytes or what is put into JSON."""
    yield "Expected a body of JSON.*Expecting value", b""
    yield "Expecting value", b"no json"
    yield "Expected a body of JSON", b"\xff\xfe\xfd"
    yield "Expected a body of JSON", b'{"inputs": [[1, 2]]'
    yield "Expected a body of JSON", b'{"inputs": [' + b"1" * 5000 + b"]}"
    yield "recursion", b"[" * 100_000
    yield "recursion", b'{"instances":' * 100_000
    for body in (None, 3, "text", True, [image]):
        yield "either 'instances' or 'inputs'", body
    yield "either 'instances' or 'inputs'", {}
    yield "either 'instances' or 'inputs'", {"instances": [image], "inputs": [image]}
    yield "no other keys than .*; received signature", {"inputs": [image], "signature": "lrp"}

    for name in (None, 3, True, 1e300, [], ["lrp"], {}, {"lrp": 1}):
        yield "'signature_name' as a string; received", {"inputs": [image], "signature_name": name}
    for name in ("explains", "__saved_model_init_op", "\ud800", "x" * 10_000, "lrp\0"):
        yield "Expected a signature among attention, ", {"inputs": [image], "signature_name": name}

    for instances in (None, 3, "text", {}, {"images": [image]}, []):
        yield "'instances', a list with one entry", {"instances": instances}
    yield "float32 values in lists", {"instances": [{"images": image}, {"pictures": image}]}
    yield "float32 values in lists", {"instances": [image, {"images": image}]}
    yield "inputs images; received pictures", {"inputs": {"pictures": [image]}}
    yield "inputs images; received images, target", {"inputs": {"images": [image], "target": [1]}}
    yield "at most 128 images in a request; received 129", {"instances": [image] * 129}
    yield "at most 128 images in a request; received 129", {"inputs": {"images": [0] * 129}}

    yield r"images.*\[28,28,1\] is not compatible", {"inputs": image}
    yield r"images.*\[1,1,28,28,1\] is not compatible", {"inputs": [[image]]}
    yield r"images.*\[\] is not compatible", {"inputs": 3}
    yield r"images.*\[1,28,29,1\] is not compatible", {"inputs": np.zeros((1, 28, 29, 1)).tolist()}
    yield r"images.*\[1,28,28,3\] is not compatible", {"inputs": np.zeros((1, 28, 28, 3)).tolist()}
    yield r"images.*\[0\] is not compatible", {"inputs": []}
    deep = 3
    for _ in range(500):
        deep = [deep]
    yield "float32 values in lists of equal lengths for images", {"inputs": deep}

    for number in (np.nan, np.inf, -np.inf, 1e39):
        yield "images: expected finite pixels", {"inputs": np.full((2, 28, 28, 1), number).tolist()}
    yield (
        "images: expected finite pixels",
        json.dumps({"inputs": np.full((1, 28, 28, 1), 7.5).tolist()}).replace("7.5", "1e999").encode(),
    )
    row = [[[0.5]] * 28] * 27
    for value in (True, None, "1", [], {}, {"b64": "AA=="}):
        yield "float32 values in lists of equal lengths for images", {"inputs": [[*row, [[value]] * 28]]}
    yield "float32 values for images; received larger ones", {"inputs": [[*row, [[10**400]] * 28]]}
    yield "float32 values in lists of equal lengths for images", {"inputs": "text"}
    yield "float32 values in lists of equal lengths for images", {"inputs": [image, [1, 2]]}

    def targeted(target):
        return {"signature_name": "lrp", "inputs": {"images": [image], "target": target}}

    yield "target: expected class ids", targeted([10])
    yield "target: expected class ids", targeted([-2])
    yield "target: expected one class id per image", targeted([1, 2])
    yield "is not compatible.*target", targeted(1)
    for target in ([2**63], [2**64 - 1], [-(2**63) - 1]):
        yield "int64 values for target; received larger ones", targeted(target)
    for target in ([1.5], [1.0], [True], ["1"], [None], [[1], [1, 2]]):
        yield "int64 values in lists of equal lengths for target", targeted(target)
    yield r"inputs (target, images|images, target) by name", {"signature_name": "lrp", "inputs": [image]}

    def files(*instances):
        return {"signature_name": "serve_bytes", "instances": list(instances)}

    def file(content):
        return {"b64": base64.b64encode(content).decode()}

    yield "encoded: expected bytes of JPEG or PNG", files(file(b""))
    yield "encoded: expected bytes of JPEG or PNG", files("text")
    yield "encoded: expected bytes of JPEG or PNG", files(file(b"GIF89a"))
    yield r"encoded: expected at most 25000000 pixels.*16000 16000", files(file(png), file(bomb))
    yield "encoded", files(file(png), file(png[:60]))
    yield "encoded: expected at least one image", {"signature_name": "serve_bytes", "inputs": []}
    for text in ("?", "A", "====", "é"):
        yield "Expected base64 as 'b64'", files({"b64": text})
    for value in (3, None, True, [], {"b64": 3}, {"b64": file(png)}):
        yield r'Expected a string or \{"b64": string\}|is not compatible', files(value)
    yield "surrogates", files("\ud800")
    yield "encoded|Expected a string", files(deep)


def test_malformed_bodies_are_refused_and_named(stand_in, enlarged_digits, load_test):
    image = enlarged_digits[0].tolist()
    png = load_test.encoded(np.zeros((28, 28, 1), "uint8"))
    for expected, body in malformed(image, png, load_test.bomb(16_000, 16_000)):
        status, answer = load_test.exchange(stand_in, load_test.post(NAME, body))
        assert status == 400 and list(answer) == ["error"], (expected, answer)
        assert re.search(f"(?s){expected}", answer["error"]), (expected, answer)
    assert load_test.exchange(stand_in, load_test.post(NAME, {"instances": [image]}))[0] == 200  # it is still there


GOOD = b'{"signature_name": "", "inputs": []}'  # a request of which the graph refuses the shape
POST = f"POST /v1/models/{NAME}:predict HTTP/1.1\r\n".encode()
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def sent(*headers, body=b"", start=POST):
    return start + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def hostile():
    """Statuses, what messages say, and bytes that are sent, after which the client sends no more."""
    graph = r"images.*is not compatible"
    yield 400, graph, sent(b"Content-Length: 36", body=GOOD)
    yield 400, graph, CHUNKS + b"24\r\n" + GOOD + b"\r\n0\r\n\r\n"
    yield (
        400,
        graph,
        CHUNKS + b"4;name=value\r\n" + GOOD[:4] + b"\r\n20\r\n" + GOOD[4:] + b"\r\n0\r\nTrailer: 1\r\n\r\n",
    )
    yield 400, graph, sent(b"Content-Length: 36", body=GOOD, start=POST.replace(b"1.1", b"1.0"))
    yield 400, "Expected a body of JSON", sent(b"Content-Length: 3", body=GOOD)  # what follows is no request
    for length in (b"abc", b"-1", b"+36", b"36.0", b"3e1", b"0x24", b"36, 36", b"", b"3 6", "٣".encode()):
        yield 400, "Content-Length is invalid", sent(b"Content-Length: " + length, body=GOOD)
    yield 400, "Content-Length is invalid", sent(b"Content-Length: 36", b"Content-Length: 35", body=GOOD)
    yield 413, "exceeds max_body", sent(b"Content-Length: 99999999999")
    yield 413, "exceeds max_body", sent(b"Content-Length: " + b"9" * 3000)
    yield 431, "exceeds max_header", sent(b"Content-Length: " + b"9" * 5000)
    yield 431, "exceeds max_header", sent(b"Content-Length: 36", b"A: " + b"b" * 5000, body=GOOD)
    yield 431, "exceeds max_header", b"GET /" + b"a" * 5000
    yield 411, "expected a body, with Content-Length", sent()
    yield 411, "expected a body", CHUNKS.replace(b"1.1", b"1.0") + b"24\r\n" + GOOD + b"\r\n0\r\n\r\n"
    yield 408, "Expected the rest of the request", sent(b"Content-Length: 37", body=GOOD)
    yield 408, "Expected the rest of the request", CHUNKS + b"24\r\n" + GOOD
    yield 408, "Expected the rest of the request", CHUNKS + b"ffffffffffffffffffff\r\n" + GOOD
    yield 408, "Expected the rest of the request", POST + b"Content-Le"
    yield 400, "Invalid chunk size", CHUNKS + b"-1\r\n"
    yield 400, "Chunk not properly terminated", CHUNKS + b"3\r\n" + GOOD
    yield 501, "Transfer-Encoding", sent(b"Transfer-Encoding: gzip, chunked")
    yield 400, "Invalid header", sent(b"no header")
    yield 400, "Invalid header", sent(b": nothing")
    yield 400, "Start line is invalid", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"  # TLS
    yield 400, "Start line is invalid", b"GET\r\n\r\n"
    yield 400, "Malformed HTTP method", sent(b"Content-Length: 36", body=GOOD, start=POST.replace(b"POST", b"post"))
    yield 400, "IPv6", b"GET http://[ HTTP/1.1\r\n\r\n"
    yield 405, "expected POST", POST.replace(b"POST", b"GET") + b"\r\n"
    yield 405, "expected GET", sent(b"Content-Length: 36", body=GOOD, start=POST.replace(b":predict", b""))
    yield 405, "expected GET", POST.replace(b"POST", b"DELETE").replace(b":predict", b"/metadata") + b"\r\n"
    for path in ("", "/", "/v1/models/", f"/v1/models/{NAME}:classify"):
        yield 404, f"served are /v1/models/{NAME}", f"GET {path or '*'} HTTP/1.1\r\n\r\n".encode()
    for version in ("01", "1/versions/1", "-1", "9" * 1000, "%00", "%D9%A1"):
        yield 404, "served are", f"GET /v1/models/{NAME}/versions/{version} HTTP/1.1\r\n\r\n".encode()
    for address in ("digits", "digits/versions/1", f"{NAME}/versions/2", f"{NAME}/versions/2/metadata"):
        yield 404, "Could not find", f"GET /v1/models/{address} HTTP/1.1\r\n\r\n".encode()
    yield 404, "no version of label 'stable'", f"GET /v1/models/{NAME}/labels/stable HTTP/1.1\r\n\r\n".encode()


def test_hostile_requests_are_answered(stand_in, load_test):
    for expected, message, data in hostile():
        status, answer = load_test.exchange(stand_in, data, ends=True)
        assert status == expected and list(answer) == ["error"], (data[:200], status, answer)
        assert re.search(f"(?s){message}", answer["error"]), (data[:200], answer)
    for data in (b"", POST, sent(b"Content-Length: 10", body=b"123"), b"\r\n\r\n"):  # clients that are gone
        load_test.leave(stand_in, data)
    assert load_test.exchange(stand_in, f"GET /v1/models/{NAME}\r\n\r\n".encode())[0] == 200  # HTTP 0.9
    assert load_test.exchange(stand_in, f"GET /v1/models/{NAME} HTTP/1.0\r\n\r\n".encode())[0] == 200


def test_the_server_names_the_extra(serve_main, monkeypatch):
    monkeypatch.delitem(sys.modules, "http_server", raising=False)
    monkeypatch.setitem(sys.modules, "waitress", None)
    with pytest.raises(SystemExit, match=r"Serving needs waitress and .*: pip install -e \"\.\[serving\]\""):
        serve_main("server", MODEL, "--rest-port", 0)


def test_the_server_says_what_is_no_folder(serve_main, tmp_path):
    with pytest.raises(SystemExit, match=r"Expected folders of SavedModels.*nothing are none"):
        serve_main("server", tmp_path / "nothing", "--rest-port", 0)


def test_errors_of_tensorflow_and_memory_have_their_status(serve_example):
    pytest.importorskip("waitress")
    server, c_api = serve_example("http_server"), serve_example("c_api")

    class Models:
        names = ("any",)

        def __init__(self, error):
            self.error = error

        def use(self, name, number, label):
            raise self.error

    def answered(error, method="POST"):
        said = {}
        app = server.application(Models(error))
        body = types.SimpleNamespace(read=lambda: b'{"inputs": 1}')
        request = {"REQUEST_METHOD": method, "PATH_INFO": "/v1/models/any:predict", "CONTENT_LENGTH": "13"}
        content = app(
            {**request, "wsgi.input": body}, lambda status, headers: said.update(dict(headers), status=status)
        )
        return said, content

    for code, status in ((3, 400), (8, 503), (14, 503), (13, 500)):
        said, (content,) = answered(c_api.TensorFlowError("told", code))
        assert said["status"].startswith(f"{status} ") and json.loads(content) == {"error": "told"}
    said, (content,) = answered(MemoryError())
    assert said["status"] == "503 Service Unavailable" and b"not enough memory" in content
    said, content = answered(None, "HEAD")
    assert said["status"].startswith("405") and said["Allow"] == "POST" and content == []
