"""What attacks raise, by name: the cross-entropy, and losses that no scale of the scores can hide (Croce and Hein)."""

from keras import ops

from keras_capsvit.attacks.borders import lead

_LEAST = 1e-12  # that a difference of scores counts as where it is divided by
_CLASSES = {"dlr": 3, "dlr_targeted": 4}  # that a loss needs


def loss_and_scores(objective):
    """What FGSM and its like raise, a function of images and labels."""
    return objective.loss_and_scores


def margin_and_scores(objective):
    """What DeepFool and its like lower: by how much the class leads, a function of images and labels."""

    def margin(x, y):
        scores = objective(x)
        return lead(scores, y), scores

    return margin


def cross_entropy(objective):
    """The loss of an objective itself."""
    return lambda x, y, target=None: objective.loss_and_scores(x, y)


def margin(objective):
    """By how much the highest other score ``z`` exceeds that of class ``y``: ``max_{i != y} z_i - z_y``."""
    leads = margin_and_scores(objective)

    def loss(x, y, target=None):
        leading, scores = leads(x, y)
        return -leading, scores

    return loss


def dlr(objective):
    """Difference of logits ratio (Croce and Hein 2020, Eq. 6): ``(max_{i != y} z_i - z_y) / (z_(1) - z_(3))``.

    ``z_(k)`` is the k-th largest score. Neither a scale of the scores nor a shift changes it.
    """

    def loss(x, y, target=None):
        scores = objective(x)
        highest = ops.top_k(scores, 3)[0]
        return -lead(scores, y) / (highest[:, 0] - highest[:, 2] + _LEAST), scores

    return loss


def dlr_targeted(objective):
    """The same towards a class ``t`` (Eq. 7): ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``; ``target`` is ``t``."""

    def loss(x, y, target):
        scores = objective(x)
        highest = ops.top_k(scores, 4)[0]
        towards, away = (ops.take_along_axis(scores, ids[:, None], axis=1)[:, 0] for ids in (target, y))
        return (towards - away) / (highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2 + _LEAST), scores

    return loss


# Callables from an Objective to a function of images, ids of classes ``y (b,)`` and, for some, of ``target (b,)``
# classes, which returns losses ``(b,)`` and the scores ``(b, M)`` that they are of.
LOSSES = {"ce": cross_entropy, "dlr": dlr, "dlr_targeted": dlr_targeted, "margin": margin}


def check_classes(loss, count):
    """Refuse a loss, by name, for too few classes."""
    if count < _CLASSES.get(loss, 0):
        raise ValueError(
            f"loss={loss!r} divides by differences of scores and needs at least {_CLASSES[loss]} classes; received "
            f'scores of {count}. Use loss="margin".'
        )
