"""Robust accuracy under AutoAttack of a whole data set, and the record of it that a leaderboard keeps."""

import collections.abc
import dataclasses
import functools
import time

import numpy as np

from keras_capsvit import checks
from keras_capsvit.evaluate.attacking import goal_of
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress
from keras_capsvit.evaluate.table import versions

_CLEAN = "clean"  # in the place of an attack, of what is misclassified by itself
_BY_NONE = -1  # of the attacks
_CALLED = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # by RobustBench


@dataclasses.dataclass(frozen=True)
class AutoAttackReport:
    """Robust accuracy of a model under AutoAttack.

    Args:
        attack: attacks.AutoAttack, what was run.
        examples: int, how many images.
        accuracy: float, share classified correctly before.
        robust_accuracy: float, share that no attack fools.
        after: dict from ``"clean"`` and the names of attacks, in their order, to the share that none fools up to there.
        broken_by: str ``(examples,)``, the attack that fooled each image, ``"clean"`` where it is misclassified by
            itself, ``""`` where nothing fools it.
        queries: float, images that score-based attacks asked the model for, mean over all images.
        seconds: float, of all attacks together.
        precision: str, in which gradients were computed, see ``attacks.in_precision``.
    """

    attack: collections.abc.Callable
    examples: int
    accuracy: float
    robust_accuracy: float
    after: dict
    broken_by: np.ndarray
    queries: float
    seconds: float
    precision: str = "float32"

    def record(self, name, dataset, *, reported=None, **more):
        """What a leaderboard keeps of a model, in RobustBench's manner.

        Args:
            name: str, of the model.
            dataset: str.
            reported: float in [0, 1], robust accuracy that was published, if it was.
            more: what else to keep, such as ``paper="..."``; anything that JSON takes.

        Returns:
            dict of str, numbers and dicts: accuracies in percent, ``eps`` in units of the pixels, and how it was made.
        """
        if reported is not None:
            reported = round(100 * checks.number("reported", reported, 0, 1), 2)
        return {
            "name": name,
            "dataset": dataset,
            "threat": _CALLED[self.attack.norm],
            "eps": self.attack.epsilon,
            "clean_acc": round(100 * self.accuracy, 2),
            "reported": reported,
            "autoattack_acc": round(100 * self.robust_accuracy, 2),
            "after": {attack: round(100 * share, 2) for attack, share in self.after.items()},
            "n": self.examples,
            "version": self.attack.version,
            "bounds": self.attack.bounds,
            "seed": self.attack.seed,
            "precision": self.precision,
            "queries": round(self.queries, 1),
            "seconds": round(self.seconds, 1),
            **more,
            "versions": versions(),
        }


def auto_attack(model, attack, dataset, *, objective=None, batch_size=128, work=None) -> AutoAttackReport:
    """Attack every image of a data set by AutoAttack.

    Args:
        model: model, live or served, or callable ``x (b, H, W, C) → scores (b, M)``, that judges.
        attack: attacks.AutoAttack.
        dataset: see ``robustness``.
        objective: callable from the model to what is attacked, such as ``attacks.votes``; None for the model's natural
            one. What fools the objective alone does not count.
        batch_size: int >= 1, of a pair of arrays and of single examples. It does not change the result.
        work: path of a folder that what was measured of each image is kept in, and a progress bar with the robust
            accuracy so far is shown: after an interruption the same call goes on after the last batch, see
            ``robustness``.

    Returns:
        AutoAttackReport.

    Raises:
        ValueError: as ``robustness``, and for another attack.

    Example::

        report = evaluate.auto_attack(model, attacks.AutoAttack(8 / 255), test, work="work")
        print(report.robust_accuracy, report.after)
    """
    if not (hasattr(attack, "run") and hasattr(attack, "sequence")):  # what it has and other attacks have not
        raise ValueError(f"Expected an attacks.AutoAttack; received {attack!r:.100}. evaluate.robustness takes others.")
    goal, judge = goal_of(model, attack, objective, None), Judge(model)
    names = [_CLEAN, *attack.sequence(), ""]

    def measure(x, y, start):
        correct, started = judge.correct(x, y), time.perf_counter()
        rows = np.flatnonzero(correct)
        result = attack.run(goal, x[rows], y[rows], numbers=start + rows)
        fooled = ~judge.correct(result.images, y[rows])
        broken, queries = np.zeros(len(x), "int64"), np.zeros(len(x), "int64")
        broken[rows] = np.where(fooled, [names.index(name) for name in result.broken_by], _BY_NONE)
        queries[rows] = result.queries
        return {
            "broken by": broken,
            "queries": queries,
            "seconds": np.full(len(x), (time.perf_counter() - started) / max(len(x), 1)),
        }

    def shown(measured):
        return {"robust accuracy": float(np.mean(measured["broken by"] == _BY_NONE))}

    settings = {"model": model, "attack": attack, "objective": objective}
    total, count = checks.batches_in(dataset, batch_size), 0
    with Progress(work, "auto_attack", settings, judges=[judge], shown=shown, total=total) as progress:
        for x, y in checks.batches_of(dataset, batch_size):
            progress.batch(functools.partial(measure, x, y, count), x, y)
            count += len(x)
    if not count:
        raise ValueError("Expected at least one example; the data set is empty.")
    measured = progress.results()
    broken, after, left = np.array(names)[measured["broken by"]], {}, count
    for name in names[:-1]:
        left -= int(np.sum(broken == name))
        after[name] = left / count
    return AutoAttackReport(
        attack=attack,
        examples=count,
        accuracy=float(np.mean(broken != _CLEAN)),
        robust_accuracy=float(np.mean(broken == "")),
        after=after,
        broken_by=broken,
        queries=float(measured["queries"].mean()),
        seconds=float(measured["seconds"].sum()),
        precision=getattr(goal, "precision", "float32"),
    )
