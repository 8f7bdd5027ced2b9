"""Detection of adversarial images by their reconstruction (thesis 6.2 and 6.5.3; Qin et al. 2020)."""

import dataclasses
import functools

import numpy as np
from keras import ops

from keras_capsvit.checks import batches_in, batches_of, function, number, numbers, running
from keras_capsvit.evaluate.attacking import attacked, goal_of
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.evaluate.targets import targets_of


@dataclasses.dataclass(frozen=True)
class Detection:
    """What an attack did to a model whose inputs are watched.

    Args:
        examples: int, how many were attacked.
        success_rate: float, share of all that the model misclassifies under the attack (targeted: that it classifies as
            wanted), ``S`` of thesis 6.5.3.
        undetected_rate: float, share of all that it misclassifies and that are not flagged, ``R``.
        flagged_clean: float, share of the clean images that are flagged.
        threshold: float, error above which an image is flagged.
    """

    examples: int
    success_rate: float
    undetected_rate: float
    flagged_clean: float
    threshold: float


def detection_threshold(error, dataset, *, percentile=95.0, batch_size=128) -> float:
    """Error that a given share of benign images does not exceed (the thesis's 95th percentile).

    Args:
        error: callable ``x (b, H, W, C) → (b,)``, such as ``attacks.reconstruction_error(model)``.
        dataset: benign images that the detection is not judged by, see ``robustness``.
        percentile: float in (0, 100).
        batch_size: int >= 1, of a pair of arrays and of single examples.

    Returns:
        float.

    Raises:
        ValueError: for an empty data set, errors that are not finite, or another percentile.
    """
    number("percentile", percentile, 0, 100, without=(0, 100))
    function("error", error, "x (b, H, W, C) → (b,)")
    errors = [_errors(error, x) for x, _ in batches_of(dataset, batch_size)]
    if not sum(map(len, errors)):
        raise ValueError("Expected at least one benign example; the data set is empty.")
    return float(np.percentile(np.concatenate(errors), percentile))


def detection(
    model, attack, dataset, *, error, threshold, objective=None, targets=None, batch_size=128, work=None
) -> Detection:
    """Attack every example, and flag those whose error is above a threshold.

    Args:
        model: model, or callable ``x (b, H, W, C) → scores (b, M)``, that judges.
        attack: callable ``(objective, x, y, targeted) → adversarial images``; ``attacks.DetectionAware`` for one that
            lowers the error as well.
        dataset: see ``robustness``.
        error: callable ``x (b, H, W, C) → (b,)``.
        threshold: float, see ``detection_threshold``.
        objective: callable from the model to what is attacked; None for the model's natural objective.
        targets: callable ``y → wanted class ids (b,)`` for a targeted attack; None for an untargeted one.
        batch_size: int >= 1, of a pair of arrays and of single examples.
        work: path of a folder that what was measured of each image is kept in, so that an interrupted call goes on; see
            ``robustness``.

    Returns:
        Detection.

    Raises:
        ValueError: for an empty data set, errors that are not finite, what the attack refuses, and a ``work`` that
            belongs to something else.
    """
    number("threshold", threshold)
    function("error", error, "x (b, H, W, C) → (b,)")
    goal, judge = goal_of(model, attack, objective, targets), Judge(model)
    settings = {"model": model, "attack": attack, "objective": objective, "targets": targets, "error": error}

    def measure(x, y, target_ids, start):
        images = attacked(attack, goal, x, target_ids, targets is not None, start + np.arange(len(x)))
        success = judge.correct(images, target_ids) != (targets is None)
        return {"success": success, "clean": _errors(error, x), "attacked": _errors(error, images)}

    total = batches_in(dataset, batch_size)
    with Progress(work, "detection", settings, judges=[judge], total=total) as progress:
        count = 0
        for x, y in batches_of(dataset, batch_size):
            target_ids = y if targets is None else targets_of(targets, y, count + np.arange(len(y)))
            progress.batch(functools.partial(measure, x, y, target_ids, count), x, y)
            count += len(x)
    if not count:
        raise ValueError("Expected at least one example; the data set is empty.")
    measured = progress.results()
    success, undetected = measured["success"], measured["success"] & (measured["attacked"] <= threshold)
    flagged = measured["clean"] > threshold
    rates = [float(flags.sum() / count) for flags in (success, undetected, flagged)]
    return Detection(count, rates[0], rates[1], rates[2], float(threshold))


def _errors(error, x):
    if not len(x):
        return np.zeros(0)
    with running("error", x):
        errors = numbers(error(ops.convert_to_tensor(x)), "values of error")
    if errors.shape != (len(x),):
        raise ValueError(f"error must return one value per image, of shape ({len(x)},); received {errors.shape}.")
    if not np.isfinite(errors).all():
        raise ValueError("error must return finite values; received NaN or infinite ones.")
    return errors
