"""Wanted classes of targeted attacks."""

import dataclasses

import numpy as np

from keras_capsvit import checks


@dataclasses.dataclass(frozen=True)
class RandomTargets:
    """Wanted classes, see ``random_targets``; that of an image depends on the seed and its number alone.

    Args:
        num_classes: int >= 2.
        seed: int >= 0.

    Call arguments:
        y: class ids ``(b,)``.
        numbers: ints >= 0 ``(b,)``, of the images in their data set; None for 0, 1, ...
    """

    num_classes: int
    seed: int = 0

    def __post_init__(self):
        checks.integer("num_classes", self.num_classes, 2)
        checks.integer("seed", self.seed)

    def __call__(self, y, numbers=None):
        numbers = range(len(y)) if numbers is None else numbers
        moves = [np.random.default_rng([self.seed, number]).integers(1, self.num_classes) for number in numbers]
        return (np.asarray(y) + np.array(moves, "int64")) % self.num_classes


def random_targets(num_classes, seed=0):
    """Wanted classes drawn uniformly from the others (thesis chapter 6, appendix C).

    All attacks and objectives of a table want the same of an image, whatever the batches.

    Args:
        num_classes: int >= 2.
        seed: int >= 0.

    Returns:
        Callable ``y (b,) → (b,)``, never the true class.

    Raises:
        ValueError: for arguments out of range.
    """
    return RandomTargets(num_classes, seed)


def targets_of(targets, y, numbers):
    """Wanted class ids ``(b,)`` of images with class ids ``y (b,)`` and numbers ``(b,)`` in their data set."""
    told = {"numbers": numbers} if isinstance(targets, RandomTargets) else {}
    return checks.class_ids(targets(y, **told), len(y), name="Targets")
