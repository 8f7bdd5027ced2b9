"""How well a model withstands attacks: adversarial examples are made on an objective and judged on the model."""

import dataclasses
import functools
import math
import time

import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.batches import padded
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress, batches_in
from keras_capsvit.evaluate.targets import targets_of

NORMS = ("l0", "l1", "l2", "linf")
_EVERY = 5  # steps after which examples that are already fooled leave the batch


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


def robust_accuracy(model, attack, dataset, *, objective=None, batch_size=128, work=None):
    """Share of examples that a model classifies correctly under an attack; see ``robustness``.

    Returns:
        float in [0, 1].
    """
    settings = {"objective": objective, "batch_size": batch_size, "work": work}
    return robustness(model, attack, dataset, **settings).robust_accuracy


def success_rate(model, attack, dataset, *, objective=None, targets=None, batch_size=128, work=None):
    """Share of attacked examples that an attack fools; see ``robustness``.

    Returns:
        float in [0, 1], NaN if there was nothing to attack.
    """
    settings = {"objective": objective, "targets": targets, "batch_size": batch_size, "work": work}
    return robustness(model, attack, dataset, **settings).success_rate


def robustness(model, attack, dataset, *, objective=None, targets=None, early=True, batch_size=128, work=None):
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


def measured_images(model, attack, dataset, *, objective, targets, early, batch_size, work):
    """What an attack does to every image of a data set; arguments are those of ``robustness``.

    Returns:
        dict of arrays ``(n,)``: ``correct``, ``tried`` and ``fooled``, bools; ``seconds``; and of NORMS, the sizes of
        perturbations, 0 of images that were not tried.
    """
    checks.booleans(early=early)
    goal, judge = goal_of(model, attack, objective, targets), Judge(model)
    run = _step_by_step if early and hasattr(attack, "advance") else _whole
    settings = {"model": model, "attack": attack, "objective": objective, "targets": targets, "early": early}
    total = batches_in(dataset, batch_size)
    with Progress(work, "robustness", settings, judges=[judge], total=total) as progress:
        first = 0
        for x, y in checks.batches_of(dataset, batch_size):
            wanted = y if targets is None else targets_of(targets, y, first + np.arange(len(y)))
            progress.batch(functools.partial(_attack, run, judge, attack, goal, x, y, wanted, targets, first), x, y)
            first += len(x)
    if not first:
        raise ValueError("Expected at least one example; the data set is empty.")
    return progress.results()


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


def _attack(run, judge, attack, goal, x, y, wanted, targets, first):
    """What an attack does to every image of a batch, arrays ``(b,)``; the numbers of images begin with ``first``."""
    correct = judge.correct(x, y)
    tried = correct if targets is None else correct & (wanted != y)
    rows = np.flatnonzero(tried)
    started = time.perf_counter()
    images, fooled = run(judge, attack, goal, x[rows], wanted[rows], targets is not None, first + rows)
    seconds = time.perf_counter() - started
    norms = perturbation_norms(x[rows], images)
    measured = {"correct": correct, "tried": tried, "fooled": np.zeros(len(x), bool), "seconds": np.zeros(len(x))}
    measured["fooled"][rows] = fooled
    measured["seconds"][rows] = seconds / max(len(rows), 1)
    for name in NORMS:
        measured[name] = np.zeros(len(x))
        measured[name][rows] = norms[name]
    return measured


def perturbation_norms(x, adversarial):
    """Sizes of perturbations.

    Args:
        x: images ``(b, H, W, C)``.
        adversarial: images ``(b, H, W, C)``.

    Returns:
        dict from ``l0`` (changed values), ``l1``, ``l2`` and ``linf`` to arrays ``(b,)``.

    Raises:
        ValueError: for images of different shapes, or not finite.
    """
    x, adversarial = checks.images(x), checks.images(adversarial)
    checks.of_shape("Expected an adversarial image for each", x.shape, adversarial)
    change = np.abs(adversarial.astype("float64") - x).reshape(len(x), math.prod(x.shape[1:]))
    return {
        "l0": np.count_nonzero(change, axis=1),
        "l1": change.sum(axis=1),
        "l2": np.sqrt(np.square(change).sum(axis=1)),
        "linf": change.max(axis=1, initial=0.0),
    }


def goal_of(model, attack, objective, targets):
    """What is attacked; refuses an attack, an objective and targets that cannot be called."""
    checks.function("attack", attack, "(objective, x, y, targeted) → adversarial images")
    if targets is not None:
        checks.function("targets", targets, "y → wanted class ids (b,)")
    if objective is None:
        return model
    goal = checks.function("objective", objective, "from a model to what is attacked, such as attacks.votes")(model)
    return checks.function("What objective returns", goal, "x (b, H, W, C) → scores (b, M)")


def attacked(attack, goal, x, y, targeted, numbers):
    """Adversarial images, NumPy, of images whose numbers in the data set an attack of this package is told."""
    told = {"numbers": numbers} if hasattr(attack, "prepare") else {}
    images = checks.images(attack(goal, x, y, targeted, **told))
    checks.of_shape("An attack must return an image for each", x.shape, images)
    return images


def _fools(judge, x, y, targeted):
    return judge.correct(x, y) == targeted


def _whole(judge, attack, goal, x, y, targeted, numbers):
    """Adversarial images of ``x``, and which of them fool the model."""
    found = attacked(attack, goal, x, y, targeted, numbers) if len(x) else x
    return found, _fools(judge, found, y, targeted)


def _step_by_step(judge, attack, goal, x, y, targeted, numbers):
    """The same, of an attack that advances step by step; images that fool the model leave."""
    goal, x, y = attack.prepare(goal, x, y)
    found, fooled = x.copy(), np.zeros(len(x), bool)
    for restart in range(attack.restarts):
        left = np.flatnonzero(~fooled)
        state = start = attack.begin(x[left], restart, numbers[left])
        for done in range(0, attack.steps, _EVERY):
            if not len(left):
                return found, fooled
            rows = padded(len(left), len(x))
            state = attack.advance(
                goal,
                x[left][rows],
                y[left][rows],
                _of(state, rows),
                min(_EVERY, attack.steps - done),
                targeted,
            )
            attack.check_losses(state)
            found[left] = attack.kept(state)[: len(left)]
            now = _fools(judge, found[left][rows], y[left][rows], targeted)[: len(left)]
            fooled[left] = now
            state, start, left = _of(state, np.flatnonzero(~now)), _of(start, ~now), left[~now]
        attack.check_result(goal, start.images, state.images, y[left], targeted)
    return found, fooled


def _of(state, rows):
    """The state of some images."""
    return type(state)(*(ops.convert_to_numpy(part)[rows] for part in state))
