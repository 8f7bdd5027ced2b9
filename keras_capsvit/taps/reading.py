"""How a transformer's class scores come from its tokens."""

import math

import numpy as np

from keras_capsvit.taps.feature_maps import tokens
from keras_capsvit.taps.influence import influence
from keras_capsvit.taps.seen import look


def attentions(subject, x=None):
    """Shapes ``(heads, t, t)`` of the self-attentions of a model, a list in the order they run in; see ``tokens``."""
    return [shape[1:] for shape in look(subject, x).attentions]


def tokens_read(subject, x=None):
    """The tokens that the class scores are read from: the class token, several, or all of a global pooling.

    Args:
        subject: see ``tokens``.
        x: images, of a model that does not tell their size.

    Returns:
        int array, positions among all tokens, those in front of the patches included.

    Raises:
        ValueError: see ``tokens``; and for a model that returns no tokens behind its last attention.
    """
    prefix, grid = tokens(subject, x)
    seen, count = look(subject, x), prefix + math.prod(grid)
    size = subject.input_shape if x is None else tuple(x.shape[1:])
    for name in reversed(list(seen.shapes)[seen.before[-1] :]):
        if len(seen.shapes[name]) == 2 and seen.shapes[name][0] == count:
            positions = np.flatnonzero(influence(subject, name, seen.shapes[name], size).any(axis=-1))
            if len(positions):
                return positions
    raise ValueError(
        f"Expected a model with a layer behind its last attention that returns its {count} tokens (b, t, c), and "
        f"class scores that depend on them; {subject.name} has none."
    )
