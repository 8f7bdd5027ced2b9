"""A patch attack against the gradients that it needs: those of the images not fooled yet, one compiled call per step.

    python examples/benchmarks/patch_attack.py
    python examples/benchmarks/patch_attack.py --model resnet20 --steps 50

Both take turns in one process; medians, ranges, and the ratio of medians. The networks are not trained, and attacked
on noise, with their own answers as labels.
"""

import argparse
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from timing import add_clock, alternate, noise, report

from keras_capsvit import attacks, autodiff
from keras_capsvit.models import ResNet20, VisionTransformer

MODELS = {
    "resnet20": lambda: ResNet20((32, 32, 3), 10),
    "vit": lambda: VisionTransformer("Ti/4", input_shape=(32, 32, 3), num_classes=10, width=96, depth=4, num_heads=3),
}


def gradients(model, result, y):
    """As many gradients of the loss, and of as many images each, as the attack took."""
    objective = attacks.logits(model)
    gradient = autodiff.value_and_gradient(objective.loss, objective.variables)
    steps = result.iterations.max()
    needed = [np.flatnonzero(~result.fooled | (result.iterations >= step)) for step in range(steps)]

    def run():
        for left in needed:
            slope = gradient(result.images[left], y[left])[1]
        return keras.ops.convert_to_numpy(slope)

    return run, sum(map(len, needed))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit", choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    add_clock(parser)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = MODELS[args.model]()
    x = noise(args.batch_size, *model.input_shape[1:])
    y = model.predict(x, verbose=0).argmax(axis=1)
    attack = attacks.PatchAttack(args.patch_size, positions=[(8, 8)], steps=args.steps)
    result = attack.run(model, x, y)
    alone, count = gradients(model, result, y)
    print(
        f"{args.model}, batch {args.batch_size}, up to {args.steps} steps: {result.fooled.mean():.0%} fooled, "
        f"{len(np.unique(result.iterations[result.fooled]))} departures, {count} gradients of an image"
    )
    runs = {"gradients alone": alone, "attack": lambda: attack.run(model, x, y)}
    report(alternate(runs, args.rounds, clock=args.clock))


if __name__ == "__main__":
    main()
