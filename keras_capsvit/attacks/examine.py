"""Whether an attack can be trusted: what its objective returns, and whether its gradient reaches the pixels."""

import typing
import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit import autodiff, caches, checks, taps

NOT_FINITE = "The attack met NaN or infinite values; expected a model of finite scores and gradients."
_FEW = 8  # images that an objective is examined with
_EXAMINED = caches.Cache(256)


class _Examined(typing.NamedTuple):
    classes: int
    leaves: str | None  # why gradients cannot be had of a callable that leaves the graph


def examine(objective, x, uses_gradients=True):
    """The number of classes of an objective, which is looked at once for each size of images, and again when the model
    has changed.

    Warned of are scores that are probabilities, and scores that change from call to call. What depends on weights,
    gradients that are zero and values that are not finite, shows in the result of every call, see ``check_result``.

    Args:
        objective: Objective.
        x: images ``(b, H, W, C)``, at least one; the first eight are tried.
        uses_gradients: bool, whether the attack does, so that a callable must not leave the graph.

    Returns:
        int.

    Raises:
        ValueError: for scores of a wrong shape, NaN or infinite ones, and a callable that leaves the graph.
    """
    examined = _look(objective, x)
    if uses_gradients and examined.leaves:
        raise ValueError(examined.leaves)
    return examined.classes


def leaves_graph(objective, x):
    """Whether an objective that was examined can only be called, not compiled; arguments are those of ``examine``."""
    return _look(objective, x).leaves is not None


def judged(objective, x, y, sign):
    """Whether images fool the objective.

    Args:
        objective: Objective.
        x: images ``(b, H, W, C)``.
        y: class ids ``(b,)``.
        sign: -1 targeted, else 1.

    Returns:
        Bools ``(b,)``.

    Raises:
        ValueError: for scores that are not finite.
    """
    scores = objective.scored(x)
    _check_finite(scores)
    return (scores.argmax(axis=-1) == ops.convert_to_numpy(y)) == (sign < 0)


def _look(objective, x):
    owners, which, _ = objective.parts()
    return _EXAMINED.get(owners, (which, x.shape[1:]), lambda: _examined(objective, x[:_FEW]))


def _are_others(scores, objective, x):
    """Whether scores are not those of a call of a model that is not compiled, which in half precision rounds otherwise;
    on JAX a compiled one draws the same random numbers at every call."""
    again = ops.convert_to_numpy(objective(ops.convert_to_tensor(x)))
    return not np.allclose(ops.convert_to_numpy(scores), again, rtol=1e-3, atol=1e-4)


def _examined(objective, x):
    function = _callable(getattr(objective, "model", None))
    leaves = None if function is None else _returns_arrays(function, x)
    try:
        scores = objective(x) if leaves else objective.scored(x)
    except Exception as error:
        if function is None and isinstance(error, ValueError):  # what the scores themselves refuse
            raise
        if function is None:
            raise checks.wrong_size(x, getattr(objective.model, "name", "the model"), error) from error
        scores = objective(ops.convert_to_tensor(x))
        leaves = f"{_LEAVES} It runs on arrays, but not when it is compiled: {error!s:.300}"
    scores = ops.convert_to_numpy(scores)
    if scores.ndim != 2 or len(scores) != len(x) or scores.shape[1] < 2:
        raise ValueError(f"An objective must return scores of shape ({len(x)}, classes); received {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("The objective returned NaN or infinite scores on the clean images.")
    same_precision = function is not None and objective.precision == "float32"
    if _are_others(scores, objective, x) and (
        same_precision or _are_others(objective(ops.convert_to_tensor(x)), objective, x)
    ):
        _warn("the scores of the same images differ from call to call; average over several calls")
    if not objective.normalized and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-4):
        _warn("the scores are probabilities (rows sum to 1), the softmax of which is nearly flat; return logits")
    return _Examined(scores.shape[1], leaves)


def check_result(objective, start, result, y, targeted, raised, rounding):
    """Refuse a result that is not finite, and that of an attack that could not move for want of a gradient.

    Args:
        objective: Objective.
        start: images ``(b, H, W, C)`` before the first step.
        result: images after the last.
        y: class ids ``(b,)``.
        targeted: bool.
        raised: callable from the objective to the function ``(x, y) → (values (b,), scores)`` that is changed.
        rounding: float, change of a pixel that is none.

    Raises:
        ValueError: for NaN or infinite pixels or gradients.
        NoGradientError: if no image moved, and the gradient of all that are not fooled is exactly zero. Where
            some moved, a warning tells how many could not.
    """
    _check_finite(result)
    stuck = np.all(np.abs(start - result) <= rounding, axis=(1, 2, 3))
    if not stuck.any():
        return
    gradient = objective.compiled(
        ("stuck", raised), lambda objective: autodiff.gradient(raised(objective), has_aux=True)
    )
    (_, scores), slope = gradient(start, y)  # of all of them, so that one trace serves any number
    scores, slope = ops.convert_to_numpy(scores), ops.convert_to_numpy(slope)
    _check_finite(scores)  # of NaN, ReLUs have a gradient of zero
    _check_finite(slope)
    fooled = (scores.argmax(axis=-1) == y) == targeted
    blocked = stuck & ~fooled & ~np.any(slope, axis=(1, 2, 3))
    if stuck.all() and blocked.any() and (blocked | fooled).all():
        raise checks.NoGradientError(
            f"The gradient is exactly zero for all of {blocked.sum()} images that are not fooled, so no gradient "
            "attack can change them, and a robust accuracy would say nothing. Expected a model that is "
            "differentiable from pixels to scores; look for integer inputs, rounding, a callable that leaves the "
            "graph, or a saturated loss (then take CarliniWagner or DeepFool, which work on the scores themselves)."
        )
    if blocked.any():
        _warn(f"the gradient is zero for {blocked.sum()} of {len(start)} images, which no gradient attack can change")


_LEAVES = (
    "Expected a callable that computes scores from tensors with operations of the backend, which gradients pass "
    "through; pass the model itself, not its predict method."
)


def _check_finite(values):
    if not np.isfinite(values).all():
        raise ValueError(NOT_FINITE)


def _callable(model):
    """The callable if it is no model and no scores of one, else None."""
    known = isinstance(model, keras.Layer | taps.Scores) or taps.names(model) or not callable(model)
    return None if known else model


def _returns_arrays(function, x):
    """Why a callable has no gradient, a str, if it returns no tensor, or takes arrays only; else None."""
    name = getattr(function, "__name__", type(function).__name__)
    with checks.running(name, x):
        try:
            scores = function(ops.convert_to_tensor(x))
        except (TypeError, AttributeError) as error:
            scores = taps.on_array(function, x, error)
    return None if ops.is_tensor(scores) else f"{_LEAVES} Received {type(scores).__name__} from {name}."


def _warn(reason):
    warnings.warn(f"This attack may look weaker than it is: {reason}.", stacklevel=6)
