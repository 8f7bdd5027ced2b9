"""Foolbox attacks the votes of a small capsule network: its TensorFlowModel takes an objective as it is.

    python examples/interop/foolbox_votes.py                        # needs: pip install -e ".[peers]"
    python examples/interop/foolbox_votes.py --epsilon 0.05 --steps 40

Every step is taken eagerly; inside ``tf.function`` Foolbox does not work.
"""

import small_capsnet  # first, because it sets up TensorFlow

# isort: split
import foolbox
import tensorflow as tf


def attack(pgd, votes, x, y):
    """PGD of Foolbox.

    Args:
        pgd: attacks.PGD, whose settings are taken.
        votes: objective, callable ``x → logits (b, M)``.
        x: images ``(b, H, W, C)``.
        y: true classes ``(b,)``.

    Returns:
        Adversarial images ``(b, H, W, C)``.
    """
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=pgd.step, steps=pgd.steps, random_start=pgd.random_start)
    model = foolbox.TensorFlowModel(votes, bounds=pgd.bounds)
    return theirs.run(model, tf.constant(x), tf.constant(y), epsilon=pgd.epsilon).numpy()


if __name__ == "__main__":
    small_capsnet.compare("Foolbox", attack, __doc__)
