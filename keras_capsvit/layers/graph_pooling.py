"""Multi-head attention-based graph pooling, the part of a GraCapsNet that replaces routing (thesis 3.1, 3.2)."""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats, initializer
from keras_capsvit.ops import squash

_LEAST_REACH = 1.25


def gaussian_adjacency(height, width, sigma, *, self_loops=False, normalize=False):
    """Adjacency matrix of a grid of nodes, ``A_mn = exp(-||p_m - p_n||^2 / (2 sigma^2))`` (thesis Eq. 3.1).

    Args:
        height: int, rows of the grid.
        width: int, columns of the grid.
        sigma: float >= 0, in grid cells; 0 is the limit, the identity (nodes without neighbours).
        self_loops: bool, add the identity (the diagonal of Eq. 1 is already 1).
        normalize: bool, degree normalisation ``D^-1/2 A D^-1/2`` with ``D`` the row sums (Kipf & Welling 2017).

    Returns:
        float32 NumPy array ``(height * width, height * width)``, nodes in row-major order.

    Raises:
        ValueError: for sizes and widths out of range, and more nodes than fit into this machine's memory.
    """
    nodes = checks.positive_int("height", height) * checks.positive_int("width", width)
    checks.number("sigma", sigma, 0)
    checks.booleans(self_loops=self_loops, normalize=normalize)
    checks.memory("The adjacency matrix", (nodes, nodes), "Take larger strides or smaller images.", bytes_each=8)
    points = np.indices((height, width)).reshape(2, -1).T
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    if sigma > 0:
        with np.errstate(over="ignore"):  # a tiny sigma is the identity, too
            adjacency = np.exp(-np.square(distance / sigma) / 2.0)
    else:
        adjacency = np.eye(len(points))
    if self_loops:
        adjacency = adjacency + np.eye(len(adjacency))
    if normalize:
        scale = adjacency.sum(axis=1) ** -0.5
        adjacency = adjacency * scale[:, None] * scale
    return adjacency.astype("float32")


def relative_reach(adjacency, height, width):
    """How far an adjacency reaches over its grid, relative to the Gaussian of sigma 1, for initial scales.

    Reach is the root mean squared row norm over the mean of the diagonal: 1 for the identity, about 1.8 sigma for a
    Gaussian. Scores grow with it, and what attention picks is a mean over so wide a neighbourhood. It is at least 1.25
    here: without neighbours class capsules would start too short to learn fast.

    Args:
        adjacency: array ``(height * width, height * width)``.
        height: int, rows of the grid.
        width: int, columns of the grid.

    Returns:
        Float >= 1.25; relative means that ``gaussian_adjacency(height, width, 1.0)`` would have 1.
    """

    def reach(matrix):
        return np.sqrt(np.square(matrix).sum(axis=1).mean()) / matrix.diagonal().mean()

    return max(_LEAST_REACH, float(reach(adjacency) / reach(gaussian_adjacency(height, width, 1.0))))


class _NodePool(OfFloats, keras.layers.Layer):
    """Base: scores ``X W + bias`` of the nodes for every class, weights from the scores, pooling, mean over heads.

    Subclasses define ``weigh``: scores ``(b, h w, l j)`` → weights of the same shape.
    """

    axes: ClassVar = {"capsules": "(b, h, w, l, d)"}

    def __init__(self, num_capsules, *, use_bias, kernel_initializer, **kwargs):
        super().__init__(**kwargs)
        self.num_capsules = checks.positive_int("num_capsules", num_capsules)
        checks.booleans(use_bias=use_bias)
        self.use_bias = use_bias
        self.kernel_initializer = initializer(kernel_initializer, keras.initializers.VarianceScaling(256.0))

    def build(self, input_shape):
        if len(input_shape) != 5 or None in input_shape[1:]:
            raise ValueError(
                f"{type(self).__name__} needs capsules of shape (batch, height, width, types, dim) with known sizes; "
                f"received shape {tuple(input_shape)}."
            )
        attention = (*input_shape[1:4], self.num_capsules)
        checks.memory("The attention of one image", attention, "Take larger strides, fewer heads or fewer classes.")
        size = self.prepare(*input_shape[1:4])
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_capsules),
            initializer=lambda shape, dtype: self.kernel_initializer(shape, dtype) / size,
        )
        self.bias = (
            self.add_weight(name="bias", shape=(self.num_capsules,), initializer="zeros") if self.use_bias else None
        )

    def prepare(self, height, width, types):
        """Set up what depends on the grid; returns what the initial kernel is divided by."""
        return 1.0

    def call(self, capsules, return_attention_scores=False):
        _, height, width, types, dim = capsules.shape
        nodes, classes = height * width, self.num_capsules
        flat = ops.reshape(capsules, (-1, nodes * types, dim))
        scores = ops.reshape(ops.matmul(flat, self.kernel), (-1, nodes, types * classes))
        if self.use_bias:  # repeated, because long rows are added faster
            scores = scores + ops.tile(self.bias, types)
        attention = self.weigh(scores)
        # Eq. 3 and the mean of Eq. 4 in one product: the sum over nodes and heads, over the number of heads.
        attention = ops.reshape(attention, (-1, nodes * types, classes))
        outputs = squash(ops.matmul(ops.transpose(attention, (0, 2, 1)), flat) / types)
        if return_attention_scores:
            return outputs, ops.reshape(attention, (-1, height, width, types, classes))
        return outputs

    def compute_output_spec(self, capsules, return_attention_scores=False):
        batch, height, width, types, dim = capsules.shape
        outputs = keras.KerasTensor((batch, self.num_capsules, dim), dtype=self.compute_dtype)
        if return_attention_scores:
            attention = keras.KerasTensor((batch, height, width, types, self.num_capsules), dtype=self.compute_dtype)
            return outputs, attention
        return outputs


@keras.saving.register_keras_serializable(package="keras_capsvit")
class GraphCapsPool(_NodePool):
    """Pool each head's graph of capsules into class capsules by attention, and average the heads.

    With ``X^l`` the ``n = h w`` nodes of head ``l`` and ``A`` the adjacency of the grid (thesis Eq. 3.2 to 3.4)::

        Att^l = softmax_n(A (X^l W + bias))     S^l = (Att^l)^T X^l     V = squash(mean_l S^l)

    Args:
        num_capsules: int, class capsules ``j``.
        sigma: float >= 0, width of the Gaussian adjacency in grid cells (Eq. 3.1); 0: no neighbours.
        self_loops: bool, add the identity to the adjacency.
        normalize: bool, degree-normalise the adjacency.
        use_bias: bool. The bias reaches the attention through the row sums of A, hence acts only where they differ: not
            for ``sigma=0``, where the softmax cancels it.
        kernel_initializer: initialiser of ``W``, ``(e, j)``; its values are divided by the mean of A's diagonal, by its
            ``relative_reach``, and by ``(32 / l)^0.4`` where there are less than 32 heads. None for columns of length
            about 16 (at sigma 1 and 32 heads): training starts from an attention that chooses nodes, hence from class
            capsules that differ; from a uniform attention it has to find that first.

    Call arguments:
        capsules: tensor ``(b, h, w, l, e)``.
        return_attention_scores: bool.

    Returns:
        Class capsules ``(b, j, e)``, lengths in [0, 1); with ``return_attention_scores`` also the attention
        ``(b, h, w, l, j)``, which sums to 1 over ``h, w`` for each head and class.
    """

    def __init__(
        self,
        num_capsules,
        *,
        sigma=0.0,
        self_loops=False,
        normalize=False,
        use_bias=True,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(num_capsules, use_bias=use_bias, kernel_initializer=kernel_initializer, **kwargs)
        self.sigma = checks.number("sigma", sigma, 0)
        checks.booleans(self_loops=self_loops, normalize=normalize)
        self.self_loops = self_loops
        self.normalize = normalize

    def prepare(self, height, width, types):
        adjacency = gaussian_adjacency(height, width, self.sigma, self_loops=self.self_loops, normalize=self.normalize)
        self.grid = height, width
        if self.normalize:
            degrees = gaussian_adjacency(height, width, self.sigma, self_loops=self.self_loops).sum(axis=1)
            self.degree_scale = degrees[:, None] ** -0.5
        # So neither degree normalisation nor a wide sigma changes much how large W X A is. The fewer heads, the fewer
        # nodes a class capsule is made of: a sharp attention on few of them could find nothing but background.
        reach = relative_reach(adjacency, height, width)
        return float(adjacency.diagonal().mean()) * reach * max(1.0, 32 / types) ** 0.4

    def weigh(self, scores):
        scores = self.spread(scores)
        return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=1), scores.dtype)

    def spread(self, scores):
        """``A scores`` of scores ``(b, h w, columns)``; all heads share A."""
        scale = ops.cast(self.degree_scale, scores.dtype) if self.normalize else None
        scores = scores if scale is None else scores * scale
        spread = scores if self.sigma == 0 else self._along_the_grid(scores)
        spread = spread + scores if self.self_loops else spread
        return spread if scale is None else spread * scale

    def _along_the_grid(self, scores):
        # A Gaussian on a grid is one along the columns after one along the rows.
        nodes, columns = scores.shape[1:]
        height, width = self.grid
        rows, across = (ops.cast(gaussian_adjacency(1, size, self.sigma), scores.dtype) for size in self.grid)
        spread = ops.matmul(rows, ops.reshape(scores, (-1, height, width * columns)))
        spread = ops.matmul(across, ops.reshape(spread, (-1, width, columns)))
        return ops.reshape(spread, (-1, nodes, columns))


@keras.saving.register_keras_serializable(package="keras_capsvit")
class TopKGraphPool(_NodePool):
    """Pool, for each head and class, the nodes of highest score, gated by it, without the graph (Gao & Ji 2019).

    With ``y = X^l W + bias``: the mean over the K best nodes of ``sigmoid(y_n) x_n``, then over heads, then squash. The
    baseline of thesis Fig. 3.3.

    Args:
        num_capsules: int, class capsules ``j``.
        ratio: float in (0, 1], share of the nodes that is kept; K is at least 1.
        use_bias: bool.
        kernel_initializer: initialiser of ``W``, ``(e, j)``; None as for ``GraphCapsPool``.

    Call arguments:
        capsules: tensor ``(b, h, w, l, e)``.
        return_attention_scores: bool.

    Returns:
        Class capsules ``(b, j, e)``, lengths in [0, 1); with ``return_attention_scores`` also the weights
        ``(b, h, w, l, j)``, zero for nodes that were left out.
    """

    def __init__(self, num_capsules, *, ratio=0.5, use_bias=True, kernel_initializer=None, **kwargs):
        super().__init__(num_capsules, use_bias=use_bias, kernel_initializer=kernel_initializer, **kwargs)
        self.ratio = checks.number("ratio", ratio, 0, 1, without=(0,))

    def weigh(self, scores):
        count = max(1, round(self.ratio * scores.shape[1]))
        best = ops.top_k(ops.transpose(scores, (0, 2, 1)), count)[0][..., -1]
        # Not "at least the best", which NaN is not: its nodes would be left out.
        return ops.where(scores < best[:, None], 0.0, ops.sigmoid(scores)) / count
