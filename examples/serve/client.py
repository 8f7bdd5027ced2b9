"""Asks TF Serving about images, over REST or gRPC.

    python examples/serve/client.py digits_gracapsnet --digits 0 1 2
    python examples/serve/client.py digits_gracapsnet --digits 0 --signature explain --target 3 --out maps.npz
    python examples/serve/client.py digits_gracapsnet one.png two.jpg --signature serve_bytes
    python examples/serve/client.py digits_gracapsnet --digits 0 1 2 --grpc localhost:8500

Prints the class of every image and its score, or its outputs if there are no classes; --out writes all outputs. REST
needs NumPy and Pillow only, gRPC tensorflow-serving-api (``pip install -e ".[serving]"``), digits scikit-learn. What is
not available yet, or does not answer in time, is asked again after 0.2, 0.4, 0.8, ... seconds; what is refused is not.
What goes wrong is told in a line on standard error, with exit status 2.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import pathlib
import random
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image

PREDICTED = -1  # as a target: the predicted class
BUSY = (429, 503, 504)  # HTTP: too many requests, unavailable, not answered in time
HINTS = {
    404: " (Is the model served by that name, in that version?)",
    413: " (Send fewer images in a request.)",
}


class ServingError(Exception):
    """The server refused the request; the message is the server's."""


class UnavailableError(ServingError):
    """There was no answer, or the server asked to try again."""


class Rest:
    """A model behind TF Serving's REST API.

    Args:
        url: str, like ``http://localhost:8501``.
        model: str, its name there.
        timeout: float, seconds for an answer.
    """

    def __init__(self, url, model, *, timeout=10.0):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"Expected a URL like http://localhost:8501; received {url!r}.")
        self.address = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        self.timeout = timeout

    def inputs(self, signature):
        """Dtypes and shapes by name of an endpoint's inputs, -1 where any size is taken."""
        with self._understood():
            answer = self._ask("/metadata")["metadata"]["signature_def"]["signature_def"]
            infos = known(answer, signature)["inputs"]
            sizes = {name: info["tensor_shape"].get("dim", ()) for name, info in infos.items()}
            return {
                name: (dtype(infos[name]["dtype"]), tuple(int(dim["size"]) for dim in sizes[name])) for name in infos
            }

    def predict(self, signature, inputs):
        """Outputs by name: arrays, of inputs by name: arrays, or lists of bytes."""
        columns = {
            name: [{"b64": base64.b64encode(file).decode()} for file in value]
            if isinstance(value, list)
            else value.tolist()
            for name, value in inputs.items()
        }
        with self._understood():
            answer = self._ask(":predict", {"signature_name": signature, "inputs": columns})["outputs"]
            # TF Serving leaves the name of a single one out.
            answer = answer if isinstance(answer, dict) else {"outputs": answer}
            return {name: np.array(value) for name, value in answer.items()}

    def _ask(self, verb, body=None):
        """JSON that the server answers to GET, or to POST of ``body``."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + verb, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            kind = UnavailableError if error.code in BUSY else ServingError
            raise kind(f"HTTP {error.code}: {reason(error)}{HINTS.get(error.code, '')}") from error
        except (OSError, http.client.IncompleteRead) as error:  # refused, reset, timed out
            hint = "Does a server run there, and is --timeout enough?"
            raise UnavailableError(f"{self.address}: {error}. {hint}") from error
        except (http.client.HTTPException, UnicodeError) as error:
            raise ServingError(f"{self.address}: no answer of HTTP: {error!r}. Is it the port of REST?") from error
        return json.loads(content)

    @contextlib.contextmanager
    def _understood(self):
        """Turn what is missing from an answer into an error."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ServingError(f"{self.address}: expected an answer of TF Serving's REST API; got another.") from error


class Grpc:
    """A model behind TF Serving's gRPC API; needs tensorflow-serving-api.

    Args:
        address: str, like ``localhost:8500``.
        model: str, its name there.
        timeout: float, seconds for an answer.
    """

    def __init__(self, address, model, *, timeout=10.0):
        try:
            import grpc
            import tensorflow as tf
            from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError('gRPC needs tensorflow-serving-api: pip install -e ".[serving]"') from error
        self._grpc, self._tf = grpc, tf
        self._about, self._request = get_model_metadata_pb2, predict_pb2.PredictRequest
        limits = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}
        channel = grpc.insecure_channel(address, options=list(limits.items()))
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.model = model
        self.timeout = timeout

    def inputs(self, signature):
        """See Rest."""
        request = self._about.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model
        signatures = self._about.SignatureDefMap()
        self._ask(self._stub.GetModelMetadata, request).metadata["signature_def"].Unpack(signatures)
        infos = known(signatures.signature_def, signature).inputs
        return {
            name: (self._tf.as_dtype(info.dtype).name, tuple(dim.size for dim in info.tensor_shape.dim))
            for name, info in infos.items()
        }

    def predict(self, signature, inputs):
        """See Rest."""
        request = self._request()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(self._tf.make_tensor_proto(value))
        outputs = self._ask(self._stub.Predict, request).outputs
        return {name: self._tf.make_ndarray(value) for name, value in outputs.items()}

    def _ask(self, method, request):
        busy = (self._grpc.StatusCode.UNAVAILABLE, self._grpc.StatusCode.DEADLINE_EXCEEDED)
        try:
            return method(request, timeout=self.timeout)
        except self._grpc.RpcError as error:
            kind = UnavailableError if error.code() in busy else ServingError
            raise kind(f"gRPC {error.code().name}: {error.details()}") from error


def reason(error):
    """Text of an HTTPError; TF Serving's message, where it is one."""
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text


def dtype(name):
    """NumPy's name of a dtype, of that in metadata, such as ``DT_FLOAT``."""
    name = name.removeprefix("DT_").lower()
    return {"float": "float32", "double": "float64", "half": "float16"}.get(name, name)


def known(signatures, name):
    """One of the signatures by name; a ServingError lists those that there are."""
    if name not in signatures:
        raise ServingError(f"Expected a signature among {', '.join(sorted(signatures))}; received {name!r}.")
    return signatures[name]


def retrying(ask, *, retries=5, pause=0.2):
    """What ``ask()`` returns; asked again, ``retries`` times, while it raises UnavailableError.

    Args:
        ask: callable without arguments that may be called again.
        retries: int.
        pause: float, seconds before the first retry; each further one waits about twice as long.
    """
    for attempt in range(retries):
        try:
            return ask()
        except UnavailableError:
            time.sleep(pause * 2**attempt * random.uniform(0.8, 1.2))  # or all clients come back at once
    return ask()


def pictures(paths, digits):
    """Names and encoded images (bytes): files, and scikit-learn's digits by number as PNG."""
    encoded = [(str(path), contents(path)) for path in paths]
    if digits:
        from sklearn.datasets import load_digits

        known = load_digits()
        for number in digits:
            if not 0 <= number < len(known.images):
                raise ValueError(f"Expected --digits from 0 to {len(known.images) - 1}; received {number}.")
            file = io.BytesIO()
            Image.fromarray((known.images[number] * (255 / 16)).round().astype("uint8")).save(file, "png")
            encoded.append((f"digit {number}, a {known.target[number]}", file.getvalue()))
    return encoded


def contents(path):
    """Bytes of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"Expected image files; {path} cannot be read: {error.strerror}.") from error


def decoded(name, encoded, shape, low, high):
    """Pixels ``(H, W, C)`` between low and high of an encoded image, resized to the ``shape`` of a model's input."""
    height, width, channels = shape
    try:
        picture = Image.open(io.BytesIO(encoded))
        if picture.mode.startswith("I"):  # 16 bits, which conversion would cut at 255
            picture = picture.convert("I").point(lambda value: value * (1 / 256))
        picture = picture.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow has many kinds
        raise ValueError(f"{name} is no image that Pillow can read: {error}") from error
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return (low + (high - low) * np.asarray(picture, "float32") / 255).reshape(shape)


def request(specs, images, args):
    """Inputs by name, of ``(name, encoded image)`` pairs, for an endpoint with inputs of these dtypes and shapes."""
    if "encoded" in specs:
        inputs = {"encoded": [encoded for _, encoded in images]}
    elif "images" in specs:
        kind, shape = specs["images"]
        if len(shape) != 4 or min(shape[1:3]) < 1 or shape[3] not in (1, 3):
            raise ValueError(f"Expected an endpoint for images of a fixed size with 1 or 3 channels; it takes {shape}.")
        of_floats = np.issubdtype(kind, np.floating)
        low, high = args.input_range or ((0, 1) if of_floats else (0, 255))
        pixels = np.stack([decoded(*image, shape[1:], low, high) for image in images])
        inputs = {"images": (pixels if of_floats else np.rint(pixels)).astype(kind)}
    else:
        raise ValueError(f"Expected an endpoint of images or encoded; {args.signature} takes {', '.join(specs)}.")
    if "target" in specs:
        inputs["target"] = np.full(len(images), args.target, "int64")
    elif args.target != PREDICTED:
        raise ValueError(f"{args.signature} takes no --target; its inputs are {', '.join(specs)}.")
    return inputs


def described(outputs, index):
    """What outputs say about one image: its class and the score, or all of them."""
    if not {"class", "outputs"} <= set(outputs):
        return ", ".join(str(array[index].tolist()) for array in outputs.values())
    predicted, scores = outputs["class"][index], outputs["outputs"][index]
    return f"class {predicted}, score {scores[predicted if len(scores) > 1 else 0]:.4f}"


def ask(args):
    """Print what the server says about the images, and write it."""
    images = pictures(args.images, args.digits)
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"Expected a folder that exists; {args.out.parent}, the folder of --out, does not.")
    kind, address = (Grpc, args.grpc) if args.grpc else (Rest, args.rest)
    client = kind(address, args.model, timeout=args.timeout)
    specs = retrying(lambda: client.inputs(args.signature), retries=args.retries)
    inputs = request(specs, images, args)
    outputs = retrying(lambda: client.predict(args.signature, inputs), retries=args.retries)
    others = [name for name, array in outputs.items() if array.shape[:1] != (len(images),)]
    if others or not outputs:
        raise ServingError(f"Expected outputs for each of {len(images)} images; received other numbers: {others}.")
    for index, (name, _) in enumerate(images):
        print(f"{name}: {described(outputs, index)}")
    if args.out:
        with args.out.open("wb") as file:
            np.savez(file, **outputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="its name at the server")
    parser.add_argument("images", nargs="*", type=pathlib.Path, help="files")
    parser.add_argument("--digits", nargs="+", type=int, default=[], help="numbers of scikit-learn's 1,797 digits")
    parser.add_argument("--signature", default="serving_default", help="serve_bytes leaves decoding to the server")
    parser.add_argument("--target", type=int, default=PREDICTED, help="class to explain; default: the predicted one")
    parser.add_argument(
        "--input-range", nargs=2, type=float, help="of pixels, in the model card; default: 0 1 of floats"
    )
    parser.add_argument("--rest", default="http://localhost:8501", metavar="URL")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="instead of REST, such as localhost:8500")
    parser.add_argument("--timeout", type=float, default=10, help="seconds for an answer")
    parser.add_argument("--retries", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help=".npz file for the outputs")
    args = parser.parse_intermixed_args()
    if not args.images and not args.digits:
        parser.error("give files or --digits")
    if not 0 < args.timeout < 1e6 or args.retries < 0:
        parser.error("give a --timeout above 0, and --retries from 0")
    if args.input_range and not -np.inf < args.input_range[0] < args.input_range[1] < np.inf:
        parser.error("give the lowest and the highest pixel as --input-range")
    try:
        ask(args)
    except (ServingError, ValueError, OverflowError, OSError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
