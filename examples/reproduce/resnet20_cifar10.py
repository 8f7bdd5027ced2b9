"""Accuracy of a trained ResNet-20 on CIFAR-10 (the backbone of thesis Table 3.2), from published weights.

    python examples/reproduce/resnet20_cifar10.py --weights resnet20_cifar10.npz

The file holds arrays by the names of ``published_names``; its network normalises pixels by ImageNet's mean and standard
deviation. Writes a JSON with the accuracy on the prepared test images, by default beside this script in results/.
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

from keras_capsvit import data
from keras_capsvit.models.resnet import ResNet20
from keras_capsvit.models.weights import load_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help=".npz or .safetensors file")
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results" / "resnet20_cifar10.json",
        help="JSON file",
    )
    args = parser.parse_args()
    model = ResNet20((32, 32, 3), 10, mean=MEAN, std=STD)
    load_weights(model, args.weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"])
    test = data.load("cifar10", split="test", data_dir=args.data_dir)
    started = time.perf_counter()
    found = model.evaluate(test, verbose=0, return_dict=True)
    seconds = round(time.perf_counter() - started)
    examples = sum(len(y) for _, y in test)
    digest = hashlib.sha256(args.weights.read_bytes()).hexdigest()
    args.weights = args.weights.name  # which file, not where it lies
    write_json(
        args.out,
        result={"test_accuracy": found["accuracy"], "test_loss": found["loss"]},
        options=args,
        model=model.get_config(),
        weights_sha256=digest,
        test_examples=examples,
        seconds=seconds,
    )
    print(f"Accuracy {found['accuracy']:.4f} on {examples} test images. Wrote {args.out}")


if __name__ == "__main__":
    main()
