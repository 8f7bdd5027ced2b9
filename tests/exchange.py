"""Models that one backend writes and the other reads: .keras files go both ways.

    KERAS_BACKEND=tensorflow python tests/exchange.py write FOLDER     # in an environment with TensorFlow
    KERAS_BACKEND=jax python tests/exchange.py read FOLDER             # in one without

``write`` trains a model of each family for a step, and keeps it with its scores; ``read`` fails where they differ by
more than rounding. Needs no TensorFlow on JAX.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_capsvit import CapsNet, ConvNetCR, GraCapsNet, MarginLoss, ResNet20, VisionTransformer, load_model
from keras_capsvit.losses import CrossEntropy

SHAPE, CLASSES = (16, 16, 3), 4
SMALL = {"num_types": 2, "primary_dim": 4, "capsule_dim": 4, "filters": 8, "kernel_size": 5}
FAMILIES = {
    "capsnet": lambda: CapsNet(SHAPE, CLASSES, reconstruction="conditional", **SMALL),
    "em": lambda: CapsNet(SHAPE, CLASSES, routing="em", **{**SMALL, "primary_dim": 16, "capsule_dim": 16}),
    "gracapsnet": lambda: GraCapsNet(SHAPE, CLASSES, num_heads=2, primary_dim=4, capsule_dim=4, filters=8),
    "convnet": lambda: ConvNetCR(SHAPE, CLASSES, kernel_size=5),
    "resnet20": lambda: ResNet20(SHAPE, CLASSES),
    "vit": lambda: VisionTransformer(
        "Ti/4", input_shape=SHAPE, num_classes=CLASSES, width=16, depth=2, num_heads=2, mlp_units=16
    ),
}


def images(model):
    return np.random.default_rng(0).uniform(size=(4, *model.input_shape[1:])).astype("float32")


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in FAMILIES.items():
        keras.utils.set_random_seed(0)
        model = build()
        x, y = images(model), np.arange(4) % CLASSES
        of_lengths = hasattr(model, "reconstruct") or name in ("em", "gracapsnet")
        model.compile("adam", MarginLoss() if of_lengths else CrossEntropy())
        model.fit(x, y, verbose=0)
        model.save(folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", model.predict(x, verbose=0))
        print(f"wrote {name}")


def read(folder):
    for name in FAMILIES:
        model, expected = load_model(folder / f"{name}.keras"), np.load(folder / f"{name}.npy")
        scores = model.predict(images(model), verbose=0)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        model.fit(images(model), np.arange(4) % CLASSES, verbose=0)  # its optimizer, too
        print(f"read {name}: scores differ by {np.abs(scores - expected).max():.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "read"))
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    {"write": write, "read": read}[args.action](args.folder)


if __name__ == "__main__":
    main()
