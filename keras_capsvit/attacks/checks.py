"""What is checked before an attack: its input, and whether its gradients can be trusted."""

import warnings

import numpy as np
from keras import ops

from keras_capsvit import autodiff

TOLERANCE = 1e-6  # of pixels beyond the bounds, from arithmetic in float32
_FEW = 8  # images that an objective is examined with


def check_inputs(x, y, bounds):
    """Images and labels of an attack as arrays.

    Args:
        x: images ``(b, H, W, C)`` within ``bounds``; up to 1e-6 outside is put right.
        y: class ids ``(b,)``.
        bounds: pair of floats.

    Returns:
        float32 images and int32 labels, NumPy.

    Raises:
        ValueError: for other shapes, labels that are not integers from 0, and pixels that are NaN or outside bounds.
    """
    x, y = np.asarray(ops.convert_to_numpy(x), "float32"), np.asarray(ops.convert_to_numpy(y))
    if x.ndim != 4:
        raise ValueError(f"Images must have shape (batch, height, width, channels); received {x.shape}.")
    if y.shape != x.shape[:1]:
        raise ValueError(f"Labels must be class ids of shape ({len(x)},), one per image; received shape {y.shape}.")
    if not np.issubdtype(y.dtype, np.integer) or (y.size and y.min() < 0):
        raise ValueError(f"Labels must be integers from 0; received {y.dtype}, lowest {y.min()}.")
    if not np.isfinite(x).all():
        raise ValueError(f"Pixels must be finite; received {np.count_nonzero(~np.isfinite(x))} NaN or infinite values.")
    low, high = bounds
    if x.size and (x.min() < low - TOLERANCE or x.max() > high + TOLERANCE):
        raise ValueError(
            f"Pixels must lie within the bounds [{low}, {high}]; received values in [{x.min()}, {x.max()}]. Scale the "
            "images, or tell the attack its bounds."
        )
    return x.clip(low, high), y.astype("int32")


def examine(objective, x, y):
    """Check, once per objective, that labels fit it, and warn of what makes gradient attacks look weaker than they are.

    Warned of are scores that are probabilities, zero gradients, and scores that change from call to call.

    Args:
        objective: Objective.
        x: images ``(b, H, W, C)``; the first eight are tried.
        y: class ids ``(b,)``.

    Raises:
        ValueError: for scores of a wrong shape or NaN, and labels that name no class.
    """
    if len(x) and not objective.examined:
        _examine(objective, x[:_FEW], y[:_FEW])
        objective.examined = True
    if len(y) and y.max() >= objective.num_classes:
        raise ValueError(f"Labels must lie below {objective.num_classes}, the number of classes; received {y.max()}.")


def _examine(objective, x, y):
    scores, again = (ops.convert_to_numpy(objective(ops.convert_to_tensor(x))) for _ in range(2))
    if scores.ndim != 2 or len(scores) != len(x):
        raise ValueError(f"An objective must return scores of shape ({len(x)}, classes); received {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("The objective returned NaN or infinite scores on the clean images.")
    objective.num_classes = scores.shape[1]
    if not np.allclose(scores, again, rtol=1e-4, atol=1e-5):
        _warn("the scores of the same images differ from call to call; average the gradients over several calls")
    if not objective.normalized and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-4):
        _warn("the scores are probabilities (rows sum to 1), the softmax of which is nearly flat; return logits")
    labels = np.minimum(y, objective.num_classes - 1)
    gradient = autodiff.value_and_gradient(objective.loss, objective.variables)(x, labels)[1]
    zero = ~np.any(ops.convert_to_numpy(gradient), axis=(1, 2, 3))
    if zero.any():
        _warn(f"the gradient is zero for {zero.sum()} of {len(x)} images, which no gradient attack can change")


def _warn(what):
    warnings.warn(f"This attack may look weaker than it is: {what}.", stacklevel=5)
