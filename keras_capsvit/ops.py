"""Arithmetic of capsules, attention and labels, on any Keras backend."""

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks


def _at_least_float32(x):
    # Squares of half-precision numbers under- and overflow where the numbers themselves do not.
    return ops.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x


def _of_vectors(x, axis):
    """A tensor of floats that has an axis."""
    x = ops.convert_to_tensor(checks.tensor("x", x, "(..., vector)"))
    rank = len(x.shape)
    checks.integer("axis", axis, -rank, rank - 1)
    return x


def _check_sizes(name, sizes, expected):
    if any(None not in pair and len(set(pair)) > 1 for pair in zip(sizes, expected, strict=True)):
        raise ValueError(f"Expected {name} of sizes {expected}, as those of the weights; received {tuple(sizes)}.")


def safe_norm(x, axis=-1, keepdims=False):
    """Euclidean length whose gradient at the zero vector is zero instead of NaN.

    Args:
        x: float tensor of any shape.
        axis: int, the axis that holds the vectors.
        keepdims: bool, whether that axis stays, with size 1.

    Returns:
        Tensor of the lengths, the shape of ``x`` without ``axis`` (or with size 1 there); NaN where ``x`` has any.
        Half-precision input is measured and returned in float32.
    """
    x = _at_least_float32(_of_vectors(x, axis))
    checks.booleans(keepdims=keepdims)
    squared = ops.sum(ops.square(x), axis=axis, keepdims=keepdims)
    zero = ops.equal(squared, 0)  # not "above 0", which NaN is not either
    # The inner `where` keeps the square root's infinite slope out of the backward pass as well.
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squared)))


def squash(x, axis=-1):
    """Shrink vectors to a length below 1 and keep their direction.

    ``squash(s) = ||s||^2 / (1 + ||s||^2) * s / ||s||`` (thesis Eq. 3.5; Sabour et al. 2017, Eq. 1).

    Args:
        x: float tensor of any shape.
        axis: int, the axis that holds the vectors.

    Returns:
        Tensor of the shape and dtype of ``x``; lengths in [0, 1). (In float32 a vector longer than about 4,000
        rounds to length 1.) The zero vector stays zero, with a zero gradient.
    """
    x = _of_vectors(x, axis)
    norm = safe_norm(x, axis=axis, keepdims=True)
    # ||s|| / (1 + ||s||^2), without the division by ||s|| that Eq. 5 has at the origin.
    return x * ops.cast(norm / (1.0 + ops.square(norm)), x.dtype)


def contributions(weights, votes, lengths=None):
    """What every vote adds to the length of the sum along whose direction it is measured.

    With ``s_j = sum_i w_ij u_ij``, the weighted sum of the votes for capsule ``j``::

        c_ij = w_ij <u_ij, s_j> / ||s_j||        sum_i c_ij = ||s_j||

    Args:
        weights: tensor ``(b, i, j)``, couplings or attention.
        votes: tensor ``(b, i, j, e)``; or ``(b, i, 1, e)``, the same vote for all capsules.
        lengths: tensor ``(b, j)``, what contributions are to add up to instead of ``||s_j||``.

    Returns:
        float32 tensor ``(b, i, j)``, signed; 0 where ``s_j`` is the zero vector.

    Raises:
        ValueError: for shapes that do not fit each other.
    """
    weights = ops.cast(checks.tensor("weights", weights, "(b, i, j)"), "float32")
    votes = ops.cast(checks.tensor("votes", votes, "(b, i, j, e)"), "float32")
    batch, inputs, outputs = weights.shape
    _check_sizes("votes", votes.shape[:3], (batch, inputs, 1 if votes.shape[2] == 1 else outputs))
    if votes.shape[2] == 1:  # by matrix products, which need no copy of the votes for each capsule
        votes = votes[:, :, 0]
        total = ops.matmul(ops.transpose(weights, (0, 2, 1)), votes)
    else:
        total = ops.sum(weights[..., None] * votes, axis=1)
    norm = safe_norm(total, keepdims=True)
    zero = ops.equal(norm, 0)
    direction = total / ops.where(zero, 1.0, norm)
    if lengths is not None:
        lengths = ops.cast(checks.tensor("lengths", lengths, "(b, j)"), "float32")
        _check_sizes("lengths", lengths.shape, (batch, outputs))
        direction = direction * (lengths[..., None] / ops.where(zero, 1.0, norm))
    if len(votes.shape) == 3:
        return weights * ops.matmul(votes, ops.transpose(direction, (0, 2, 1)))
    return weights * ops.sum(votes * direction[:, None], axis=-1)


def attention_rollout(attention, prefix, read=None):
    """How much of every patch reaches the tokens that logits are read from (Abnar & Zuidema 2020; thesis 7.5.1).

    Attention of a block, with its skip connection, is ``(A + I)`` with rows scaled to sum to 1; blocks are multiplied.

    Args:
        attention: list of tensors ``(b, t, t)``, the first block first, heads fused.
        prefix: int, tokens in front of the patches.
        read: ints, positions of the tokens that the logits are read from; None for those in front, or all if there are
            none.

    Returns:
        Tensor ``(b, t - prefix)``, for each patch the mean over the tokens that are read.

    Raises:
        ValueError: for matrices of different sizes or none, and tokens that there are not.
    """
    attention = _matrices("attention", attention)
    tokens = attention[0].shape[-1]
    checks.integer("prefix", prefix, 0, tokens - 1)
    read = np.arange(prefix or tokens) if read is None else read
    mixed = (fused + ops.eye(tokens) for fused in reversed(attention))
    return reached(read, [each / ops.sum(each, axis=-1, keepdims=True) for each in mixed])[:, prefix:]


def reached(read, matrices):
    """How much of every token reaches some of them, on average.

    Args:
        read: ints, positions of the tokens that are reached.
        matrices: list of tensors ``(b, t, t)``, the **last** block first, whose rows say what a token is made of.

    Returns:
        Tensor ``(b, t)``.

    Raises:
        ValueError: for matrices of different sizes or none, and tokens that there are not.
    """
    matrices = _matrices("matrices", matrices)
    tokens = matrices[0].shape[-1]
    read = checks.integers("read", read, (None,), "(r,)")
    if not read.size or read.max() >= tokens:
        raise ValueError(f"read must be positions of some of the {tokens} tokens; received {read.tolist()}.")
    row = np.zeros((1, 1, tokens), "float32")
    row[..., read] = 1 / len(read)
    for matrix in matrices:  # products of a row with matrices, not of matrices
        row = ops.matmul(row, matrix)
    return row[:, 0]


def _matrices(name, values):
    """A list of tensors of square matrices, all of one shape."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name} must be a list of tensors (b, t, t), one per block; received {values!r:.60}.")
    values = [checks.tensor(name, each, "(b, t, t)") for each in values]
    shapes = {tuple(each.shape[1:]) for each in values}
    if len(shapes) > 1 or len(set(*shapes)) > 1:
        raise ValueError(f"{name} must be tensors (b, t, t) of the same t; received {sorted(shapes, key=str)}.")
    return values


def as_multi_hot(labels, num_classes, *, shares=False):
    """Class ids or multi-hot labels as a multi-hot tensor.

    Args:
        labels: class ids of shape ``(b,)`` or ``(b, 1)``, or a multi-hot tensor ``(b, num_classes)``; see
            ``check_labels``.
        num_classes: int.
        shares: bool, see ``check_labels``.

    Returns:
        float32 tensor ``(b, num_classes)``. Inside a compiled function, where values are not known, what
        ``check_labels`` would refuse becomes NaN: a row of NaN of an id or of shares, an entry of a multi-hot one.

    Raises:
        ValueError: see ``check_labels``.
    """
    num_classes = checks.positive_int("num_classes", num_classes, 2**31 - 1)
    labels = labels if hasattr(labels, "shape") else checks.numbers(labels, "labels")
    rows = labels.shape[0] if len(labels.shape) else None
    checks.memory("Multi-hot labels", (rows or 1, num_classes), "Take fewer classes or a smaller batch.", times=1)
    kind = check_labels(labels, num_classes, shares=shares)  # of what came in: a tensor of JAX may have fewer bits
    labels = ops.convert_to_tensor(labels)
    if kind == "multi-hot":
        rows = ops.cast(labels, "float32")
        rows = ops.where(ops.logical_and(rows >= 0, rows <= 1), rows, float("nan"))
        if not shares:
            return rows
        return ops.where(ops.abs(ops.sum(rows, axis=1, keepdims=True) - 1) < _SLACK, rows, float("nan"))
    ids = ops.reshape(labels, (-1,))
    ids = ops.cast(ids, _WIDER.get(keras.backend.standardize_dtype(ids.dtype), ids.dtype))
    legal = ops.logical_and(ids >= 0, ids < num_classes)
    if keras.backend.is_float_dtype(ids.dtype):
        legal = ops.logical_and(legal, ops.equal(ids, ops.floor(ids)))
    # Compared before the cast, in which 2**32 would be class 0.
    rows = ops.one_hot(ops.cast(ids, "int32"), num_classes, dtype="float32")
    return ops.where(legal[:, None], rows, float("nan"))


# Of ids, types whose highest value may be below the number of classes.
_WIDER = {**dict.fromkeys(("int8", "uint8", "int16", "uint16"), "int32"), "float16": "float32", "bfloat16": "float32"}


_SLACK = 1e-2  # of a sum of shares in half precision


def check_labels(labels, num_classes, *, shares=False):
    """Refuse labels of a wrong shape or type, and, where their values are known, out of range.

    Args:
        labels: array or tensor; inside a compiled function only its shape and type are known.
        num_classes: int.
        shares: bool, whether rows have to sum to 1, as those of one class, or of mixed images, do.

    Returns:
        str, ``"ids"`` for class ids ``(b,)`` or ``(b, 1)``, ``"multi-hot"`` for ``(b, num_classes)``.

    Raises:
        ValueError: for another shape, other types than integers and floats, ids that are no integers or outside
            ``0 ... num_classes - 1``, multi-hot entries outside [0, 1], or, with ``shares``, rows of another sum.
    """
    checks.booleans(shares=shares)
    shape = tuple(labels.shape)
    if len(shape) == 2 and shape[1] == num_classes:
        kind = "multi-hot"
    elif len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        kind = "ids"
    else:
        raise ValueError(
            f"Labels must be class ids of shape (batch,) or multi-hot of shape (batch, {num_classes}); "
            f"received shape {shape}."
        )
    dtype = getattr(labels.dtype, "name", str(labels.dtype))
    if not dtype.startswith(("int", "uint", "float", "bfloat")):
        raise ValueError(f"Labels must be integers, or floats that are; received {dtype}. Cast them to int.")
    try:
        values = ops.convert_to_numpy(labels)
    except (NotImplementedError, TypeError, ValueError, AttributeError):  # traced: no values yet
        return kind
    if kind == "ids":
        checks.class_ids(values, len(values), num_classes)
    elif values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"Expected multi-hot entries between 0 and 1; received values between {values.min()} and {values.max()}."
        )
    elif shares:
        _check_sums(np.float64(values).sum(axis=1))
    return kind


def _check_sums(sums):
    if not (np.abs(sums - 1) < _SLACK).all():
        raise ValueError(
            "Expected labels of one class, or of shares that sum to 1, in each row; received sums between "
            f"{sums.min()} and {sums.max()}. For several classes at once take the margin loss or binary cross-entropy."
        )
