"""Arguments of measurements as arrays, or an error that says what was expected."""

import numpy as np
from keras import ops

from keras_capsvit.ops import check_labels


def class_ids(labels, batch, num_classes=None):
    """Integer class ids ``(batch,)``, of labels of that shape or ``(batch, 1)``; below ``num_classes`` if given."""
    ids = np.asarray(labels)
    if ids.shape not in ((batch,), (batch, 1)) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"Labels must be integer class ids of shape ({batch},); received shape {ids.shape} of {ids.dtype}."
        )
    ids = ids.reshape(-1)
    if num_classes is not None:
        check_labels(ids, num_classes)
    return ids


def finite_array(values, name, axes, rank):
    """``values`` as a finite float32 array of a rank, not empty; the message calls it ``name``, of shape ``axes``."""
    values = ops.convert_to_numpy(values).astype("float32")
    if values.ndim != rank or not values.size:
        raise ValueError(f"Expected {name} of shape {axes}, not empty; received {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"Expected finite {name}; received NaN or infinite values.")
    return values


def class_scores(scores, target, batch):
    """Ids ``(b,)`` of the classes that count, the highest of scores ``(b, M)`` for None, and their scores ``(b,)``."""
    if scores.ndim != 2 or len(scores) != batch:
        raise ValueError(f"The model must return scores of shape ({batch}, classes); received {scores.shape}.")
    ids = scores.argmax(axis=1) if target is None else target
    ids = class_ids(np.full(batch, ids) if np.ndim(ids) == 0 else ids, batch, scores.shape[1])
    return ids, scores[np.arange(batch), ids].astype("float64")


def expect(what, shape, received):
    """Refuse what is no array of a shape; the message begins with ``what``, a str."""
    if tuple(getattr(received, "shape", ())) != shape:
        found = getattr(received, "shape", type(received).__name__)
        raise ValueError(f"{what}, of shape {shape}; received {found}.")


def image_maps(maps, x=None):
    """Maps ``(b, H, W)`` as a finite float32 array; with images ``(b, H, W, C)``, both, of the same size."""
    maps = finite_array(maps, "maps", "(b, H, W)", 3)
    if x is None:
        return maps
    x = finite_array(x, "images", "(b, H, W, C)", 4)
    if maps.shape != x.shape[:3]:
        raise ValueError(f"Expected a map of shape {x.shape[1:3]} for each of {len(x)} images; received {maps.shape}.")
    return maps, x


def positive_int(name, value, most=None):
    """Refuse what is no integer from 1, to ``most`` if given."""
    if not isinstance(value, int | np.integer) or value < 1 or (most is not None and value > most):
        limit = "" if most is None else f" to {most}"
        raise ValueError(f"{name} must be an integer from 1{limit}; received {value!r}.")
