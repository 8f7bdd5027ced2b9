"""A step of Adam (Kingma and Ba 2015), inside loops of tensors."""

from keras import ops


def adam(i, slope, mean, square):
    """The direction of a step, and the means that the next one needs.

    Args:
        i: int tensor, number of the step, from 0.
        slope: gradient, a tensor of any shape.
        mean: mean of gradients before, of its shape; zeros at first.
        square: that of their squares.

    Returns:
        Direction, which a step size multiplies, ``mean`` and ``square``.
    """
    mean = 0.9 * mean + 0.1 * slope
    square = 0.999 * square + 0.001 * ops.square(slope)
    t = ops.cast(i + 1, "float32")
    return (mean / (1 - 0.9**t)) / (ops.sqrt(square / (1 - 0.999**t)) + 1e-8), mean, square
