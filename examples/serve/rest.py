"""TF Serving's REST API for SavedModels in sessions of the C API: predict, status and metadata.

https://www.tensorflow.org/tfx/serving/api_rest says what is asked and answered. What is wrong with a request is a
ValueError; see http_server.py for the HTTP around it.
"""

import base64
import json

import numpy as np
from c_api import DTYPES, STRING, check_names, dtype_name

MAX_IMAGES = 128  # in one request
ERRORS = {0: "OK", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 5: "NOT_FOUND", 13: "INTERNAL", 15: "DATA_LOSS"}
KEYS = {"signature_name", "instances", "inputs"}  # of a request
FLOATS, INTEGERS = {int, float}, {int}
TYPES = {"float32": FLOATS, "float64": FLOATS, "float16": FLOATS, "bool": {bool}}  # in JSON; the others take integers


def status(states):
    """Answer about the states of a model's versions."""
    return {
        "model_version_status": [
            {
                "version": str(number),
                "state": state,
                "status": {"error_code": ERRORS.get(code, "UNKNOWN"), "error_message": message},
            }
            for number, state, code, message in states
        ]
    }


def metadata(models, version):
    """Answer about a model's signatures, in JSON as protocol buffers are written.

    Args:
        models: Models.
        version: dict, arguments of ``Models.use``.
    """

    def described(info):
        sizes = [{"size": str(size), "name": ""} for size in info["shape"] or ()]
        shape = {"dim": sizes, "unknown_rank": info["shape"] is None}
        return {"dtype": dtype_name(info["dtype"]), "tensor_shape": shape, "name": info["name"]}

    with models.use(**version) as (number, model):
        signatures = {
            key: {kind: {name: described(info) for name, info in infos.items()} for kind, infos in signature.items()}
            for key, signature in model.signatures.items()
        }
    return {
        "model_spec": {"name": version["name"], "signature_name": "", "version": str(number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def predict(models, version, body):
    """Answer to a predict request, in rows (``instances``) or in columns (``inputs``); arguments as of ``metadata``."""
    request = parsed(body)
    with models.use(**version) as (_, model):
        outputs, name = run(model, request)
    single = len(outputs) == 1
    if "inputs" in request:
        values = {key: array.tolist() for key, array in outputs.items()}
        return {"outputs": next(iter(values.values())) if single else values}
    predictions = in_rows(outputs, name)
    return {"predictions": [next(iter(row.values())) for row in predictions] if single else predictions}


def run(model, request, usual="serving_default", absent=None):
    """Outputs by name of what a request asks a SavedModel for, and the endpoint.

    Args:
        model: SavedModel of c_api.py.
        request: dict, see ``checked``.
        usual: str, the endpoint that an empty name stands for.
        absent: dict from names of inputs to the value for each image that takes their place where they are not given.
    """
    name = request.get("signature_name") or usual
    infos = model.signature(name)["inputs"]
    asked = {key: info for key, info in infos.items() if key not in (absent or {}) or names(request, key)}
    received = rows(request["instances"], asked) if "instances" in request else columns(request["inputs"], asked)
    check_names(asked, received)
    inputs = {key: tensor(key, received[key], info) for key, info in asked.items()}
    for key in set(infos) - set(asked):
        length = len(next(iter(inputs.values()), ()))
        inputs[key] = tensor(key, [absent[key]] * length, infos[key])
    return model.run(name, inputs), name


def names(request, key):
    """Whether a request gives a value for an input."""
    values = request.get("inputs", request.get("instances"))
    instance = values[0] if isinstance(values, list) and values else values
    return isinstance(instance, dict) and key in instance


def in_rows(outputs, name):
    """Outputs by name for each image, lists of JSON."""
    if len({array.shape[:1] for array in outputs.values()} | {()}) > 2 or not all(map(np.ndim, outputs.values())):
        raise ValueError(f"Expected 'inputs' instead of 'instances': outputs of {name} are not one per image.")
    lists = [array.tolist() for array in outputs.values()]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*lists, strict=True)]


def parsed(body):
    """The JSON object of a predict request, with the keys that it may have."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a body of JSON; received what is none: {error}.") from error
    return checked(request)


def checked(request):
    """A decoded predict request, with the keys that it may have."""
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise ValueError("Expected a JSON object with either 'instances' or 'inputs'.")
    if not set(request) <= KEYS:
        others = ", ".join(sorted(set(request) - KEYS))
        raise ValueError(f"Expected no other keys than {', '.join(sorted(KEYS))}; received {others:.200}.")
    if not isinstance(request.get("signature_name", ""), str):
        raise ValueError(f"Expected 'signature_name' as a string; received {kind(request['signature_name'])}.")
    return request


def rows(instances, infos):
    """Values by input name of a list with one value, or one object of values, per image."""
    if not isinstance(instances, list) or not instances:
        raise ValueError(f"Expected 'instances', a list with one entry per image; received {kind(instances)}.")
    if not all(isinstance(row, dict) and set(row) == set(infos) for row in instances):
        return columns(instances, infos)
    return {key: [row[key] for row in instances] for key in infos}


def columns(value, infos):
    """Values by input name of an object with these, or of the value of the only input."""
    if isinstance(value, dict) and set(value) != {"b64"}:
        return value
    if len(infos) > 1:
        raise ValueError(f"Expected values of the inputs {', '.join(infos)} by name.")
    return dict.fromkeys(infos, value)


def tensor(name, value, info):
    """Array for an input from JSON: numbers of its kind; bytes from ``{"b64": ...}`` or strings."""
    dtype = DTYPES.get(info["dtype"])
    if dtype is None:
        raise ValueError(f"{name} is of {dtype_name(info['dtype'])}, which is not known here.")
    if isinstance(value, list) and len(value) > MAX_IMAGES:
        raise ValueError(f"Expected at most {MAX_IMAGES} images in a request; received {len(value)} of {name}.")
    return numbers(name, np.array(value, "object"), dtype)  # which keeps every value as it is


def numbers(name, cells, dtype):
    """Array of a dtype from one of objects out of JSON; bytes of a dtype ``object``."""
    if dtype == DTYPES[STRING]:
        return np.asarray(np.frompyfunc(text, 1, 1)(cells), "object")
    if not set(map(type, cells.ravel())) <= TYPES.get(dtype, INTEGERS):
        raise ValueError(f"Expected {dtype} values in lists of equal lengths for {name}; received others.")
    try:
        with np.errstate(over="ignore"):  # to infinity, which the graph refuses
            array = cells.astype(dtype)
        fits = array.dtype.kind not in "iu" or (array == cells).all()
    except OverflowError:
        fits = False
    if not fits:
        raise ValueError(f"Expected {dtype} values for {name}; received larger ones than these can be.")
    return array


def text(value):
    """Bytes of a JSON string, or of an object with these in base64."""
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError as error:
            raise ValueError(f"Expected base64 as 'b64'; received what is none: {error}.") from error
    if not isinstance(value, str):
        raise ValueError(f'Expected a string or {{"b64": string}}; received {kind(value)}.')
    return value.encode()


def kind(value):
    """What a value of JSON is, for messages."""
    names = {dict: "an object", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return names.get(type(value), "null")
