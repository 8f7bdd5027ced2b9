"""Accuracy of ResNets with published weights on CIFAR-10 (He et al. 2016, 4.2; of 20 layers thesis Table 3.2).

    python examples/reproduce/resnet_cifar10.py --weights 20=resnet20_cifar10.npz 56=resnet56_cifar10.safetensors

A .npz file holds arrays by the names and in the layout of ``published_names``, a .safetensors file has PyTorch's. The
networks normalise pixels by ImageNet's mean and standard deviation. Writes a JSON with the accuracies on the prepared
test images, by default beside this script in results/.
"""

import argparse
import hashlib
import os
import pathlib
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from provenance import write_json

from keras_capsvit import ResNet, data, load_weights, load_weights_from

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def depth_and_file(text):
    depth, equals, path = text.partition("=")
    if not (equals and depth.isdigit()):
        raise argparse.ArgumentTypeError(f"expected DEPTH=FILE; received {text}")
    return int(depth), pathlib.Path(path)


def measure(depth, path, test):
    """Accuracy and loss of the network of a depth with the weights of a file."""
    model = ResNet((32, 32, 3), 10, depth=depth, mean=MEAN, std=STD)
    (load_weights if path.suffix == ".npz" else load_weights_from)(model, path)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    started = time.perf_counter()
    result = model.evaluate(test, verbose=0, return_dict=True)
    seconds = round(time.perf_counter() - started)
    print(f"{model.name}: accuracy {result['accuracy']:.4f}", flush=True)
    how = {"seconds": seconds, "model": model.get_config()}
    how["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"test_accuracy": result["accuracy"], "test_loss": result["loss"]}, how


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=depth_and_file, nargs="+", required=True, metavar="DEPTH=FILE")
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results" / "resnet_cifar10.json",
        help="JSON file",
    )
    args = parser.parse_args()
    test = data.load("cifar10", split="test", data_dir=args.data_dir)
    measured = {f"resnet{depth}": measure(depth, path, test) for depth, path in args.weights}
    args.weights = {depth: path.name for depth, path in args.weights}  # which files, not where they lie
    write_json(
        args.out,
        result={name: result for name, (result, _) in measured.items()},
        options=args,
        networks={name: how for name, (_, how) in measured.items()},
        test_examples=sum(len(y) for _, y in test),
    )
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
