"""Self-attention with a temperature, and the blocks of vision transformers and mixers (thesis chapter 7)."""

import math
import types
from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats


def gelu(x):
    """``x Φ(x)`` with the exact error function, as published vision transformers have it; any shape."""
    x = checks.tensor("x", x)
    # Fewer passes over x than keras.ops.gelu(x, approximate=False), 1.4 times as fast.
    return x * (0.5 + 0.5 * ops.erf(x * math.sqrt(0.5)))


class TemperedAttention(OfFloats, keras.layers.Layer):
    """Base of attention between tokens, whose softmax has a temperature (thesis Eq. 7.3).

    Args:
        num_heads: int.
        temperature: float > 0 that scores are divided by. Settable at any time; compiled functions follow. It is part
            of the configuration, not of the weights.
    """

    axes: ClassVar = {"tokens": "(b, t, d)"}

    def __init__(self, num_heads, *, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = checks.positive_int("num_heads", num_heads)
        # Held where Keras does not find it: as a weight it would be counted, and restored over what was set.
        value = keras.initializers.Constant(_check_temperature(temperature))
        variable = keras.Variable(value, shape=(), dtype="float32", trainable=False, name="temperature")
        self._held = types.SimpleNamespace(temperature=variable)

    @property
    def temperature(self):
        return float(ops.convert_to_numpy(self._held.temperature))

    @temperature.setter
    def temperature(self, value):
        self._held.temperature.assign(_check_temperature(value))

    @property
    def variables(self):
        # Compiled functions read their state from here.
        return [*super().variables, self._held.temperature]

    def tempered(self, values, scale=1.0):
        """Values, of any shape, times a float over the temperature."""
        return values * ops.cast(scale / self._held.temperature, values.dtype)

    def normalized(self, scores, dtype):
        """Attention of scores ``(b, heads, t, s)``, whose rows sum to 1, of a dtype."""
        return ops.cast(ops.softmax(ops.cast(scores, self.variable_dtype), axis=-1), dtype)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MultiHeadSelfAttention(TemperedAttention):
    """Self-attention; the softmax has a temperature, Smoothed Attention where it is above 1 (thesis Eq. 7.3).

    Args:
        num_heads: int, divides the dimension of the tokens.
        temperature: float > 0 that scores are divided by. Settable at any time; compiled functions follow. It is part
            of the configuration, not of the weights.
        dropout: float in [0, 1), of the result.

    Call: tokens ``(b, t, d)`` → tokens ``(b, t, d)``; with ``return_attention_scores`` also the attention
    ``(b, heads, t, t)``, whose rows sum to 1.

    Raises:
        ValueError: for settings out of range, heads that do not divide the dimension, and weights that do not fit into
            this machine's memory.
    """

    kept_in: ClassVar = {"dropout": "dropout_rate"}

    def __init__(self, num_heads, *, dropout=0.0, **kwargs):
        super().__init__(num_heads, **kwargs)
        self.dropout_rate = checks.number("dropout", dropout, 0, 1, without=(1,))

    def build(self, input_shape):
        dim = input_shape[-1]
        if dim % self.num_heads:
            raise ValueError(f"num_heads must divide the dimension of the tokens, {dim}; received {self.num_heads}.")
        checks.memory("The kernel of queries, keys and values", (dim, 3 * dim), "Take tokens of a smaller dimension.")
        self.qkv = keras.layers.Dense(3 * dim, dtype=self.dtype_policy, name="qkv")
        self.proj = keras.layers.Dense(dim, dtype=self.dtype_policy, name="proj")
        self.dropout = keras.layers.Dropout(self.dropout_rate, dtype=self.dtype_policy, name="dropout")
        self.qkv.build(input_shape)
        self.proj.build(input_shape)

    def call(self, tokens, return_attention_scores=False, training=None):
        count, dim = tokens.shape[1:]
        qkv = ops.reshape(self.qkv(tokens), (-1, count, 3 * self.num_heads, dim // self.num_heads))
        query, key, value = ops.split(ops.transpose(qkv, (0, 2, 1, 3)), 3, axis=1)
        query = self.tempered(query, (dim // self.num_heads) ** -0.5)
        scores = self.normalized(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), value.dtype)
        mixed = ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))
        x = self.dropout(self.proj(ops.reshape(mixed, (-1, count, dim))), training=training)
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(self, tokens, return_attention_scores=False, training=None):
        x = keras.KerasTensor(tokens.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return x
        batch, count = tokens.shape[:2]
        return x, keras.KerasTensor((batch, self.num_heads, count, count), dtype=self.compute_dtype)


def _check_temperature(value):
    return float(checks.number("temperature", value, 0, without=(0,)))


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MLP(OfFloats, keras.layers.Layer):
    """Two dense layers with a GELU between them, on the last axis.

    Args:
        units: int, width of the hidden layer.
        dropout: float in [0, 1), after both layers.

    Input shape: ``(..., d)``. Output shape: the same.

    Raises:
        ValueError: for settings out of range, and weights that do not fit into this machine's memory.
    """

    axes: ClassVar = {"inputs": "(..., d)"}
    kept_in: ClassVar = {"dropout": "dropout_rate"}

    def __init__(self, units, *, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.units = checks.positive_int("units", units)
        self.dropout_rate = checks.number("dropout", dropout, 0, 1, without=(1,))

    def build(self, input_shape):
        checks.memory("The kernel of an MLP", (input_shape[-1], self.units), "Take fewer units.")
        self.fc1 = keras.layers.Dense(self.units, dtype=self.dtype_policy, name="fc1")
        self.fc2 = keras.layers.Dense(input_shape[-1], dtype=self.dtype_policy, name="fc2")
        self.dropout = keras.layers.Dropout(self.dropout_rate, dtype=self.dtype_policy, name="dropout")
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.units))

    def call(self, inputs, training=None):
        hidden = self.dropout(gelu(self.fc1(inputs)), training=training)
        return self.dropout(self.fc2(hidden), training=training)

    def compute_output_shape(self, input_shape):
        return input_shape


class AttentionBlock:
    """Blocks around an attention, their ``attn``, whose temperature and shapes are theirs."""

    @property
    def temperature(self):
        return self.attn.temperature

    @temperature.setter
    def temperature(self, value):
        self.attn.temperature = value

    def compute_output_spec(self, tokens, return_attention_scores=False, training=None):
        return self.attn.compute_output_spec(tokens, return_attention_scores=return_attention_scores)


class _ResidualBlock(OfFloats, keras.layers.Layer):
    """Base of blocks of two residual branches, each behind a layer normalisation.

    Args:
        dropout: float in [0, 1), inside the branches.
        drop_path: float in [0, 1), how often a branch is left out for an image (stochastic depth).
        epsilon: float > 0, of the layer normalisations: 1e-6 in timm, 1e-12 in Hugging Face's.
    """

    axes: ClassVar = {"tokens": "(b, t, d)"}

    def __init__(self, *, dropout=0.0, drop_path=0.0, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.dropout = checks.number("dropout", dropout, 0, 1, without=(1,))
        self.drop_path = checks.number("drop_path", drop_path, 0, 1, without=(1,))
        self.epsilon = checks.number("epsilon", epsilon, 0, without=(0,))

    def build(self, input_shape):
        policy = {"dtype": self.dtype_policy}
        self.norm1 = keras.layers.LayerNormalization(epsilon=self.epsilon, name="norm1", **policy)
        self.norm2 = keras.layers.LayerNormalization(epsilon=self.epsilon, name="norm2", **policy)
        self.stochastic_depth = keras.layers.Dropout(
            self.drop_path, noise_shape=(None, 1, 1), name="stochastic_depth", **policy
        )
        self.norm1.build(input_shape)
        self.norm2.build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="keras_capsvit")
class TransformerBlock(AttentionBlock, _ResidualBlock):
    """Block of a vision transformer: self-attention, then an MLP per token (Dosovitskiy et al. 2021).

    Args:
        num_heads: int.
        units: int, hidden width of the MLP.
        temperature: float > 0, of the attention; settable, see ``MultiHeadSelfAttention``.
        dropout: float in [0, 1), inside the branches.
        drop_path: float in [0, 1), how often a branch is left out for an image (stochastic depth).
        epsilon: float > 0, of the layer normalisations: 1e-6 in timm, 1e-12 in Hugging Face's.

    Call: tokens ``(b, t, d)`` → tokens ``(b, t, d)``; with ``return_attention_scores`` also ``(b, heads, t, t)``.
    """

    def __init__(self, num_heads, units, *, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.units = checks.positive_int("units", units)
        self.attn = MultiHeadSelfAttention(
            num_heads, temperature=temperature, dropout=self.dropout, dtype=self.dtype_policy, name="attn"
        )

    def build(self, input_shape):
        super().build(input_shape)
        self.mlp = MLP(self.units, dropout=self.dropout, dtype=self.dtype_policy, name="mlp")
        self.attn.build(input_shape)
        self.mlp.build(input_shape)

    def call(self, tokens, return_attention_scores=False, training=None):
        # One computation for both: a fused attention without scores is slower on a CPU and no faster to differentiate.
        x, scores = self.attn(self.norm1(tokens), return_attention_scores=True, training=training)
        x = tokens + self.stochastic_depth(x, training=training)
        x = x + self.stochastic_depth(self.mlp(self.norm2(x), training=training), training=training)
        return (x, scores) if return_attention_scores else x


@keras.saving.register_keras_serializable(package="keras_capsvit")
class MixerBlock(_ResidualBlock):
    """Block of an MLP-Mixer: an MLP across tokens, then one per token (Tolstikhin et al. 2021).

    Args:
        token_units: int, hidden width of the MLP across tokens.
        channel_units: int, hidden width of the MLP per token.
        dropout: float in [0, 1), inside the branches.
        drop_path: float in [0, 1), how often a branch is left out for an image (stochastic depth).
        epsilon: float > 0, of the layer normalisations.

    Input shape: ``(b, t, d)``. Output shape: the same.
    """

    def __init__(self, token_units, channel_units, **kwargs):
        super().__init__(**kwargs)
        self.token_units = checks.positive_int("token_units", token_units)
        self.channel_units = checks.positive_int("channel_units", channel_units)

    def build(self, input_shape):
        super().build(input_shape)
        batch, count, dim = input_shape
        settings = {"dropout": self.dropout, "dtype": self.dtype_policy}
        self.mlp_tokens = MLP(self.token_units, name="mlp_tokens", **settings)
        self.mlp_channels = MLP(self.channel_units, name="mlp_channels", **settings)
        self.mlp_tokens.build((batch, dim, count))
        self.mlp_channels.build(input_shape)

    def call(self, tokens, training=None):
        x = ops.transpose(self.norm1(tokens), (0, 2, 1))
        x = ops.transpose(self.mlp_tokens(x, training=training), (0, 2, 1))
        x = tokens + self.stochastic_depth(x, training=training)
        return x + self.stochastic_depth(self.mlp_channels(self.norm2(x), training=training), training=training)
