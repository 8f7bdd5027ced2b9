"""How well a model withstands attacks: adversarial examples are made on an objective and judged on the model."""

import dataclasses
import math
import time

import keras
import numpy as np
from keras import ops

from keras_capsvit.evaluate.table import Table

_EVERY = 5  # steps after which examples that are already fooled leave the batch


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What an attack did to a model.

    Args:
        examples: int, how many were tried.
        accuracy: float, share classified correctly before the attack.
        robust_accuracy: float, share still classified correctly under it.
        success_rate: float, share of the correctly classified that the attack fools (targeted: of all that are not of
            the wanted class and are classified as it).
        norms: dict, mean ``l0``, ``l1``, ``l2`` and ``linf`` of the perturbations that succeeded; NaN without any.
        seconds_per_example: float, of those attacked.
    """

    examples: int
    accuracy: float
    robust_accuracy: float
    success_rate: float
    norms: dict
    seconds_per_example: float


def robust_accuracy(model, attack, dataset, *, objective=None):
    """Share of examples that a model classifies correctly under an attack; see ``robustness``.

    Returns:
        float in [0, 1].
    """
    return robustness(model, attack, dataset, objective=objective).robust_accuracy


def success_rate(model, attack, dataset, *, objective=None, targets=None):
    """Share of attacked examples that an attack fools; see ``robustness``.

    Returns:
        float in [0, 1], NaN if there was nothing to attack.
    """
    return robustness(model, attack, dataset, objective=objective, targets=targets).success_rate


def robustness(model, attack, dataset, *, objective=None, targets=None, early=True):
    """Attack every example of a data set that a model classifies correctly.

    An attack that advances step by step (``begin`` and ``advance``, as those of ``attacks.gradient``) is judged every
    five steps, and an example that fools the model by then leaves the batch, so a strong attack on a weak model costs
    little. An example counts as fooled if it fools the model at any of these looks.

    Args:
        model: callable ``x (b, H, W, C) → scores (b, M)`` that judges.
        attack: callable ``(objective, x, y, targeted) → adversarial images``.
        dataset: iterable of batches ``(x, y)`` with class ids ``y (b,)``, a ``tf.data.Dataset`` for one; or one pair of
            arrays.
        objective: callable from the model to what is attacked, such as ``attacks.votes``; None for the model's natural
            one.
        targets: callable ``y → wanted class ids (b,)`` for a targeted attack, see ``random_targets``; None for an
            untargeted one. Where the wanted class is the true one, the example is left out.
        early: bool, whether fooled examples leave the batch.

    Returns:
        Robustness.

    Raises:
        ValueError: for an empty data set, and what the attack refuses.
    """
    goal = model if objective is None else objective(model)
    totals = dict.fromkeys(("examples", "correct", "attacked", "fooled", "lost"), 0)
    norms, seconds = [], 0.0
    for x, y in batches_of(dataset):
        correct = classes_of(model, x) == y
        wanted = y if targets is None else np.asarray(targets(y))
        tried = np.flatnonzero(correct if targets is None else wanted != y)
        started = time.perf_counter()
        found, fooled = _attack(model, attack, goal, x[tried], wanted[tried], targets is not None, early)
        seconds += time.perf_counter() - started
        norms.append(perturbation_norms(x[tried][fooled], found[fooled]))
        totals["examples"] += len(x)
        totals["correct"] += correct.sum()
        totals["attacked"] += len(tried)
        totals["fooled"] += fooled.sum()
        totals["lost"] += (fooled & correct[tried]).sum()
    if not totals["examples"]:
        raise ValueError("Expected at least one example; the data set is empty.")
    nan = float("nan")
    return Robustness(
        examples=totals["examples"],
        accuracy=float(totals["correct"] / totals["examples"]),
        robust_accuracy=float((totals["correct"] - totals["lost"]) / totals["examples"]),
        success_rate=float(totals["fooled"] / totals["attacked"]) if totals["attacked"] else nan,
        norms={
            name: float(np.concatenate([one[name] for one in norms]).mean()) if totals["fooled"] else nan
            for name in norms[0]
        },
        seconds_per_example=seconds / totals["attacked"] if totals["attacked"] else nan,
    )


def attack_table(model, attacks, dataset, *, objectives=None, targets=None):
    """Robustness of a model to several attacks, on several objectives.

    Args:
        model: see ``robustness``.
        attacks: dict from names to attacks.
        dataset: see ``robustness``; read once for each row.
        objectives: dict from names to callables from the model to what is attacked; None for the natural one alone.
        targets: see ``robustness``.

    Returns:
        Table, a row for each objective and attack: ``objective``, ``attack``, and the figures of Robustness.

    Example::

        print(evaluate.attack_table(model, {"PGD": pgd}, test, objectives={"capsules": attacks.capsules}))
    """
    rows = []
    for kind, objective in (objectives or {"natural": None}).items():
        for name, attack in attacks.items():
            found = dataclasses.asdict(robustness(model, attack, dataset, objective=objective, targets=targets))
            norms = found.pop("norms")
            rows.append({"objective": kind, "attack": name, **found, **norms})
    return Table(rows)


def transfer_matrix(models, attack, dataset, *, sources=None):
    """How far adversarial examples made on one model fool others (thesis Table 6.8).

    Args:
        models: dict from names to callables ``x → scores (b, M)``, the targets.
        attack: callable ``(objective, x, y, targeted) → adversarial images``.
        dataset: iterable of batches ``(x, y)`` with class ids ``y (b,)``; or one pair of arrays.
        sources: dict from names to what is attacked: models, or Objectives such as ``attacks.votes(model)``; None for
            the models themselves.

    Returns:
        Table, a row for each target: ``target``, and for each source the share of the examples that the target
        classifies correctly and that, made on the source, fool it (NaN if it classifies none correctly).
    """
    sources = models if sources is None else sources
    correct = dict.fromkeys(models, 0)
    fooled = {name: dict.fromkeys(sources, 0) for name in models}
    for x, y in batches_of(dataset):
        found = {name: ops.convert_to_numpy(attack(source, x, y, False)) for name, source in sources.items()}
        for target, model in models.items():
            right = classes_of(model, x) == y
            correct[target] += right.sum()
            for source, adversarial in found.items():
                fooled[target][source] += (right & (classes_of(model, adversarial) != y)).sum()
    return Table(
        [
            {
                "target": target,
                **{name: float(n / correct[target]) if correct[target] else float("nan") for name, n in row.items()},
            }
            for target, row in fooled.items()
        ]
    )


def random_targets(num_classes, seed=0):
    """Wanted classes drawn uniformly from the others (thesis chapter 6, appendix C).

    Args:
        num_classes: int.
        seed: int.

    Returns:
        Callable ``y (b,) → (b,)``, never the true class; it draws anew at every call.
    """
    random = np.random.default_rng(seed)
    return lambda y: (y + random.integers(1, num_classes, len(y))) % num_classes


def perturbation_norms(x, adversarial):
    """Sizes of perturbations.

    Args:
        x: images ``(b, H, W, C)``.
        adversarial: images ``(b, H, W, C)``.

    Returns:
        dict from ``l0`` (changed values), ``l1``, ``l2`` and ``linf`` to arrays ``(b,)``.
    """
    change = np.abs(np.asarray(adversarial, "float64") - np.asarray(x)).reshape(len(x), math.prod(x.shape[1:]))
    return {
        "l0": np.count_nonzero(change, axis=1),
        "l1": change.sum(axis=1),
        "l2": np.sqrt(np.square(change).sum(axis=1)),
        "linf": change.max(axis=1, initial=0.0),
    }


def batches_of(dataset):
    """Batches ``(x, y)`` of NumPy arrays, of an iterable of batches or of one pair of arrays."""
    for x, y in [dataset] if isinstance(dataset, tuple) else dataset:
        yield ops.convert_to_numpy(x), ops.convert_to_numpy(y)


def scores_of(model, x):
    """Scores ``(b, M)`` of images ``x``, NumPy; a Keras model runs compiled, another callable as it is."""
    compiled = isinstance(model, keras.Model) and len(x)
    return model.predict_on_batch(x) if compiled else ops.convert_to_numpy(model(ops.convert_to_tensor(x)))


def classes_of(model, x):
    """Class ids ``(b,)`` of the highest scores of images ``x``, NumPy."""
    return scores_of(model, x).argmax(axis=-1)


def _fools(model, x, y, targeted):
    classes = classes_of(model, x)
    return classes == y if targeted else classes != y


def _attack(model, attack, goal, x, y, targeted, early):
    """Adversarial images of ``x``, and which of them fool the model."""
    if not len(x):
        return x, np.zeros(0, bool)
    if not early or not hasattr(attack, "advance"):
        found = ops.convert_to_numpy(attack(goal, x, y, targeted))
        return found, _fools(model, found, y, targeted)
    goal, x, y = attack.prepare(goal, x, y)
    found, fooled = x.copy(), np.zeros(len(x), bool)
    for restart in range(attack.restarts):
        left = np.flatnonzero(~fooled)
        state = [one[left] for one in attack.begin(x, restart)]
        for done in range(0, attack.steps, _EVERY):
            if not len(left):
                return found, fooled
            padded = _padded(len(left), len(x))
            state = attack.advance(
                goal,
                x[left][padded],
                y[left][padded],
                [one[padded] for one in state],
                min(_EVERY, attack.steps - done),
                targeted,
            )
            state = [ops.convert_to_numpy(one)[: len(left)] for one in state]
            found[left] = state[0]
            now = _fools(model, state[0][padded], y[left][padded], targeted)[: len(left)]
            fooled[left] = now
            left, state = left[~now], [one[~now] for one in state]
    return found, fooled


def _padded(count, full):
    """Indices of ``count`` examples, repeated up to one of few batch sizes, each of which is compiled for."""
    size = full
    while size // 2 >= count:
        size //= 2
    return np.arange(size) % count
