"""Serves SavedModels as TF Serving does, over REST and gRPC, through TensorFlow's C API; for tries and tests.

    python examples/serve/server.py saved_models/digits_gracapsnet                          # REST on port 8501
    python examples/serve/server.py saved_models/digits_gracapsnet --grpc-port 8500
    python examples/serve/server.py saved_models/a saved_models/b --versions 3              # the latest three of each

Models are called like their folders, in which new versions are looked for every second: one is loaded, and warmed up,
before the one before it goes. Prints an address per line when it answers. There is no batching, and Python answers:
where it matters, run TF Serving on the same folders. REST needs NumPy, protobuf and waitress only, gRPC
tensorflow-serving-api, too (``pip install -e ".[serving]"``).
"""

import argparse
import pathlib
import signal
import sys

from versions import Config, Models, NotServedError


def configs(args):
    """What is to be served, by the names of the folders."""
    folders = [path.resolve() for path in args.paths]
    missing = [str(path) for path in folders if not path.is_dir()]
    if missing:
        raise ValueError(f"Expected folders of SavedModels or of their versions; {', '.join(missing)} are none.")
    latest = None if args.versions == "all" else int(args.versions)
    named = [
        (path.parent if path.name.isdigit() and (path / "saved_model.pb").is_file() else path).name for path in folders
    ]
    if args.name:
        named[0] = args.name
    return [Config(name, path, latest) for name, path in zip(named, folders, strict=True)]


def counted(text):
    """What ``--versions`` may be."""
    if text != "all" and not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number from 1, or all; received {text}")
    return text


def troubles(models, name):
    """Lines about versions that are not served."""
    try:
        states = models.states(name)
    except NotServedError as error:
        return [f"{error} It is looked for."]
    return [f"version {number} is not served: {message}" for number, state, _, message in states if state == "END"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=pathlib.Path, help="folders of SavedModels, or of version folders")
    parser.add_argument("--rest-port", type=int, default=8501, help="0 for any that is free")
    parser.add_argument("--grpc-port", type=int, help="0 for any that is free; no gRPC if not given")
    parser.add_argument("--name", help="of the first model; default: that of its folder")
    parser.add_argument("--versions", type=counted, default="1", help="how many, the highest ones; or all")
    parser.add_argument("--poll", type=float, default=1.0, help="seconds between looks for new versions")
    args = parser.parse_args()
    try:
        import http_server

        if args.grpc_port is not None:
            import grpc_server
    except ImportError as error:
        raise SystemExit(
            f'Serving needs waitress and tensorflow-serving-api: pip install -e ".[serving]" ({error}).'
        ) from error
    try:
        models = Models(configs(args), None if args.grpc_port is None else grpc_server.warm_up)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for name in models.names:
        for line in troubles(models, name):
            print(f"{name}: {line}", file=sys.stderr, flush=True)
    models.watch(args.poll)
    grpc = None
    if args.grpc_port is not None:
        grpc, port = grpc_server.start(models, args.grpc_port)
        print(f"grpc://localhost:{port}", flush=True)
    http = http_server.start(models, args.rest_port)
    for name in models.names:
        print(f"http://localhost:{http.effective_port}/v1/models/{name}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        http.run()  # until it is interrupted, or terminated
    finally:
        http.close()
        if grpc is not None:
            grpc.stop(grace=1).wait()
        models.close()


if __name__ == "__main__":
    main()
