"""The Adversarial Robustness Toolbox (ART) attacks the votes of a small capsule network.

    python examples/interop/art_votes.py                            # needs: pip install -e ".[peers]"
    python examples/interop/art_votes.py --epsilon 0.05 --steps 40

Its TensorFlowV2Classifier takes any callable, but calls it with ``training=``, which an objective has not.
"""

import small_capsnet  # first, because it sets up TensorFlow

# isort: split
import keras
from art.attacks.evasion import ProjectedGradientDescentTensorFlowV2
from art.estimators.classification import TensorFlowV2Classifier


def attack(pgd, votes, x, y):
    """PGD of ART.

    Args:
        pgd: attacks.PGD, whose settings are taken.
        votes: objective, callable ``x → logits (b, M)``.
        x: images ``(b, H, W, C)``.
        y: true classes ``(b,)``.

    Returns:
        Adversarial images ``(b, H, W, C)``.
    """
    classifier = TensorFlowV2Classifier(
        lambda x, training: votes(x),
        nb_classes=votes(x[:1]).shape[1],
        input_shape=x.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=pgd.bounds,
    )
    theirs = ProjectedGradientDescentTensorFlowV2(
        classifier,
        eps=pgd.epsilon,
        eps_step=pgd.step,
        max_iter=pgd.steps,
        num_random_init=int(pgd.random_start),
        batch_size=len(x),
        verbose=False,
    )
    return theirs.generate(x, y)


if __name__ == "__main__":
    small_capsnet.compare("ART", attack, __doc__)
