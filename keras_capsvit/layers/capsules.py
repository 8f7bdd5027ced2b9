"""Primary capsules, the transformation of capsules, and what is read off them: lengths and masks."""

import math
import random
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats, initializer
from keras_capsvit.ops import as_multi_hot, safe_norm, squash

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_SMALLER = "Use a smaller batch, larger strides, fewer capsule types or classes, or routing without votes (GraCapsNet)."


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleInitializer(keras.initializers.Initializer):
    """Normal weights of variance ``scale / d`` for transformation matrices, ``d`` the input capsules' dimension.

    Keras's own initialisers would count the capsules as a receptive field, and class capsules would start with a
    length near zero, where the squash has no slope.

    Args:
        scale: positive float, the ratio of mean squared components after and before the transformation.
        seed: int, or None for one that Python's generator draws here, as for Keras's initialisers, so that models built
            after ``keras.utils.set_random_seed`` begin alike whatever was drawn before.
    """

    def __init__(self, scale=1.0, *, seed=None):
        self.scale = checks.number("scale", scale, 0, without=(0,))
        self.seed = seed
        self._drawn_seed = random.randrange(2**31) if seed is None else seed

    def __call__(self, shape, dtype=None):
        """Return weights of ``shape`` ``(i, d, ...)`` and of ``dtype``."""
        return keras.random.normal(shape, stddev=math.sqrt(self.scale / shape[1]), dtype=dtype, seed=self._drawn_seed)

    def get_config(self):
        return {"scale": self.scale, "seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class PrimaryCaps(OfFloats, keras.layers.Layer):
    """Primary capsules: a convolution whose channels are grouped into capsules and squashed (thesis 1.2.2).

    Args:
        num_types: int, capsule types ``l`` (= heads of a graph capsule network).
        capsule_dim: int, dimension ``d`` of a capsule.
        squash: bool; without, capsules are the grouped channels themselves.
        kernel_size: int or pair of ints; None groups the input's channels as they are, without a convolution.
        strides: int or pair of ints.
        padding: ``"valid"`` or ``"same"``.
        batch_norm: bool, normalise the channels before they are grouped.
        kernel_initializer: initialiser of the convolution; None for normal weights of variance ``16 / (d fan_in)``, so
            that initial lengths do not depend on ``d``.

    Input shape: ``(b, H, W, channels)``. Output shape: ``(b, h, w, l, d)``, lengths in [0, 1).
    """

    axes: ClassVar = {"inputs": "(b, H, W, C)"}

    def __init__(
        self,
        num_types,
        capsule_dim,
        *,
        squash=True,
        kernel_size=9,
        strides=2,
        padding="valid",
        batch_norm=False,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_types = checks.positive_int("num_types", num_types)
        self.capsule_dim = checks.positive_int("capsule_dim", capsule_dim)
        checks.booleans(squash=squash, batch_norm=batch_norm)
        self.squash = squash
        self.batch_norm = batch_norm
        self.kernel_size = None if kernel_size is None else checks.pair(kernel_size, "kernel_size", most=checks.LARGEST)
        self.strides = checks.pair(strides, "strides", most=checks.LARGEST)
        self.padding = checks.choice("padding", padding, ("valid", "same"))
        default = keras.initializers.VarianceScaling(16.0 / capsule_dim)
        self.kernel_initializer = initializer(kernel_initializer, default)
        self.conv = None
        if kernel_size is not None:
            self.conv = keras.layers.Conv2D(
                num_types * capsule_dim,
                kernel_size,
                strides=strides,
                padding=padding,
                data_format="channels_last",
                kernel_initializer=self.kernel_initializer,
                dtype=self.dtype_policy,
                name="conv",
            )
        self.norm = None
        if batch_norm:
            self.norm = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy, name="norm"
            )

    def build(self, input_shape):
        if self.conv is not None:
            kernel = (*self.conv.kernel_size, input_shape[-1], self.conv.filters)
            checks.memory("The kernel of primary capsules", kernel, "Take fewer capsule types or channels.")
            sizes = zip(self.conv.kernel_size, input_shape[1:3], strict=True)
            if self.padding == "valid" and any(size and size < kernel for kernel, size in sizes):
                raise ValueError(
                    f"Expected inputs of at least {self.kernel_size} pixels, the kernel's; received shape "
                    f"{tuple(input_shape)}. Take a smaller kernel, or padding='same'."
                )
            self.conv.build(input_shape)
        elif input_shape[-1] != self.num_types * self.capsule_dim:
            raise ValueError(
                f"Without a convolution, num_types * capsule_dim must be the number of channels; received "
                f"{self.num_types} * {self.capsule_dim} for {input_shape[-1]} channels."
            )
        self.grid = self.compute_output_shape(input_shape)[1:3]
        if self.norm is not None:
            self.norm.build((None, *self.grid, self.num_types * self.capsule_dim))

    def call(self, inputs, training=False):
        features = inputs if self.conv is None else self.conv(inputs)
        features = features if self.norm is None else self.norm(features, training=training)
        # Streams may not know their images' size; a model that was built for one does.
        grid = ops.shape(features)[1:3] if None in self.grid else self.grid
        capsules = ops.reshape(features, (-1, *grid, self.num_types, self.capsule_dim))
        return squash(capsules) if self.squash else capsules

    def compute_output_shape(self, input_shape):
        shape = input_shape if self.conv is None else self.conv.compute_output_shape(input_shape)
        return (*shape[:3], self.num_types, self.capsule_dim)


def votes_bytes(num_inputs, num_capsules, capsule_dim, batch_size=1, dtype="float32") -> int:
    """Memory of the votes ``(b, i, j, e)``; a training step holds about four tensors of this size at a time.

    Args:
        num_inputs: int, input capsules ``i``.
        num_capsules: int, output capsules ``j``.
        capsule_dim: int, dimension ``e`` of a vote.
        batch_size: int.
        dtype: str, ``"float64"``, ``"float32"``, ``"float16"`` or ``"bfloat16"``.

    Returns:
        int, bytes.

    Raises:
        ValueError: for sizes that are none, and other types.
    """
    sizes = {"num_inputs": num_inputs, "num_capsules": num_capsules, "capsule_dim": capsule_dim}
    sizes["batch_size"] = batch_size
    votes = math.prod(checks.positive_int(name, size) for name, size in sizes.items())
    return votes * _BYTES[checks.choice("dtype", dtype, _BYTES)]


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleTransform(OfFloats, keras.layers.Layer):
    """Linear transformation of capsules: ``u'_i = u_i W_i``, or votes ``u_hat_{j|i} = u_i W_ij``.

    Without ``num_capsules`` every capsule is projected once, as graph capsules need it (thesis Algorithm 2, step 2);
    with it, every input capsule votes for every output capsule (thesis Algorithm 1, step 2). With ``shared`` one
    matrix serves all input capsules (Aff-CapsNet, thesis Eq. 4.10).

    Args:
        capsule_dim: int, dimension ``e`` of the result.
        num_capsules: int ``j`` or None.
        shared: bool.
        matrix: bool, capsules are square matrices (flattened, row by row) and ``W`` multiplies each row, as in matrix
            capsules (Hinton et al. 2018); ``e`` equals ``d``, a square number.
        kernel_initializer: initialiser of the matrices, of shape ``(i, d, e)`` or ``(i, d, j, e)``, for ``matrix``
            with the square roots of ``d`` and ``e``; ``i`` is 1 when shared.

    Input shape: ``(b, ..., d)``, the axes between counting as input capsules ``i``.
    Output shape: ``(b, ..., e)``; with ``num_capsules``, ``(b, i, j, e)``.

    Raises:
        ValueError: for unknown sizes, for matrix capsules whose dimensions are no equal squares, and for matrices that
            cannot be trained, or votes of one batch (``votes_bytes``) that do not fit, in this machine's memory.
    """

    axes: ClassVar = {"inputs": "(b, ..., d)"}

    def __init__(
        self, capsule_dim, *, num_capsules=None, shared=False, matrix=False, kernel_initializer=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.capsule_dim = checks.positive_int("capsule_dim", capsule_dim)
        self.num_capsules = None if num_capsules is None else checks.positive_int("num_capsules", num_capsules)
        checks.booleans(shared=shared, matrix=matrix)
        self.shared = shared
        self.matrix = matrix
        self.kernel_initializer = initializer(kernel_initializer, CapsuleInitializer())

    def build(self, input_shape):
        if len(input_shape) < 3 or None in input_shape[1:]:
            raise ValueError(
                f"CapsuleTransform needs capsules of shape (batch, ..., capsule_dim) with known sizes; "
                f"received shape {tuple(input_shape)}. Give the model a fixed input_shape."
            )
        dim = input_shape[-1]
        self.rows = math.isqrt(dim) if self.matrix else 1
        if self.matrix and not self.rows**2 == dim == self.capsule_dim:
            raise ValueError(
                "Matrix capsules are square and keep their size: the input's dimension and capsule_dim must be the "
                f"same square number; received {dim} and {self.capsule_dim}."
            )
        self.num_inputs = math.prod(input_shape[1:-1])
        columns = self.capsule_dim // self.rows
        outputs = (columns,) if self.num_capsules is None else (self.num_capsules, columns)
        shape = (1 if self.shared else self.num_inputs, dim // self.rows, *outputs)
        checks.memory("The transformation of capsules", shape, _SMALLER)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer)

    def call(self, inputs):
        self._check_memory(inputs.shape[0])
        rows, dim = self.rows, inputs.shape[-1] // self.rows
        columns, outputs = self.capsule_dim // rows, self.num_capsules or 1
        if self.shared:
            product = ops.matmul(ops.reshape(inputs, (-1, dim)), ops.reshape(self.kernel, (dim, -1)))
            product = ops.reshape(product, (-1, self.num_inputs, rows, outputs, columns))
            product = ops.transpose(product, (0, 1, 3, 2, 4)) if rows > 1 else product
        else:  # one product per capsule, batched over capsules
            capsules = ops.reshape(inputs, (-1, self.num_inputs, inputs.shape[-1]))
            capsules = ops.reshape(ops.transpose(capsules, (1, 0, 2)), (self.num_inputs, -1, dim))
            product = ops.matmul(capsules, ops.reshape(self.kernel, (self.num_inputs, dim, -1)))
            product = ops.reshape(product, (self.num_inputs, -1, rows, outputs, columns))
            product = ops.transpose(product, (1, 0, 3, 2, 4))
        return ops.reshape(product, (-1, *self.compute_output_shape(inputs.shape)[1:]))

    def _check_memory(self, batch_size):
        shape = (batch_size or 1, self.num_inputs, self.num_capsules or 1, self.capsule_dim)
        bytes_each = votes_bytes(1, 1, 1, dtype=self.compute_dtype)
        checks.memory("The votes", shape, _SMALLER, times=1, bytes_each=bytes_each)

    def compute_output_shape(self, input_shape):
        if self.num_capsules is None:
            return (*input_shape[:-1], self.capsule_dim)
        return (input_shape[0], math.prod(input_shape[1:-1]), self.num_capsules, self.capsule_dim)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleLength(OfFloats, keras.layers.Layer):
    """Lengths of capsules, the confidence that each entity is present: ``(b, ..., e)`` → ``(b, ...)``, float32."""

    axes: ClassVar = {"inputs": "(b, ..., e)"}

    def call(self, inputs):
        return ops.cast(safe_norm(inputs), "float32")

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape[:-1], dtype="float32")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleMask(OfFloats, keras.layers.Layer):
    """Set all class capsules to zero except the chosen ones (the input of a class-conditional decoder).

    Call arguments:
        capsules: tensor ``(b, j, e)``.
        labels: None for the longest capsule of each example; or integer class ids ``(b,)`` or ``(b, 1)``; or a
            multi-hot tensor ``(b, j)``.

    Output shape: ``(b, j, e)``.
    """

    axes: ClassVar = {"capsules": "(b, j, e)"}

    def __call__(self, capsules, labels=None, **kwargs):
        if isinstance(labels, np.ndarray) or not (labels is None or hasattr(labels, "shape")):
            labels = checks.numbers(labels, "labels")
        return super().__call__(capsules, labels=labels, **kwargs)

    def call(self, capsules, labels=None):
        num_capsules = capsules.shape[1]
        if labels is None:
            labels = ops.argmax(safe_norm(capsules), axis=-1)
        mask = as_multi_hot(labels, num_capsules)
        return capsules * ops.cast(mask, capsules.dtype)[:, :, None]

    def compute_output_shape(self, capsules_shape, labels_shape=None):
        return capsules_shape
