"""Borders between classes, where two scores are equal: on which side images are, and which border is nearest."""

from keras import ops


def fools(scores, y, sign):
    """Whether scores ``(b, M)`` are of fooled images ``(b,)``: not of class ``y``, or for a sign below 0, of it.

    Scores of NaN, of which no class is the highest, are not.
    """
    fooled = ops.equal(ops.equal(ops.argmax(scores, axis=-1), y), sign < 0)
    return ops.logical_and(fooled, ops.logical_not(ops.any(ops.isnan(scores), axis=-1)))


def lead(scores, y):
    """By how much the scores of classes ``y (b,)`` exceed the highest of the others, ``(b,)``."""
    own = ops.one_hot(y, scores.shape[-1], dtype=scores.dtype)
    return ops.sum(own * scores, axis=1) - ops.max(scores - 1e30 * own, axis=1)


def rivals(scores, y, count):
    """The classes of the highest scores besides the own one, tensor of ids ``(b, count)``, the highest first.

    Args:
        scores: ``(b, M)``.
        y: own class ids ``(b,)``.
        count: int below M.
    """
    own = ops.one_hot(y, scores.shape[1], dtype="float32")
    return ops.top_k(scores - 1e30 * own, count)[1]


def margins(scores, y, ids):
    """By how much the scores ``(b, M)`` of classes ``ids (b, k)`` exceed that of the own class, ``(b, k)``."""
    own = ops.one_hot(y, scores.shape[1], dtype="float32")
    return ops.take_along_axis(scores, ids, axis=1) - ops.sum(own * scores, axis=1, keepdims=True)


def nearest(values, gradients, norm, flattest):
    """The border that is nearest, if scores were linear.

    Args:
        values: ``(b, k)``, margins, zero on the borders.
        gradients: ``(b, k, ...)``, theirs.
        norm: one of NORMS, that distances are measured in.
        flattest: float above 0, what is added to slopes, which may be zero.

    Returns:
        Margin ``(b,)`` and gradient ``(b, ...)`` of the nearest border, and its distance ``(b,)``.
    """
    distances = ops.abs(values) / (norm.dual(gradients) + flattest)
    is_nearest = ops.one_hot(ops.argmin(distances, axis=1), values.shape[1], dtype="float32")
    gradient = ops.einsum("bk,bk...->b...", is_nearest, gradients)
    return ops.sum(is_nearest * values, axis=1), gradient, ops.sum(is_nearest * distances, axis=1)
