"""Latency of SavedModels against calling the Keras models that they were exported from; their sizes and load times.

    python examples/benchmarks/serve.py
    python examples/benchmarks/serve.py --models gracapsnet --timed gracapsnet --batch-sizes 1 --rounds 200

Models are not trained. Sizes are of --models, latencies of --timed, medians and ranges of calls that take NumPy arrays,
give NumPy arrays and take turns in one process, with ratios to ``tf.function``, the fastest call of a Keras model: of
medians, and the median of those within a turn, which other work on the machine disturbs less.
``ServedModel`` is what ``serving.load`` returns, ``signature`` is of what ``tf.saved_model.load`` does; both also tell
the class and look for NaN. Writes OUT/latency.json and OUT/size.json.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from timing import alternate, noise

from keras_capsvit import evaluate, serving
from keras_capsvit.models import (
    AffCapsNet,
    CapsNet,
    ConvNetAvg,
    DeiT,
    GraCapsNet,
    ResNet18,
    ResNet20,
    VisionTransformer,
)

SMALL, COLOUR = ((28, 28, 1), 10), ((32, 32, 3), 10)
MODELS = {
    "gracapsnet": lambda: GraCapsNet(*SMALL),
    **{
        f"capsnet, {routing}": lambda routing=routing: CapsNet(*SMALL, routing=routing, filters=64, num_types=8)
        for routing in ("dynamic", "rolled", "trainable", "uniform", "em", "self")
    },
    "affcapsnet": lambda: AffCapsNet(*SMALL, filters=64, num_types=8),
    "convnet": lambda: ConvNetAvg(*SMALL),
    "resnet20": lambda: ResNet20(*COLOUR),
    "resnet18": lambda: ResNet18(*COLOUR),
    "vit": lambda: VisionTransformer("Ti/4", input_shape=COLOUR[0], num_classes=10),
    "deit": lambda: DeiT("Ti/16", distilled=True),
}


def calls(model, folder, x):
    """Ways to score images, by name."""
    compiled = tf.function(lambda images: model(images, training=False))
    served = serving.load(folder)
    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures["serving_default"]
    return {
        "tf.function": lambda: compiled(tf.constant(x)).numpy(),
        "model(x)": lambda: model(x, training=False).numpy(),
        "predict_on_batch": lambda: model.predict_on_batch(x),
        "ServedModel": lambda: served(x).numpy(),
        "signature": lambda loaded=loaded: signature(images=tf.constant(x))["outputs"].numpy(),
    }


def latency(name, model, folder, batch_size, rounds):
    """Rows with the milliseconds of all calls for one batch size."""
    x = noise(batch_size, *model.input_shape[1:])
    runs = calls(model, folder, x)
    expected = runs["tf.function"]()
    for run in runs.values():
        np.testing.assert_allclose(run(), expected, rtol=1e-4, atol=1e-5)
    times = alternate(runs, rounds, warm_up=3)
    reference = times["tf.function"]
    return [
        {
            "model": name,
            "batch": batch_size,
            "call": call,
            "ms": round(1e3 * statistics.median(seconds), 3),
            "least": round(1e3 * min(seconds), 3),
            "most": round(1e3 * max(seconds), 3),
            "ratio": round(statistics.median(seconds) / statistics.median(reference), 3),
            "pairwise": round(statistics.median(b / a for a, b in zip(reference, seconds, strict=True)), 3),
        }
        for call, seconds in times.items()
    ]


def size(name, model, folder, exporting):
    """Row with megabytes on disk and seconds to export, to load, and of the first call."""
    started = time.perf_counter()
    served = serving.load(folder)
    loading = time.perf_counter() - started
    served(np.zeros((1, *model.input_shape[1:]), "float32"))
    first_call = time.perf_counter() - started - loading
    files = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    weights = sum(count for file, count in files.items() if file.startswith("variables"))
    return {
        "model": name,
        "parameters": model.count_params(),
        "endpoints": len(served.endpoints),
        "weights MB": round(weights / 1e6, 2),
        "graph MB": round(files["saved_model.pb"] / 1e6, 2),
        "export s": round(exporting, 2),
        "load s": round(loading, 2),
        "first call s": round(first_call, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--timed", nargs="*", default=["gracapsnet", "resnet20", "vit"], choices=list(MODELS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=pathlib.Path, help="folder for the two .json files")
    args = parser.parse_args()
    latencies, sizes = [], []
    for name in dict.fromkeys((*args.models, *args.timed)):
        keras.utils.set_random_seed(0)
        model = MODELS[name]()
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            version = serving.export(model, folder)
            sizes.append(size(name, model, version, time.perf_counter() - started))
            for batch_size in args.batch_sizes if name in args.timed else ():
                latencies += latency(name, model, version, batch_size, args.rounds)
    for name, rows in (("latency", latencies), ("size", sizes)):
        table = evaluate.Table(rows)
        print(f"{table}\n")
        if args.out:
            table.to_json(args.out / f"{name}.json", rounds=args.rounds, cores=os.cpu_count())


if __name__ == "__main__":
    main()
