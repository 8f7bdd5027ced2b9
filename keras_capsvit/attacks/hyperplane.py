"""The shortest way from an image to a hyperplane without leaving the bounds, exactly, in three norms.

Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", Eq. 4 and the
appendix on projections: pixels go towards the plane at rates that the norm tells, until each of them meets a bound.
"""

from keras import ops

# Weights as small as this share of the largest count as none; their squares would underflow.
_NO_WEIGHT = 1e-15
_TINY = 1e-30


def linf(x, normal, gap, limits):
    """Smallest change in L-infinity, see ``l2``."""
    # All pixels of any weight move at the same rate.
    return _by_level(x, normal, gap, limits, lambda weights: ops.cast(weights > _NO_WEIGHT, "float32"))


def l2(x, normal, gap, limits):
    """Smallest change in L2 that brings images onto a hyperplane each, or as near to it as the bounds allow.

    Args:
        x: images ``(b, H, W, C)`` within the limits.
        normal: ``(b, H, W, C)``, normals of the planes; where one is zero, nothing changes.
        gap: ``(b,)``, what the products of normals and changes have to be.
        limits: pair of the lowest and the highest pixels, numbers or ``(C,)``.

    Returns:
        Changes ``(b, H, W, C)``.
    """
    return _by_level(x, normal, gap, limits, lambda weights: weights)


def l1(x, normal, gap, limits):
    """Smallest change in L1, see ``l2``: the pixels of the largest weights first, as far as each of them can go."""
    direction, weights, room, gap = _one_sided(x, normal, gap, limits)
    order = ops.argsort(-weights, axis=1)
    weights, room = (ops.take_along_axis(each, order, axis=1) for each in (weights, room))
    covered = ops.cumsum(weights * room, axis=1) - weights * room
    moves = ops.clip((gap - covered) / ops.maximum(weights, _TINY), 0.0, room)
    moves = ops.take_along_axis(moves, ops.argsort(order, axis=1), axis=1)
    return direction * ops.reshape(moves, ops.shape(x))


def _by_level(x, normal, gap, limits, rates_of):
    """Changes whose pixels went at rates ``rates_of(weights)`` for the same time each, or until they met a bound."""
    direction, weights, room, gap = _one_sided(x, normal, gap, limits)
    rates = rates_of(weights)
    ends = ops.where(rates > _NO_WEIGHT, room / ops.maximum(rates, _NO_WEIGHT), 0.0)  # when pixels meet their bounds
    full, speed = weights * room, weights * rates
    order = ops.argsort(ends, axis=1)
    in_order, stopped, moving = (ops.take_along_axis(each, order, axis=1) for each in (ends, full, speed))
    # The product at each of these times: what the pixels that have stopped add, and what the others do.
    moving = ops.flip(ops.cumsum(ops.flip(moving, axis=1), axis=1), axis=1)
    product = ops.cumsum(stopped, axis=1) - stopped + in_order * moving
    last = ops.max(ops.where(product < gap, in_order, 0.0), axis=1, keepdims=True)  # that is too early
    moving = ops.sum(ops.where(ends > last, speed, 0.0), axis=1, keepdims=True)
    rest = gap - ops.sum(ops.where(ends > last, 0.0, full), axis=1, keepdims=True)
    # At the last end at most: a plane out of reach, or no weight at all.
    time = ops.clip(rest / ops.maximum(moving, _TINY), last, ops.max(ends, axis=1, keepdims=True))
    return direction * ops.reshape(ops.minimum(time * rates, room), ops.shape(x))


def _one_sided(x, normal, gap, limits):
    """The same problem with weights from 0 to 1: signs ``(b, H, W, C)`` of changes; weights, and room up to the bounds,
    ``(b, n)``; and the gap, ``(b, 1)``."""
    shape = (-1, normal.shape[1] * normal.shape[2] * normal.shape[3])
    gap = ops.reshape(gap, (-1, 1))
    side = ops.where(gap < 0, -1.0, 1.0)
    direction = ops.sign(normal) * ops.reshape(side, (-1, 1, 1, 1))
    room = ops.relu(ops.where(direction > 0, limits[1] - x, x - limits[0]))
    weights = ops.reshape(ops.abs(normal), shape)
    largest = ops.max(weights, axis=1, keepdims=True)
    largest = ops.where(ops.equal(largest, 0), 1.0, largest)
    return direction, weights / largest, ops.reshape(room, shape), side * gap / largest


CLOSEST = {"linf": linf, "l2": l2, "l1": l1}
