"""TF Serving's REST API over HTTP: waitress, with limits, and every error as JSON.

Requests are read whole before one of the threads answers them, so that slow clients hold none; those that wait are as
many as connections are let in, and further connections wait to be accepted. What is refused is answered
``{"error": "..."}``, as TF Serving does: 400 for what is wrong with a request, 404 for another address, 405 for another
method, 408 for a request that does not end, 411 without a length, 413 and 431 for too much, 500 and 501 for what the
server cannot do, 503 where it runs out of memory.
"""

import contextlib
import http
import json
import re

import rest
from c_api import TensorFlowError
from versions import NotServedError
from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask

MAX_BODY = 2**25  # bytes; numbers take up to twenty times as many once they are parsed
LIMITS = {
    "threads": 4,
    "connection_limit": 256,
    "backlog": 1024,  # connections that wait to be accepted
    "channel_timeout": 30,  # seconds without a byte
    "cleanup_interval": 5,  # seconds between looks for connections that time out
    "max_request_header_size": 2**12,
    "max_request_body_size": 4 * MAX_BODY,  # up to here a body is read to its end, or its sender might miss the answer
    "outbuf_high_watermark": 2**30,  # answers go to a file, so that those who do not read theirs hold no thread
}
ADDRESS = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>0|[1-9][0-9]{0,17})|/labels/(?P<label>[^/:]+))?"
    r"(?P<verb>:predict|/metadata)?"
)
STATUS = {3: 400, 8: 503, 11: 400, 14: 503}  # of TensorFlow's codes; others are 500


class RefusedError(Exception):
    """A request that is refused with an HTTP status."""

    def __init__(self, status, message, headers=()):
        super().__init__(message)
        self.status, self.headers = status, list(headers)


def start(models, port, **limits):
    """A server that answers when it is ``run``, on its ``effective_port``.

    Args:
        models: Models.
        port: int; 0 for any that is free.
        **limits: other values than those of ``LIMITS``.
    """
    server = create_server(application(models), host="127.0.0.1", port=port, **{**LIMITS, **limits})
    server.channel_class = Channel
    return server


def application(models):
    """WSGI application."""
    verbs = {
        None: ("GET", lambda version, _: rest.status(models.states(**version))),
        "/metadata": ("GET", lambda version, _: rest.metadata(models, version)),
        ":predict": ("POST", lambda version, body: rest.predict(models, version, body)),
    }

    def answered(request):
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        address = ADDRESS.fullmatch(path)
        if not address:
            raise RefusedError(404, f"{method} {path}: served are /v1/models/{', '.join(models.names)}.")
        allowed, answer = verbs[address["verb"]]
        if method != allowed:
            raise RefusedError(405, f"{method} {path}: expected {allowed}.", [("Allow", allowed)])
        if method == "POST" and "CONTENT_LENGTH" not in request:
            raise RefusedError(411, f"{method} {path}: expected a body, with Content-Length or in chunks of HTTP/1.1.")
        if int(request.get("CONTENT_LENGTH", 0)) > MAX_BODY:
            raise RefusedError(413, f"Expected a body of at most {MAX_BODY} bytes; received more. Send fewer images.")
        number = None if address["version"] is None else int(address["version"])
        version = {"name": address["name"], "number": number, "label": address["label"]}
        return answer(version, request["wsgi.input"].read())

    def respond(request, start_response):
        status, headers = 200, []
        try:
            answer = answered(request)
        except RefusedError as error:
            status, headers, answer = error.status, error.headers, told(error)
        except NotServedError as error:
            status, answer = 404, told(error)
        except TensorFlowError as error:
            status, answer = STATUS.get(error.code, 500), told(error)
        except (ValueError, RecursionError) as error:
            status, answer = 400, told(error)
        except MemoryError:
            status, answer = 503, told("There is not enough memory for the request. Send fewer images.")
        content = encoded(answer)
        start_response(f"{status} {http.HTTPStatus(status).phrase}", [*headers, *about(content)])
        return [] if request["REQUEST_METHOD"] == "HEAD" else [content]

    return respond


def told(error):
    """What is answered to a request that is refused."""
    return {"error": str(error)}


def encoded(answer):
    """Bytes of JSON."""
    return json.dumps(answer).encode()


def about(content):
    """Headers of an answer."""
    return [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]


class Refusal(ErrorTask):
    """What waitress refuses before the application sees it, told as JSON instead of text."""

    def execute(self):
        error = self.request.error
        content = encoded(told(f"{error.reason}: {error.body}"))
        self.status = f"{error.code} {error.reason}"
        self.response_headers.extend(about(content))
        self.set_close_on_finish()
        self.content_length = len(content)
        self.write(content)


class Parser(HTTPRequestParser):
    """A parser that refuses the addresses that Python's own raises errors for."""

    def parse_header(self, header_plus):
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise ParsingError(str(error)) from error


class Channel(HTTPChannel):
    """A connection with the two, which tells before it is closed that a request did not end."""

    error_task_class = Refusal
    parser_class = Parser

    def handle_close(self):
        if self.request is not None and not self.requests:
            content = encoded(told("Expected the rest of the request, as long as its headers say; received none."))
            lines = ["HTTP/1.1 408 Request Timeout", "Connection: close", *map(": ".join, about(content))]
            with contextlib.suppress(OSError):  # of those who are gone
                self.socket.send("\r\n".join([*lines, "", ""]).encode() + content)
            self.request = None
        super().handle_close()
