"""What attacks do to each image of a data set: adversarial ones are made on an objective and judged on the model."""

import functools
import math
import time

import numpy as np
from keras import ops

from keras_capsvit import checks, taps
from keras_capsvit.batches import padded
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.evaluate.targets import targets_of

NORMS = ("l0", "l1", "l2", "linf")
_EVERY = 5  # steps after which examples that are already fooled leave the batch


def goal_of(model, attack, objective, targets):
    """What is attacked; refuses an attack, an objective and targets that cannot be called."""
    taps.check_attack(attack)
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


def perturbation_norms(x, adversarial) -> dict[str, np.ndarray]:
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
    total = checks.batches_in(dataset, batch_size)
    with Progress(work, "robustness", settings, judges=[judge], total=total) as progress:
        count = 0
        for x, y in checks.batches_of(dataset, batch_size):
            target_ids = y if targets is None else targets_of(targets, y, count + np.arange(len(y)))
            progress.batch(functools.partial(_attack, run, judge, attack, goal, x, y, target_ids, targets, count), x, y)
            count += len(x)
    if not count:
        raise ValueError("Expected at least one example; the data set is empty.")
    return progress.results()


def _attack(run, judge, attack, goal, x, y, target_ids, targets, start):
    """What an attack does to every image of a batch, arrays ``(b,)``; the numbers of images begin with ``start``."""
    correct = judge.correct(x, y)
    tried = correct if targets is None else correct & (target_ids != y)
    rows = np.flatnonzero(tried)
    started = time.perf_counter()
    images, fooled = run(judge, attack, goal, x[rows], target_ids[rows], targets is not None, start + rows)
    seconds = time.perf_counter() - started
    norms = perturbation_norms(x[rows], images)
    measured = {"correct": correct, "tried": tried, "fooled": np.zeros(len(x), bool), "seconds": np.zeros(len(x))}
    measured["fooled"][rows] = fooled
    measured["seconds"][rows] = seconds / max(len(rows), 1)
    for name in NORMS:
        measured[name] = np.zeros(len(x))
        measured[name][rows] = norms[name]
    return measured


def _fools(judge, x, y, targeted):
    return judge.correct(x, y) == targeted


def _whole(judge, attack, goal, x, y, targeted, numbers):
    """Adversarial images of ``x``, and which of them fool the model."""
    images = attacked(attack, goal, x, y, targeted, numbers) if len(x) else x
    return images, _fools(judge, images, y, targeted)


def _step_by_step(judge, attack, goal, x, y, targeted, numbers):
    """The same, of an attack that advances step by step; images that fool the model leave."""
    goal, x, y = attack.prepare(goal, x, y)
    images, fooled = x.copy(), np.zeros(len(x), bool)
    for restart in range(attack.restarts):
        left = np.flatnonzero(~fooled)
        state = start = attack.begin(x[left], restart, numbers[left])
        for step in range(0, attack.steps, _EVERY):
            if not len(left):
                return images, fooled
            rows = padded(len(left), len(x))
            state = attack.advance(
                goal,
                x[left][rows],
                y[left][rows],
                _of(state, rows),
                min(_EVERY, attack.steps - step),
                targeted,
            )
            attack.check_losses(state)
            images[left] = attack.kept(state)[: len(left)]
            now = _fools(judge, images[left][rows], y[left][rows], targeted)[: len(left)]
            fooled[left] = now
            state, start, left = _of(state, np.flatnonzero(~now)), _of(start, ~now), left[~now]
        attack.check_result(goal, start.images, state.images, y[left], targeted)
    return images, fooled


def _of(state, rows):
    """The state of some images."""
    return type(state)(*(ops.convert_to_numpy(part)[rows] for part in state))
