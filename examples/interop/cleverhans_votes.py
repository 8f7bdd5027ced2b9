"""Cleverhans attacks the votes of a small capsule network: an objective is a callable, as Cleverhans wants it.

    python examples/interop/cleverhans_votes.py                     # needs: pip install -e ".[peers]"
    python examples/interop/cleverhans_votes.py --epsilon 0.05 --steps 40

The loop of Cleverhans is plain TensorFlow, so it may be compiled as a whole.
"""

import small_capsnet  # first, because it sets up TensorFlow

# isort: split
import numpy as np
import tensorflow as tf
from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent


def attack(pgd, votes, x, y, *, compiled=True):
    """PGD of Cleverhans.

    Args:
        pgd: attacks.PGD, whose settings are taken.
        votes: objective, callable ``x → logits (b, M)``.
        x: images ``(b, H, W, C)``.
        y: true classes ``(b,)``.
        compiled: bool, run inside ``tf.function``.

    Returns:
        Adversarial images ``(b, H, W, C)``.
    """

    def run(x, y):
        return projected_gradient_descent(
            votes,
            x,
            pgd.epsilon,
            pgd.step,
            pgd.steps,
            np.inf,
            clip_min=pgd.bounds[0],
            clip_max=pgd.bounds[1],
            y=y,
            rand_init=pgd.random_start,
            sanity_checks=False,  # they fail where bounds are given
        )

    run = tf.function(run) if compiled else run
    return run(tf.constant(x), tf.constant(y)).numpy()


if __name__ == "__main__":
    small_capsnet.compare("Cleverhans", attack, __doc__)
