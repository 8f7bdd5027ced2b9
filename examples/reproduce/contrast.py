"""How alike the explanations of two classes are under LRP, CLRP1 and CLRP2: mean cosine similarity (thesis 2.5.1).

    python examples/reproduce/contrast.py --squeezenet squeezenet.npz --images ze*.jpg el*.png
    python examples/reproduce/contrast.py --squeezenet squeezenet.npz --images ze*.jpg el*.png --rules z_plus thesis
    python examples/reproduce/contrast.py --dataset mnist

With --squeezenet: zebra and African elephant (340, 386), z^beta on the first convolution, z+ elsewhere. Its features go
through global average pooling, by contribution under z_plus; the rules of thesis 2.3.1 share relevance evenly there, so
that much of it lies where nothing is: they are here for comparison only. Without: a ConvNet with fully connected layers
is trained; of its test images the two classes with the highest scores are compared. Writes a JSON, by default beside
this script in results/.
"""

import argparse
import hashlib
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import squeezenet
from explain_cnn import read
from provenance import write_json

from keras_capsvit import ConvNetFC, data, explain, training

EXPLAINERS = {"LRP": None, "CLRP1": "others", "CLRP2": "negated"}


def cosines(model, x, classes, rules, input_range):
    """Cosine similarity of the maps of two classes ``(b, 2)`` by explainer: mean, and of each image."""
    found = {}
    for name, variant in EXPLAINERS.items():
        settings = {"rules": rules, "input_range": input_range}
        explainer = explain.CLRP(model, variant, **settings) if variant else explain.LRP(model, **settings)
        first, second = np.moveaxis(explainer(x, classes).reshape(len(x), 2, -1), 1, 0).astype("float64")
        sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        alike = np.divide((first * second).sum(1), sizes, where=sizes > 0, out=np.zeros(len(x)))
        found[name] = {"mean": round(alike.mean(), 4), "images": alike.round(4).tolist()}
        print(f"{rules:8} {name:6} {alike.mean():.3f}", flush=True)
    return found


def of_squeezenet(args):
    model = squeezenet.squeezenet(args.squeezenet)
    x = squeezenet.preprocess(np.stack([read(path, squeezenet.SIZE) for path in args.images]))
    classes = np.tile([340, 386], (len(x), 1))
    ranks = (-model.predict(x, verbose=0)).argsort(1).argsort(1)
    result = {rules: cosines(model, x, classes, rules, squeezenet.input_range()) for rules in args.rules}
    digest = hashlib.sha256(args.squeezenet.read_bytes()).hexdigest()
    ranked = {path.name: np.take(row, [340, 386]).tolist() for path, row in zip(args.images, ranks, strict=True)}
    return result, {"model": "squeezenet", "weights_sha256": digest, "ranks": ranked}


def of_trained(args):
    keras.utils.set_random_seed(args.seed)
    train, test = data.load(args.dataset, batch_size=64, data_dir=args.data_dir, seed=args.seed)
    shape, classes = train.element_spec[0].shape[1:], data.info(args.dataset).num_classes
    model = ConvNetFC(shape, classes, filters=(32, 32, 32))
    recipe = training.Recipe(args.epochs, 64, learning_rate=0.001, schedule="cosine", loss="cross_entropy")
    history = training.fit(model, train, test, recipe, verbose=0).history
    x, _ = data.take(test, args.examples)
    top = np.argsort(-model.predict(x, verbose=0))[:, :2]
    result = {rules: cosines(model, x, top, rules, (0, 1)) for rules in args.rules}
    return result, {"model": model.get_config(), "test_accuracy": history["val_accuracy"][-1], "images": len(x)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squeezenet", type=pathlib.Path, metavar="NPZ")
    parser.add_argument("--images", type=pathlib.Path, nargs="+")
    parser.add_argument("--rules", nargs="+", default=["z_plus"], help="see explain.LRP")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=200, help="test images to explain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    args = parser.parse_args()
    if args.squeezenet and not args.images:
        parser.error("--squeezenet needs --images with a zebra and an elephant")
    name = "squeezenet" if args.squeezenet else f"convnet_fc_{args.dataset}"
    args.out = args.out or pathlib.Path(__file__).parent / "results" / f"contrast_{name}.json"
    started = time.perf_counter()
    result, how = of_squeezenet(args) if args.squeezenet else of_trained(args)
    args.squeezenet, args.images = None, [path.name for path in args.images or ()]  # which, not where
    write_json(args.out, result=result, options=args, seconds=round(time.perf_counter() - started), **how)
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
