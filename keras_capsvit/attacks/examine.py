"""Whether an attack can be trusted: what its objective returns, and whether its gradient reaches the pixels."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit import autodiff, caches, taps

_FEW = 8  # images that an objective is examined with, at every call
_EXAMINED = caches.Cache(256)


def examine(objective, x):
    """Look at the scores of up to eight clean images, with the weights of this moment.

    Warned of are, once per objective, scores that are probabilities, and scores that change from call to call.

    Args:
        objective: Objective.
        x: images ``(b, H, W, C)``, at least one.

    Returns:
        int, the number of classes.

    Raises:
        ValueError: for scores of a wrong shape, NaN or infinite ones, and a callable that leaves the graph.
    """
    few = x[:_FEW]
    owners, which, _ = objective.parts()
    plain = _plain(getattr(objective, "model", None))
    if plain is not None:
        _EXAMINED.get(owners, ("callable", which), lambda: _check_callable(plain, few))
    try:
        scores = ops.convert_to_numpy(objective.compiled("scores", lambda objective: objective.__call__)(few))
    except Exception as error:
        if plain is None:
            raise
        raise ValueError(f"{_LEAVES} It runs on arrays, but not when it is compiled: {error!s:.300}") from error
    if scores.ndim != 2 or len(scores) != len(few) or scores.shape[1] < 2:
        raise ValueError(f"An objective must return scores of shape ({len(few)}, classes); received {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("The objective returned NaN or infinite scores on the clean images.")
    _EXAMINED.get(owners, which, lambda: _warn_of(objective, few, scores))
    return scores.shape[1]


def check_moved(objective, start, result, y, targeted, raised):
    """Refuse an attack that could not move, because the gradient is zero at every image that it has not fooled.

    Args:
        objective: Objective.
        start: images ``(b, H, W, C)`` before the first step.
        result: images after the last.
        y: class ids ``(b,)``.
        targeted: bool.
        raised: callable from the objective to the function ``(x, y) → (values (b,), scores)`` whose gradient is followed.

    Raises:
        ValueError: if no image moved and the gradient of all that are not fooled is exactly zero; where some moved, a
            warning tells how many could not.
    """
    stuck = np.all(start == result, axis=(1, 2, 3))
    if not stuck.any():
        return
    gradient = objective.compiled(
        ("stuck", raised), lambda objective: autodiff.gradient(raised(objective), has_aux=True)
    )
    (_, scores), slope = gradient(start[stuck], y[stuck])
    fooled = (ops.convert_to_numpy(scores).argmax(axis=-1) == y[stuck]) == targeted
    blocked = ~fooled & ~np.any(ops.convert_to_numpy(slope), axis=(1, 2, 3))
    if stuck.all() and blocked.any() and (blocked | fooled).all():
        raise ValueError(
            f"The gradient is exactly zero for all of {blocked.sum()} images that are not fooled, so no gradient attack "
            "can change them, and a robust accuracy would say nothing. Expected a model that is differentiable from "
            "pixels to scores; look for integer inputs, rounding, a callable that leaves the graph, or a loss that is "
            "saturated (then take CarliniWagner or DeepFool, which work on the scores themselves)."
        )
    if blocked.any():
        _warn(f"the gradient is zero for {blocked.sum()} of {len(start)} images, which no gradient attack can change")


_LEAVES = (
    "Expected a callable that computes scores from tensors with operations of the backend, which gradients pass through; "
    "pass the model itself, not its predict method."
)


def _plain(model):
    """The callable if it is no model and no scores of one, else None."""
    known = isinstance(model, keras.Layer | taps.Scores) or taps.names(model) or not callable(model)
    return None if known else model


def _check_callable(function, x):
    scores = function(ops.convert_to_tensor(x))
    if not ops.is_tensor(scores):
        raise ValueError(f"{_LEAVES} Received {type(scores).__name__} from {getattr(function, '__name__', function)}.")
    return True


def _warn_of(objective, x, scores):
    again = ops.convert_to_numpy(objective(ops.convert_to_tensor(x)))
    if not np.allclose(scores, again, rtol=1e-3, atol=1e-4):
        _warn("the scores of the same images differ from call to call; average the gradients over several calls")
    if not objective.normalized and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-4):
        _warn("the scores are probabilities (rows sum to 1), the softmax of which is nearly flat; return logits")
    return True


def _warn(what):
    warnings.warn(f"This attack may look weaker than it is: {what}.", stacklevel=6)
