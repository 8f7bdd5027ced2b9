"""TF Serving's REST API for one SavedModel in a session of the C API: predict, status and metadata.

https://www.tensorflow.org/tfx/serving/api_rest says what is asked and answered. What is wrong with a request, or
refused by the graph, is answered by HTTP 400 with the message; an address that there is not by 404.
"""

import base64
import http.server
import json
import re

import numpy as np
from c_api import DTYPES, STRING, TensorFlowError, check_names, dtype_name

ADDRESS = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d+))?(?P<verb>:predict|/metadata)?")
KINDS = {"float32": "iuf", "float64": "iuf", "float16": "iuf", "bool": "b"}  # the others take integers


def serve(model, name, version, port):
    """Answer requests until interrupted; prints the address first.

    Args:
        model: SavedModel of c_api.py.
        name: str, of the model in addresses.
        version: int.
        port: int; 0 for any that is free.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer({None: lambda _: status(version), "/metadata": lambda _: metadata(model, name, version)})

        def do_POST(self):
            self._answer({":predict": lambda body: predict(model, body)})

        def _answer(self, verbs):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = ADDRESS.fullmatch(self.path)
            known = found and found["name"] == name and found["version"] in (None, str(version))
            if not known or found["verb"] not in verbs:
                return self._send(404, {"error": f"{self.command} {self.path}: served is {name}, version {version}."})
            try:
                self._send(200, verbs[found["verb"]](body))
            except (TensorFlowError, ValueError, RecursionError) as error:
                self._send(400, {"error": str(error)})

        def _send(self, code, answer):
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with http.server.ThreadingHTTPServer(("localhost", port), Handler) as server:
        print(f"http://localhost:{server.server_port}/v1/models/{name}", flush=True)
        server.serve_forever()


def status(version):
    """Answer about the model's state."""
    state = {"version": str(version), "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    return {"model_version_status": [state]}


def metadata(model, name, version):
    """Answer about the model's signatures, in JSON as protocol buffers are written."""

    def described(info):
        sizes = [{"size": str(size), "name": ""} for size in info["shape"] or ()]
        shape = {"dim": sizes, "unknown_rank": info["shape"] is None}
        return {"dtype": dtype_name(info["dtype"]), "tensor_shape": shape, "name": info["name"]}

    signatures = {
        key: {kind: {one: described(info) for one, info in infos.items()} for kind, infos in signature.items()}
        for key, signature in model.signatures.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def predict(model, body):
    """Answer to a predict request, in rows (``instances``) or in columns (``inputs``)."""
    request = json.loads(body)
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise ValueError("Expected a JSON object with either 'instances' or 'inputs'.")
    name = request.get("signature_name", "serving_default")
    infos = model.signature(name)["inputs"]
    given = rows(request["instances"], infos) if "instances" in request else columns(request["inputs"], infos)
    check_names(infos, given)
    outputs = model.run(name, {key: tensor(key, given[key], info) for key, info in infos.items()})
    single = len(outputs) == 1
    if "inputs" in request:
        found = {key: array.tolist() for key, array in outputs.items()}
        return {"outputs": next(iter(found.values())) if single else found}
    lists = [array.tolist() for array in outputs.values()]
    found = [dict(zip(outputs, row, strict=True)) for row in zip(*lists, strict=True)]
    return {"predictions": lists[0] if single else found}


def rows(instances, infos):
    """Values by input name of a list with one value, or one object of values, per image."""
    if not isinstance(instances, list) or not instances:
        raise ValueError("Expected 'instances', a list with one entry per image; received none.")
    if not all(isinstance(one, dict) and set(one) == set(infos) for one in instances):
        return columns(instances, infos)
    return {key: [one[key] for one in instances] for key in infos}


def columns(value, infos):
    """Values by input name of an object with these, or of the value of the only input."""
    if isinstance(value, dict) and set(value) != {"b64"}:
        return value
    if len(infos) > 1:
        raise ValueError(f"Expected values of the inputs {', '.join(infos)} by name.")
    return dict.fromkeys(infos, value)


def tensor(name, value, info):
    """Array for an input from JSON: numbers of its kind; bytes from ``{"b64": ...}`` or strings."""
    dtype = DTYPES[info["dtype"]]
    if info["dtype"] == STRING:
        array = np.frompyfunc(text, 1, 1)(np.array(value, "object"))
        return np.asarray(array, "object")
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.size and array.dtype.kind not in KINDS.get(dtype, "iu"):
        raise ValueError(f"Expected {dtype} values in lists of equal lengths for {name}; received others.")
    return array.astype(dtype)


def text(value):
    """Bytes of a JSON string, or of an object with these in base64."""
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        return base64.b64decode(value["b64"], validate=True)
    if not isinstance(value, str):
        raise ValueError(f'Expected a string or {{"b64": string}}; received {value!r}.')
    return value.encode()
