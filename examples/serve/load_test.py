"""Many clients at server.py at once: is every request answered, rightly, and do its limits hold?

    python examples/serve/load_test.py saved_models/digits_gracapsnet --clients 64 --requests 50
    python examples/serve/load_test.py saved_models/digits_gracapsnet --clients 32 --grpc

Every client asks one endpoint after another about images of noise, never twice, and compares the answers with those of
the SavedModel in this process. Meanwhile requests beyond the limits are sent. Prints what became of them all, and ends
with status 1 if a request was lost or answered wrongly, or a limit did not hold.
"""

import argparse
import base64
import collections
import contextlib
import functools
import io
import json
import pathlib
import resource
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib

import numpy as np
from c_api import DTYPES, STRING, SavedModel, newest
from client import Grpc, Rest, ServingError
from http_server import LIMITS, MAX_BODY
from PIL import Image
from rest import MAX_IMAGES

TOLERANCE = 1e-4
SERVER = pathlib.Path(__file__).with_name("server.py")


@contextlib.contextmanager
def stand_in(path, *options, grpc=False):
    """URL of server.py, name of the model in it, and its address of gRPC or None, while the block runs.

    Args:
        path: of a SavedModel, or its version folders.
        *options: further ones of the command.
        grpc: bool, whether it answers gRPC, too.
    """
    command = [sys.executable, str(SERVER), str(path), "--rest-port", "0", *options, *(["--grpc-port", "0"] * grpc)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            address = process.stdout.readline().strip().removeprefix("grpc://") if grpc else None
            url, _, name = process.stdout.readline().strip().partition("/v1/models/")
            if not name:
                raise RuntimeError(f"The server did not start: try {' '.join(command)}.")
            yield url, name, address
        finally:
            process.terminate()


def questions(model, count, endpoints=None):
    """Triples of an endpoint, inputs by name, and expected outputs by name.

    Args:
        model: SavedModel of c_api.py.
        count: int.
        endpoints: names of those to ask, which take images or files alone; None for all.
    """
    random = np.random.default_rng(0)
    kinds = {name: signature["inputs"] for name, signature in model.signatures.items() if len(signature["inputs"]) == 1}
    height, width, channels = next(info["images"]["shape"][1:] for info in kinds.values() if "images" in info)
    endpoints = list(endpoints or kinds)
    asked = []
    for number in range(count):
        name = endpoints[number % len(endpoints)]
        ((key, info),) = kinds[name].items()
        pixels = random.integers(0, 256, (height, width, channels), "uint8")
        if info["dtype"] == STRING:
            value = [encoded(pixels)]
            inputs = {key: np.array(value, "object")}
        else:
            kind = DTYPES[info["dtype"]]
            value = (pixels[None] / (255 if kind.startswith("float") else 1)).astype(kind)
            inputs = {key: value}
        asked.append((name, {key: value}, model.run(name, inputs)))
    return asked


def encoded(pixels):
    """PNG of pixels ``(H, W, C)`` of uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "png")
    return file.getvalue()


def load(connect, asked, clients):
    """Ask all questions, in as many threads as there are clients.

    Args:
        connect: callable without arguments that returns a client, see client.py.
        asked: list, see ``questions``.
        clients: int.

    Returns:
        Counter of ``right``, ``wrong`` and what was lost by its error; list of seconds per answer.
    """
    ends, seconds = collections.Counter(), []

    def ask(own):
        client = connect()
        for endpoint, inputs, expected in own:
            started = time.perf_counter()
            try:
                outputs = client.predict(endpoint, inputs)
                same = set(outputs) == set(expected) and all(
                    np.allclose(outputs[key], value, atol=TOLERANCE, rtol=TOLERANCE) for key, value in expected.items()
                )
                ends["right" if same else "wrong"] += 1
            except ServingError as error:
                ends[f"lost: {error}"] += 1
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask, args=(asked[offset::clients],)) for offset in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends, seconds


def exchange(url, data, timeout=60.0, ends=False):
    """What a server answers to bytes, as status and JSON.

    Args:
        url: str, of the server.
        data: bytes.
        timeout: float, seconds.
        ends: bool, whether nothing more is sent afterwards.

    Returns:
        Pair of an int and the decoded body.
    """
    address = urllib.parse.urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout) as connection:
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = dict(line.decode().rstrip().lower().split(": ") for line in iter(answer.readline, b"\r\n"))
            return status, json.loads(answer.read(int(headers["content-length"])))


def leave(url, data):
    """Send bytes, and be gone."""
    address = urllib.parse.urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(data)


def post(name, body, headers=""):
    """Bytes of a predict request, of a body of bytes or of what is put into JSON."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST /v1/models/{name}:predict HTTP/1.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def bomb(width, height):
    """PNG of a few bytes that says it is of this size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def beyond(url, name):
    """Rows of a limit, what was sent, and whether the answer was the expected status."""
    image = {"b64": base64.b64encode(bomb(16_000, 16_000)).decode()}
    bodies = {
        f"body of {MAX_BODY:,} bytes": (413, post(name, b" " * (MAX_BODY + 1))),
        f"headers of {LIMITS['max_request_header_size']:,} bytes": (431, post(name, b"", "A: b\r\n" * 1000)),
        f"{MAX_IMAGES} images": (400, post(name, {"instances": [0] * (MAX_IMAGES + 1)})),
        "pixels of a PNG": (400, post(name, {"signature_name": "serve_bytes", "instances": [image]})),
    }
    for limit, (expected, data) in bodies.items():
        status, answer = exchange(url, data)
        yield limit, f"{status}: {answer.get('error', answer)}", status == expected and "error" in answer


def crowd(url, name):
    """Row as of ``beyond``: with all connections taken, one more waits, and is answered when there is room."""
    address, limit = urllib.parse.urlsplit(url), LIMITS["connection_limit"]
    with contextlib.ExitStack() as idle:
        for _ in range(limit):
            idle.enter_context(socket.create_connection((address.hostname, address.port)))
        time.sleep(1)
        try:
            exchange(url, f"GET /v1/models/{name} HTTP/1.1\r\n\r\n".encode(), timeout=1)
            waited = False
        except TimeoutError:
            waited = True
    status, _ = exchange(url, f"GET /v1/models/{name} HTTP/1.1\r\n\r\n".encode())
    return f"{limit} connections", f"one more {'waited' if waited else 'was let in'}, then {status}", waited


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, help="folder of a SavedModel, or of its version folders")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=50, help="of each client")
    parser.add_argument("--grpc", action="store_true", help="ask by gRPC instead of REST")
    args = parser.parse_args()
    asked = questions(SavedModel(newest(args.path)), args.clients * args.requests)
    with stand_in(args.path, grpc=args.grpc) as (url, name, address):
        limits = []
        others = threading.Thread(target=lambda: limits.extend(beyond(url, name)))
        others.start()
        started = time.perf_counter()
        connect = (Grpc, address, name) if args.grpc else (Rest, url, name)
        ends, seconds = load(functools.partial(*connect, timeout=60), asked, args.clients)
        took = time.perf_counter() - started
        others.join()
        limits.append(crowd(url, name))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    slices = statistics.quantiles(seconds, n=100)
    print(f"{args.clients} clients with {args.requests} requests each, {ends.total()} of {len(asked)} in {took:.1f} s")
    for end, count in ends.most_common():
        print(f"  {end}: {count}")
    print(
        f"  {len(asked) / took:.0f} answers a second; of seconds per answer the median {slices[49]:.2f}, 99 % below ",
        end="",
    )
    print(f"{slices[98]:.2f}, the longest {max(seconds):.2f}; memory of the server at most {memory:.0f} MB")
    for limit, answer, holds in limits:
        print(f"  limit of {limit}: {'holds' if holds else 'DOES NOT HOLD'}, {answer:.110}")
    raise SystemExit(ends["right"] != len(asked) or not all(holds for *_, holds in limits) or len(limits) != 5)


if __name__ == "__main__":
    main()
