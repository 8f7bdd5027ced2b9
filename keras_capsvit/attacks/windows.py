"""Square windows of a random search: how large they are, where they lie, and what is put into them, for each norm."""

import typing

import numpy as np
from keras import ops

from keras_capsvit.attacks.norms import NORMS
from keras_capsvit.batches import generators

# Shares of the queries, in 10,000ths, after each of which the area of a window halves (Andriushchenko et al. 2020, 5).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SHORTEST = 1e-12  # lengths are divided by no less


class Squares(typing.NamedTuple):
    """What was drawn for some queries of some images, NumPy arrays; ``q`` counts queries.

    Args:
        corners: ints ``(q, b, 4)``, top and left of a window, and of a second one where a norm needs it.
        turned: bools ``(q, b)``, whether the pattern is transposed.
        signs: +1 or -1, ``(q, b, C)``.
    """

    corners: np.ndarray
    turned: np.ndarray
    signs: np.ndarray

    def of(self, rows):
        """Those of some images."""
        return Squares(*(drawn[:, rows] for drawn in self))


def levels(numbers, queries):
    """How often windows were halved before queries, ints.

    Args:
        numbers: ints, of queries, from 0; of ``queries`` in all.
        queries: int.
    """
    return np.searchsorted(_HALVED_AFTER, (numbers / queries * 10_000).astype("int32")).astype("int32")


def sides(p, shape, norm):
    """Sides of windows at each level, ints ``(10,)``.

    Args:
        p: float, area of the first, as a share of the image.
        shape: ``(H, W, C)``, of images.
        norm: str.
    """
    smallest, longest = (1 if norm == "linf" else 3), min(shape[:2])
    areas = p * shape[0] * shape[1] / 2.0 ** np.arange(len(_HALVED_AFTER) + 1)
    side = np.maximum(np.round(np.sqrt(areas)), smallest).astype("int32")
    if norm == "linf":
        return np.minimum(side, longest)
    return np.minimum(side + (side % 2 == 0), longest - (longest % 2 == 0)).astype("int32")  # odd


def draw(seed, numbers, side, shape):
    """Windows drawn uniformly from all that fit into images.

    Args:
        seed: see ``generators``.
        numbers: ints ``(b,)``, see Attack.
        side: ints ``(q,)``, of the windows of each query.
        shape: ``(H, W, C)``, of images.

    Returns:
        Squares.
    """
    size = (len(side), 5 + shape[2])
    uniform = np.stack([random.random(size) for random in generators(seed, numbers)], axis=1)
    room = np.array(shape[:2])[[0, 1, 0, 1]] - side[:, None, None] + 1
    signs = np.where(uniform[..., 5:] < 0.5, -1, 1).astype("float32")
    return Squares((uniform[..., :4] * room).astype("int32"), uniform[..., 4] < 0.5, signs)


class _Linf:
    """Windows of +epsilon or -epsilon in each channel (Alg. 2)."""

    def start(self, x, drawn, epsilon, limits):
        """Vertical stripes."""
        stripes = [np.where(random.random((1, *x.shape[2:])) < 0.5, -epsilon, epsilon) for random in drawn]
        return np.clip(x + np.stack(stripes), *limits).astype("float32")

    def patterns(self, side):
        """None is needed."""
        return np.zeros((len(side), 1, 1), "float32")

    def propose(self, x, images, side, pattern, square, epsilon, limits):
        """Images ``(b, H, W, C)`` to ask for next.

        Args:
            x: clean images ``(b, H, W, C)``.
            images: the best so far ``(b, H, W, C)``.
            side: int, of the windows.
            pattern: ``(s, s)``, what ``patterns`` gave for this side.
            square: Squares of one query, tensors ``(b, ...)``.
            epsilon: float, radius.
            limits: see Attack.
        """
        inside = _inside(*_coordinates(x, square.corners[:, :2]), side)
        edge = ops.clip(x + epsilon * square.signs[:, None, None, :], limits[0], limits[1])
        return images * (1 - inside) + edge * inside  # of finite images the same as a choice, and quicker


class _L2:
    """Windows that take the perturbation of another window and of its own, in a pattern of length 1 (Alg. 3)."""

    order, power = 2, 2

    def start(self, x, drawn, epsilon, limits):
        """Five tiles of the pattern in a row and in a column, or as many as fit."""
        _, height, width, channels = x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        pattern = _pattern(side, self.order, self.power)
        change = np.zeros(x.shape)
        for image, random in zip(change, drawn, strict=True):
            uniform = random.random((rows, columns, 1 + channels, 1, 1))
            tiles = np.where(uniform[:, :, :1] < 0.5, pattern.T, pattern) * np.where(uniform[:, :, 1:] < 0.5, -1, 1)
            tiles = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * side, columns * side, channels)
            image[top : top + len(tiles), left : left + columns * side] = tiles
        return self._first(x, change, epsilon, limits)

    def patterns(self, side):
        """Pattern at each level, ``(10, s, s)``, in the upper left corner."""
        patterns = np.zeros((len(side), side.max(), side.max()), "float32")
        for pattern, size in zip(patterns, side, strict=True):
            pattern[:size, :size] = _pattern(size, self.order, self.power)
        return patterns

    def propose(self, x, images, side, pattern, square, epsilon, limits):
        """See the other."""
        change, places = images - x, _coordinates(x, square.corners[:, :2])
        inside, second = _inside(*places, side), _inside(*_coordinates(x, square.corners[:, 2:]), side)
        either = ops.maximum(inside, second)
        own = change * inside
        signed = inside * _placed(pattern, *places, square.turned) * square.signs[:, None, None, :]
        window = signed + own * (1 / (_SHORTEST + self._length(own)))
        budget = self._budget(change, self._length(change * either), epsilon, ops.cast(ops.shape(x)[3], "float32"))
        window = window * (budget / (_SHORTEST + self._length(window)))
        return self._within(x, change * (1 - either) + window, epsilon, limits)

    def _length(self, change, axes=(1, 2)):
        """Norms ``(b, 1, 1, C)`` of channels, or of images."""
        return ops.sqrt(ops.sum(ops.square(change), axis=axes, keepdims=True))

    def _budget(self, change, free, epsilon, channels):
        """Norms ``(b, 1, 1, C)`` that a window may have: ``free``, that of both windows, and what is not used yet."""
        unused = ops.maximum(epsilon**2 - ops.sum(ops.square(change), axis=(1, 2, 3), keepdims=True), 0.0)
        return ops.sqrt(unused / channels + ops.square(free))

    def _first(self, x, change, epsilon, limits):
        length = np.sqrt(np.square(change).sum(axis=(1, 2, 3), keepdims=True))
        return np.clip(x + change * (epsilon / length), *limits).astype("float32")

    def _within(self, x, change, epsilon, limits):
        length = self._length(change, (1, 2, 3))
        return ops.clip(x + change * (epsilon / (_SHORTEST + length)), limits[0], limits[1])


class _L1(_L2):
    """The same with sums of absolute changes, and a pattern that falls off faster (Croce and Hein 2021)."""

    order, power = 1, 4

    def _length(self, change, axes=(1, 2)):
        return ops.sum(ops.abs(change), axis=axes, keepdims=True)

    def _budget(self, change, free, epsilon, channels):
        unused = ops.maximum(epsilon - self._length(change, (1, 2, 3)), 0.0)
        return unused + free * channels  # more than fits into the ball, as published

    def _first(self, x, change, epsilon, limits):
        start = x + change * np.mean(limits[1] - limits[0])  # tiles of length 1 where pixels are from 0 to 1
        return ops.convert_to_numpy(self._project(x, start.astype("float32"), np.float32(epsilon), limits))

    def _within(self, x, change, epsilon, limits):
        return self._project(x, x + change, epsilon, limits)

    def _project(self, x, images, epsilon, limits):
        return NORMS["l1"].region(x, epsilon * np.float32(1 - 1e-6), limits)(images)


WINDOWS = {"linf": _Linf(), "l2": _L2(), "l1": _L1()}


def _coordinates(x, corners):
    """Rows ``(b, H, 1, 1)`` and columns ``(b, 1, W, 1)`` of pixels, counted from corners ``(b, 2)``."""
    rows, columns = (ops.arange(ops.shape(x)[axis], dtype="int32") for axis in (1, 2))
    return (rows - corners[:, :1])[:, :, None, None], (columns - corners[:, 1:])[:, None, :, None]


def _inside(rows, columns, side):
    """1 for pixels in the window, else 0, ``(b, H, W, 1)``."""
    rows, columns = (ops.cast(ops.logical_and(each >= 0, each < side), "float32") for each in (rows, columns))
    return rows * columns


def _placed(pattern, rows, columns, turned):
    """Values ``(b, H, W, 1)`` of a pattern whose corner is at row 0 and column 0; beyond it, any."""
    size = ops.shape(pattern)[0]
    rows, columns = (ops.clip(each, 0, size - 1) for each in (rows, columns))
    step, across = ops.where(turned, 1, size)[:, None, None, None], ops.where(turned, size, 1)[:, None, None, None]
    return ops.take(ops.reshape(pattern, (-1,)), rows * step + columns * across)


def _pattern(side, order, power):
    """Two heaps, one of positive and one of negative values, of norm 1 together, ``(side, side)`` (Eq. 2)."""
    upper, lower = side // 2, side - side // 2
    both = np.concatenate([_heap(upper, side, order, power), -_heap(lower, side, order, power)])
    return both / np.linalg.norm(both.ravel(), order)


def _heap(height, width, order, power):
    """Values ``(height, width)`` that fall off from the middle, of norm 1."""
    rows, columns = np.indices((height, width))
    distances = np.maximum(np.abs(rows - height // 2), np.abs(columns - width // 2))
    terms = 1.0 / (1 + np.arange(max(height, width) // 2 + 1)) ** power
    heap = np.cumsum(terms[::-1])[::-1][distances]
    return heap / np.linalg.norm(heap.ravel(), order)
