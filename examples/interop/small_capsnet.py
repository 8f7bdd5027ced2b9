"""What the three examples share: options, a small capsule network trained on digits, and the line that they print."""

import argparse
import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from keras_capsvit import CapsNet, MarginLoss, attacks, data, evaluate


def parse(description):
    """Options of an example."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, default=0.1, help="radius of the L-infinity ball")
    parser.add_argument("--steps", type=int, default=20, help="of PGD, each a quarter of epsilon")
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    return parser.parse_args()


def trained(epochs):
    """A small capsule network trained on digits of 12x12 pixels, and the 360 test images ``x`` with labels ``y``."""
    keras.utils.set_random_seed(0)
    train, test = data.load("digits", batch_size=32, image_size=12)
    model = CapsNet((12, 12, 1), 10, kernel_size=3, filters=32, num_types=8, primary_dim=4, capsule_dim=8)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, epochs * len(train))
    model.compile(keras.optimizers.Adam(schedule), MarginLoss(), metrics=["accuracy"])
    model.fit(train, epochs=epochs, verbose=0, shuffle=False)  # the stream shuffles itself
    return model, *data.take(test, 360)


def compare(library, theirs, description):
    """Attack the votes by another library's PGD and by ours; judge both on the model.

    Args:
        library: str, its name.
        theirs: callable ``(pgd, votes, x, y)`` → adversarial images; it takes its settings from ``pgd``, ours.
        description: str, of the example.
    """
    args = parse(description)
    model, x, y = trained(args.epochs)
    pgd = attacks.PGD(args.epsilon, steps=args.steps)

    def attack(votes, x, y, targeted):
        return theirs(pgd, votes, x, y)

    # Any such callable can be judged. Ours is judged at the end too, not every five steps.
    by_them, by_us = (
        evaluate.robustness(model, each, (x, y), objective=attacks.votes, early=False) for each in (attack, pgd)
    )
    print(
        f"{len(x)} digits, epsilon {pgd.epsilon:g}, {pgd.steps} steps of {pgd.step:g}: accuracy "
        f"{by_us.accuracy:.2%} clean, {by_them.robust_accuracy:.2%} under PGD of {library} on the votes, "
        f"{by_us.robust_accuracy:.2%} under ours"
    )
