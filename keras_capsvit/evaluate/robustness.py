"""How well a model withstands attacks: adversarial examples are made on an objective and judged on the model."""

import dataclasses

import numpy as np

from keras_capsvit.evaluate.attacking import NORMS, measured_images


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What an attack did to a model.

    Args:
        examples: int, how many were tried.
        accuracy: float, share classified correctly before the attack.
        robust_accuracy: float, share still classified correctly under it.
        success_rate: float, share of the correctly classified that the attack fools (targeted: of those that are not of
            the wanted class, the share that is then classified as it).
        norms: dict, mean ``l0``, ``l1``, ``l2`` and ``linf`` of the perturbations that succeeded; NaN without any.
        seconds_per_example: float, of those attacked.
    """

    examples: int
    accuracy: float
    robust_accuracy: float
    success_rate: float
    norms: dict
    seconds_per_example: float


def robust_accuracy(model, attack, dataset, *, objective=None, batch_size=128, work=None) -> float:
    """Share of examples that a model classifies correctly under an attack; see ``robustness``.

    Returns:
        float in [0, 1].
    """
    settings = {"objective": objective, "batch_size": batch_size, "work": work}
    return robustness(model, attack, dataset, **settings).robust_accuracy


def success_rate(model, attack, dataset, *, objective=None, targets=None, batch_size=128, work=None) -> float:
    """Share of attacked examples that an attack fools; see ``robustness``.

    Returns:
        float in [0, 1], NaN if there was nothing to attack.
    """
    settings = {"objective": objective, "targets": targets, "batch_size": batch_size, "work": work}
    return robustness(model, attack, dataset, **settings).success_rate


def robustness(
    model, attack, dataset, *, objective=None, targets=None, early=True, batch_size=128, work=None
) -> Robustness:
    """Attack every example of a data set that a model classifies correctly.

    An attack that advances step by step (``begin`` and ``advance``, as those of ``attacks.gradient``) is judged every
    five steps, and an example that fools the model by then leaves the batch, so a strong attack on a weak model costs
    little. An example counts as fooled if it fools the model at any of these looks.

    Args:
        model: model, or callable ``x (b, H, W, C) → scores (b, M)``, that judges.
        attack: callable ``(objective, x, y, targeted) → adversarial images``.
        dataset: pair of arrays ``(x, y)``, a tuple or a list; or iterable of batches ``(x, y)`` or of single examples,
            such as a ``tf.data.Dataset``. Labels are class ids ``(b,)`` or ``(b, 1)``, or one-hot.
        objective: callable from the model to what is attacked, such as ``attacks.votes``; None for the model's natural
            one.
        targets: callable ``y → wanted class ids (b,)`` for a targeted attack, see ``random_targets``; None for an
            untargeted one. Where the wanted class is the true one, the example is left out.
        early: bool, whether fooled examples leave the batch.
        batch_size: int >= 1, of a pair of arrays and of single examples. What this package's attacks draw for an image
            depends on the seed and its number in the data set, not on its batch.
        work: path of a folder that what was measured of each image is kept in, and a progress bar is shown: after an
            interruption the same call goes on where it was, with the same result to the bit. It is refused if that was
            another model, attack, data set, setting or version; see ``evaluate.progress``. None for neither.

    Returns:
        Robustness.

    Raises:
        ValueError: for an empty data set, what the attack refuses, and a ``work`` that belongs to something else.
    """
    settings = {"objective": objective, "targets": targets, "early": early, "batch_size": batch_size, "work": work}
    measured = measured_images(model, attack, dataset, **settings)
    return summary(measured, measured["fooled"])


def summary(measured, counted):
    """Robustness of what ``measured_images`` returned, with norms of the images that are ``counted (n,)``."""
    nan, fooled, tried, examples = float("nan"), measured["fooled"], np.sum(measured["tried"]), len(measured["tried"])
    lost = np.sum(fooled & measured["correct"])
    return Robustness(
        examples=examples,
        accuracy=float(np.sum(measured["correct"]) / examples),
        robust_accuracy=float((np.sum(measured["correct"]) - lost) / examples),
        success_rate=float(fooled.sum() / tried) if tried else nan,
        norms={name: float(measured[name][counted].mean()) if counted.any() else nan for name in NORMS},
        seconds_per_example=float(measured["seconds"].sum() / tried) if tried else nan,
    )
