"""Attention with learned biases by offset, and the blocks of LeViT (Graham et al. 2021)."""

import math
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.attention import AttentionBlock, TemperedAttention
from keras_capsvit.layers.base import OfFloats


class _NormalizedDense(keras.layers.Layer):
    """A dense layer without bias, then batch normalisation, on the last axis; ``zeros`` to begin with, if wanted."""

    def __init__(self, units, *, starts_at_zero=False, **kwargs):
        super().__init__(**kwargs)
        self.linear = keras.layers.Dense(units, use_bias=False, dtype=self.dtype_policy, name="linear")
        self.bn = keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_initializer="zeros" if starts_at_zero else "ones",
            dtype=self.dtype_policy,
            name="bn",
        )

    def build(self, input_shape):
        checks.memory("The kernel of a dense layer", (input_shape[-1], self.linear.units), "Take fewer units.")
        self.linear.build(input_shape)
        self.bn.build((*input_shape[:-1], self.linear.units))

    def call(self, inputs, training=None):
        return self.bn(self.linear(inputs), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.linear.units)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class OffsetAttention(TemperedAttention):
    """Self-attention on a grid with a learned bias for every offset, which stands for positions (Graham et al. 2021).

    With queries, keys and values ``q, k, v`` of a head, each a dense layer with batch normalisation::

        attention = softmax((q k^T / sqrt(key_dim) + bias[|dy|, |dx|]) / temperature)

    The result goes through a hard swish and a dense layer with batch normalisation. With strides, only every
    ``strides``-th token each way asks, so that the grid shrinks.

    Args:
        num_heads: int.
        key_dim: int, dimension of queries and keys of a head.
        grid: pair of ints ``(h, w)``, ``t = h w``.
        value_ratio: int, dimension of values relative to that of keys.
        strides: int.
        dim: int ``e``, of the resulting tokens; None for that of the given ones.
        starts_at_zero: bool, the last batch normalisation has a scale of 0 to begin with, as at the end of a residual
            branch.
        temperature: float > 0 that scores are divided by, biases included. Settable at any time; compiled functions
            follow. It is part of the configuration, not of the weights.

    Call: tokens ``(b, t, d)`` → tokens ``(b, t', e)``, ``t' = ceil(h / strides) ceil(w / strides)``; with
    ``return_attention_scores`` also the attention ``(b, heads, t', t)``, whose rows sum to 1.

    Raises:
        ValueError: for settings out of range, another number of tokens than the grid has, and weights or attention that
            do not fit into this machine's memory.
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        grid,
        *,
        value_ratio=2,
        strides=1,
        dim=None,
        starts_at_zero=False,
        **kwargs,
    ):
        super().__init__(num_heads, **kwargs)
        self.key_dim = checks.positive_int("key_dim", key_dim)
        self.grid = checks.pair(grid, "grid")
        self.value_ratio = checks.positive_int("value_ratio", value_ratio)
        self.strides = checks.positive_int("strides", strides)
        self.dim = None if dim is None else checks.positive_int("dim", dim)
        checks.booleans(starts_at_zero=starts_at_zero)
        self.starts_at_zero = starts_at_zero

    @property
    def new_grid(self):
        """Pair of ints, of the resulting tokens."""
        return tuple(-(-size // self.strides) for size in self.grid)

    def build(self, input_shape):
        if input_shape[1] != math.prod(self.grid):
            raise ValueError(
                f"Expected the tokens (b, {math.prod(self.grid)}, d) of a grid of {self.grid}; received shape "
                f"{tuple(input_shape)}."
            )
        attention = (self.num_heads, math.prod(self.new_grid), math.prod(self.grid))
        checks.memory("The attention of one image", attention, "Take smaller images.")
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.key_dim * self.value_ratio
        policy = {"dtype": self.dtype_policy}
        if self.strides == 1:
            self.qkv = _NormalizedDense(2 * keys + values, name="qkv", **policy)
            self.qkv.build(input_shape)
        else:
            self.kv = _NormalizedDense(keys + values, name="kv", **policy)
            self.q = _NormalizedDense(keys, name="q", **policy)
            self.kv.build(input_shape)
            self.q.build(input_shape)
        dim = input_shape[-1] if self.dim is None else self.dim
        self.proj = _NormalizedDense(dim, starts_at_zero=self.starts_at_zero, name="proj", **policy)
        self.proj.build((*input_shape[:-1], values))
        self.attention_biases = self.add_weight(
            name="attention_biases", shape=(self.num_heads, math.prod(self.grid)), initializer="zeros"
        )
        self.offsets = _offsets(self.grid, self.strides)

    def call(self, tokens, return_attention_scores=False, training=None):
        sizes = [self.key_dim, self.key_dim, self.key_dim * self.value_ratio]
        if self.strides == 1:
            query, key, value = self._heads(self.qkv(tokens, training=training), sizes)
        else:
            key, value = self._heads(self.kv(tokens, training=training), sizes[1:])
            (query,) = self._heads(self.q(self._every_other(tokens), training=training), sizes[:1])
        scores = ops.matmul(self.tempered(query, self.key_dim**-0.5), ops.transpose(key, (0, 1, 3, 2)))
        biases = ops.take(ops.cast(self.attention_biases, scores.dtype), self.offsets, axis=1)
        attention = self.normalized(scores + self.tempered(biases), value.dtype)
        mixed = ops.transpose(ops.matmul(attention, value), (0, 2, 1, 3))
        mixed = ops.reshape(mixed, (-1, attention.shape[2], self.num_heads * sizes[-1]))
        x = self.proj(ops.hard_silu(mixed), training=training)
        return (x, attention) if return_attention_scores else x

    def _heads(self, x, sizes):
        """``(b, t, heads sum(sizes))`` as tensors ``(b, heads, t, size)``."""
        x = ops.transpose(ops.reshape(x, (-1, x.shape[1], self.num_heads, sum(sizes))), (0, 2, 1, 3))
        return ops.split(x, list(np.cumsum(sizes)[:-1]), axis=-1) if len(sizes) > 1 else [x]

    def _every_other(self, tokens):
        x = ops.reshape(tokens, (-1, *self.grid, tokens.shape[-1]))[:, :: self.strides, :: self.strides]
        return ops.reshape(x, (-1, math.prod(self.new_grid), tokens.shape[-1]))

    def compute_output_spec(self, tokens, return_attention_scores=False, training=None):
        batch, count, dim = tokens.shape
        asking = math.prod(self.new_grid)
        x = keras.KerasTensor((batch, asking, dim if self.dim is None else self.dim), dtype=self.compute_dtype)
        if not return_attention_scores:
            return x
        return x, keras.KerasTensor((batch, self.num_heads, asking, count), dtype=self.compute_dtype)


def _offsets(grid, strides):
    """Positions ``(t', t)`` among the biases of a head, ``|dy| w + |dx|``."""
    places = np.indices(grid)
    asking = places[:, ::strides, ::strides].reshape(2, -1, 1)
    rows, columns = np.abs(asking - places.reshape(2, 1, -1))
    return (rows * grid[1] + columns).astype("int32")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class LeViTBlock(AttentionBlock, OfFloats, keras.layers.Layer):
    """Block of LeViT: attention with biases by offset, then an MLP per token of twice the width (Graham et al. 2021).

    Batch instead of layer normalisation, hard swish instead of GELU. Both branches are residual; with strides, where
    the grid shrinks, the attention is none, and its values are four times as wide as its keys instead of twice.

    Args:
        num_heads: int.
        key_dim: int, dimension of queries and keys of a head.
        grid: pair of ints ``(h, w)``, of the tokens given.
        strides: int.
        dim: int ``e``, of the resulting tokens; None for that of the given ones, which it is without strides.
        temperature: float > 0, of the attention; settable, see ``OffsetAttention``.
        drop_path: float in [0, 1), how often a branch is left out for an image (stochastic depth).

    Call: tokens ``(b, h w, d)`` → tokens ``(b, t', e)``, see ``OffsetAttention``; with ``return_attention_scores`` also
    ``(b, heads, t', h w)``.

    Raises:
        ValueError: for settings out of range, another number of tokens than the grid has, and weights or attention that
            do not fit into this machine's memory.
    """

    axes: ClassVar = {"tokens": "(b, t, d)"}
    kept_in: ClassVar = {
        "num_heads": "attn.num_heads",
        "key_dim": "attn.key_dim",
        "grid": "attn.grid",
        "strides": "attn.strides",
        "dim": "attn.dim",
    }

    def __init__(self, num_heads, key_dim, grid, *, strides=1, dim=None, temperature=1.0, drop_path=0.0, **kwargs):
        super().__init__(**kwargs)
        self.drop_path = checks.number("drop_path", drop_path, 0, 1, without=(1,))
        shrinks = checks.positive_int("strides", strides) > 1
        if dim is not None and not shrinks:
            raise ValueError(f"dim must be None without strides, where tokens keep their dimension; received {dim!r}.")
        self.attn = OffsetAttention(
            num_heads,
            key_dim,
            grid,
            value_ratio=4 if shrinks else 2,
            strides=strides,
            dim=dim,
            starts_at_zero=not shrinks,
            temperature=temperature,
            dtype=self.dtype_policy,
            name="attn_downsample" if shrinks else "attn",
        )

    def build(self, input_shape):
        dim = input_shape[-1] if self.attn.dim is None else self.attn.dim
        policy = {"dtype": self.dtype_policy}
        self.ln1 = _NormalizedDense(2 * dim, name="mlp_ln1", **policy)
        self.ln2 = _NormalizedDense(dim, starts_at_zero=True, name="mlp_ln2", **policy)
        self.stochastic_depth = keras.layers.Dropout(
            self.drop_path, noise_shape=(None, 1, 1), name="stochastic_depth", **policy
        )
        self.attn.build(input_shape)
        self.ln1.build((*input_shape[:-1], dim))
        self.ln2.build((*input_shape[:-1], 2 * dim))

    def call(self, tokens, return_attention_scores=False, training=None):
        x, scores = self.attn(tokens, return_attention_scores=True, training=training)
        if self.attn.strides == 1:
            x = tokens + self.stochastic_depth(x, training=training)
        hidden = self.ln2(ops.hard_silu(self.ln1(x, training=training)), training=training)
        x = x + self.stochastic_depth(hidden, training=training)
        return (x, scores) if return_attention_scores else x
