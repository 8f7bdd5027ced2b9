"""Labels and targets as class ids, or an error in our words."""

import numpy as np

from keras_capsvit.checks.arrays import numbers

_MOST_CLASSES = 2**31


def class_ids(labels, batch, num_classes=None, name="Labels"):
    """Class ids of images.

    Args:
        labels: ids ``(batch,)`` or ``(batch, 1)``, integers or floats that are integers; or one-hot rows ``(batch, M)``
            of 0 and 1.
        batch: int, number of images.
        num_classes: int, that ids have to lie below; None where it is not known.
        name: str, what the message calls them.

    Returns:
        int32 NumPy array ``(batch,)``.

    Raises:
        ValueError: for labels of another shape, that are no integers, or out of range.
    """
    values = numbers(labels, name.lower())
    if values.dtype.kind == "b":
        raise ValueError(f"{name} must be class ids or one-hot rows of 0 and 1; received bool. Cast them to int.")
    expected = f"{name} must be integer class ids of shape ({batch},); received shape {values.shape} of {values.dtype}"
    if values.ndim not in (1, 2) or len(values) != batch or 0 in values.shape[1:]:
        raise ValueError(f"{expected}. Shape ({batch}, 1) and one-hot rows ({batch}, classes) are taken, too.")
    if values.ndim == 2 and values.shape[1] > 1:
        return _of_one_hot(values, num_classes, expected)
    values = values.reshape(-1)
    if values.dtype.kind != "i" and not (np.isfinite(values) & (values == np.floor(values))).all():
        raise ValueError(f"{expected}, not all of them integers.")
    most = _MOST_CLASSES if num_classes is None else num_classes
    if batch and not (values.min() >= 0 and values.max() < most):
        limits = "from 0" if num_classes is None else f"between 0 and {num_classes - 1}"
        raise ValueError(f"Expected class ids {limits}; received values between {values.min()} and {values.max()}.")
    return values.astype("int32")


def targets(target, batch, num_classes=None):
    """A class id for all images, or labels of each, as ids ``(batch,)``; see ``class_ids``."""
    target = numbers(target, "targets")
    return class_ids(np.broadcast_to(target, (batch,)) if not target.ndim else target, batch, num_classes, "Targets")


def _of_one_hot(values, num_classes, expected):
    if num_classes not in (None, values.shape[1]):
        raise ValueError(f"{expected}. One-hot rows would have {num_classes} columns, the number of classes.")
    if not ((values == 0) | (values == 1)).all() or not (values.sum(axis=1) == 1).all():
        raise ValueError(f"{expected}, whose rows are not one-hot, a single 1 and else 0.")
    return values.argmax(axis=1).astype("int32")
