"""How votes and class capsules agree, and what gradient reaches the votes."""

import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.autodiff import value_and_gradient
from keras_capsvit.ops import safe_norm


def agreement(votes, capsules, coupling, labels):
    """Agreement of votes and class capsules, the two terms of thesis Eq. 4.7 (Fig. 4.2), averaged over images.

    With ``t`` the true class, and ``v_j`` for the ``g(sum_i c_ij u_hat_{j|i})`` of the equation::

        target = sum_i c_it u_hat_{t|i} . v_t        others = sum_{j != t} sum_i c_ij u_hat_{j|i} . v_j

    Args:
        votes: array or tensor ``(b, i, j, e)``.
        capsules: array or tensor ``(b, j, e)``, the class capsules.
        coupling: array or tensor ``(b, i, j)``, or ``(i, j)`` where it is the same for all images.
        labels: class ids ``(b,)`` or ``(b, 1)``, or one-hot.

    Returns:
        ``(target, others)``, floats.

    Raises:
        ValueError: for shapes that do not fit, no images, values that are not finite, or labels out of range.
    """
    votes, capsules, coupling, ids = _routed(votes, capsules, coupling, labels)
    terms = np.sum(coupling * np.einsum("bije,bje->bij", votes, capsules, dtype="float64"), axis=1)
    target = terms[np.arange(len(ids)), ids]
    return float(target.mean()), float((terms.sum(axis=1) - target).mean())


def vote_statistics(votes, capsules, coupling, labels):
    """What thesis Fig. 6.2 histograms, for the true class and the longest other one (L-NGT, not ground truth).

    Args:
        votes: array or tensor ``(b, i, j, e)``.
        capsules: array or tensor ``(b, j, e)``, the class capsules; at least two classes.
        coupling: array or tensor ``(b, i, j)``, or ``(i, j)`` where it is the same for all images.
        labels: class ids ``(b,)`` or ``(b, 1)``, or one-hot.

    Returns:
        dict of NumPy arrays whose first axis is (true class, L-NGT class): ``classes (2, b)``, the class ids;
        ``cosine (2, b, i)``, cos(v_j, u_hat_{j|i}) in [-1, 1], 0 where one of the two is the zero vector;
        ``length (2, b, i)`` of the votes; ``coupling (2, b, i)``.

    Raises:
        ValueError: for shapes that do not fit, no images, a single class, values that are not finite, or labels out of
            range.

    Example::

        true, other = evaluate.vote_statistics(votes, capsules, coupling, y)["cosine"]
        share, edges = np.histogram(true, bins=100, range=(-1, 1))
    """
    votes, capsules, coupling, ids = _routed(votes, capsules, coupling, labels)
    if capsules.shape[1] < 2:
        raise ValueError("The longest class that is not the true one needs at least 2 classes; received 1.")
    rows = np.arange(len(ids))
    capsules = capsules.astype("float64")  # whose squares neither over- nor underflow
    lengths = np.linalg.norm(capsules, axis=-1)
    lengths[rows, ids] = -1.0
    classes = np.stack([ids, lengths.argmax(axis=-1)])
    class_votes = votes[rows, :, classes].astype("float64")  # (2, b, i, e)
    towards = capsules[rows, classes][:, :, None]
    length = np.linalg.norm(class_votes, axis=-1)
    scale = length * np.linalg.norm(towards, axis=-1)
    cosine = np.sum(class_votes * towards, axis=-1) / np.where(scale > 0, scale, 1.0)
    return {
        "classes": classes,
        "cosine": np.clip(cosine, -1.0, 1.0),  # rounding must not push a vote out of a histogram over [-1, 1]
        "length": length,
        "coupling": coupling[rows, :, classes],
    }


def vote_gradients(route, votes, loss):
    """Gradient of a loss at the votes, to compare routings by (rolled and unrolled ones in thesis Fig. 4.1, Eq. 4.5).

    Args:
        route: callable from votes ``(b, i, j, e)`` to class capsules ``(b, j, e)``, such as a routing layer.
        votes: array or tensor ``(b, i, j, e)``.
        loss: callable from lengths ``(b, j)`` to one value per image, ``(b,)``.

    Returns:
        NumPy array ``(b, i, j, e)``.

    Raises:
        ValueError: for votes, capsules or losses of another shape, and votes or gradients that are not finite.
    """
    votes = checks.finite_array(votes, "votes", "(batch, inputs, classes, dimension)", 4)
    checks.function("route", route, "from votes (b, i, j, e) to class capsules (b, j, e)")
    checks.function("loss", loss, "from lengths (b, j) to one value per image, (b,)")

    def losses(votes):
        capsules = route(votes)
        checks.of_shape("route must return class capsules", (votes.shape[0], *votes.shape[2:]), capsules)
        values = loss(safe_norm(capsules))
        checks.of_shape("loss must return one value per image", (votes.shape[0],), values)
        return values

    return checks.finite(ops.convert_to_numpy(value_and_gradient(losses)(votes)[1]), "gradients")


def _routed(votes, capsules, coupling, labels):
    """The four as NumPy arrays that fit each other, the coupling as ``(b, i, j)``."""
    votes = checks.finite_array(votes, "votes", "(batch, inputs, classes, dimension)", 4)
    batch, inputs, classes, dim = votes.shape
    capsules = checks.finite_array(capsules, "capsules", "(batch, classes, dimension)", 3)
    if capsules.shape != (batch, classes, dim):
        raise ValueError(
            f"Votes of shape {votes.shape} need capsules {(batch, classes, dim)}; received {capsules.shape}."
        )
    shape = (batch, inputs, classes)
    coupling = checks.numbers(coupling, "coupling")
    if coupling.shape not in (shape, shape[1:]):
        raise ValueError(
            f"Votes of shape {votes.shape} need a coupling of shape {shape} or {shape[1:]}; received {coupling.shape}."
        )
    coupling = checks.finite_array(np.broadcast_to(coupling, shape), "coupling", "(batch, inputs, classes)", 3)
    return votes, capsules, coupling, checks.class_ids(labels, batch, classes)
