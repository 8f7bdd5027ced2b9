"""Primary capsules, the transformation of capsules, and what is read off them: lengths and masks."""

import math

import keras
from keras import ops

from keras_capsvit.ops import as_multi_hot, safe_norm, squash


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleInitializer(keras.initializers.Initializer):
    """Normal weights of variance ``scale / d`` for transformation matrices, ``d`` the input capsules' dimension.

    Keras's own initialisers would count the capsules as a receptive field, and class capsules would start with a
    length near zero, where the squash has no slope.

    Args:
        scale: positive float, the ratio of mean squared components after and before the transformation.
        seed: int or None.
    """

    def __init__(self, scale=1.0, *, seed=None):
        self.scale = scale
        self.seed = seed

    def __call__(self, shape, dtype=None):
        """Return weights of ``shape`` ``(i, d, ...)`` and of ``dtype``."""
        return keras.random.normal(shape, stddev=math.sqrt(self.scale / shape[1]), dtype=dtype, seed=self.seed)

    def get_config(self):
        return {"scale": self.scale, "seed": self.seed}


@keras.saving.register_keras_serializable(package="keras_capsvit")
class PrimaryCaps(keras.layers.Layer):
    """Primary capsules: a convolution whose channels are grouped into capsules and squashed (thesis 1.2.2).

    Args:
        num_types: int, capsule types ``l`` (= heads of a graph capsule network).
        capsule_dim: int, dimension ``d`` of a capsule.
        kernel_size: int or pair of ints.
        strides: int or pair of ints.
        padding: ``"valid"`` or ``"same"``.
        kernel_initializer: initialiser of the convolution; None for normal weights of variance ``16 / (d fan_in)``, so
            that initial lengths do not depend on ``d``.

    Input shape: ``(b, H, W, channels)``. Output shape: ``(b, h, w, l, d)``, lengths in [0, 1).
    """

    def __init__(
        self,
        num_types,
        capsule_dim,
        *,
        kernel_size=9,
        strides=2,
        padding="valid",
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_types = num_types
        self.capsule_dim = capsule_dim
        self.conv = keras.layers.Conv2D(
            num_types * capsule_dim,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format="channels_last",
            kernel_initializer=kernel_initializer or keras.initializers.VarianceScaling(16.0 / capsule_dim),
            dtype=self.dtype_policy,
            name="conv",
        )

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, inputs):
        features = self.conv(inputs)
        grid = ops.shape(features)[1:3]
        return squash(ops.reshape(features, (-1, *grid, self.num_types, self.capsule_dim)))

    def compute_output_shape(self, input_shape):
        return (*self.conv.compute_output_shape(input_shape)[:3], self.num_types, self.capsule_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "num_types": self.num_types,
            "capsule_dim": self.capsule_dim,
            "kernel_size": self.conv.kernel_size,
            "strides": self.conv.strides,
            "padding": self.conv.padding,
            "kernel_initializer": keras.initializers.serialize(self.conv.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleTransform(keras.layers.Layer):
    """Linear transformation of capsules: ``u'_i = u_i W_i``, or votes ``u_hat_{j|i} = u_i W_ij``.

    Without ``num_capsules`` every capsule is projected once, as graph capsules need it (thesis Algorithm 2, step 2);
    with it, every input capsule votes for every output capsule (thesis Algorithm 1, step 2). With ``shared`` one
    matrix serves all input capsules (Aff-CapsNet, thesis Eq. 4.10).

    Args:
        capsule_dim: int, dimension ``e`` of the result.
        num_capsules: int ``j`` or None.
        shared: bool.
        kernel_initializer: initialiser of the matrices, of shape ``(i, d, e)`` or ``(i, d, j, e)``; ``i`` is 1 when
            shared.

    Input shape: ``(b, ..., d)``, the axes between counting as input capsules ``i``.
    Output shape: ``(b, ..., e)``; with ``num_capsules``, ``(b, i, j, e)``.
    """

    def __init__(self, capsule_dim, *, num_capsules=None, shared=False, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.capsule_dim = capsule_dim
        self.num_capsules = num_capsules
        self.shared = shared
        self.kernel_initializer = keras.initializers.get(kernel_initializer or CapsuleInitializer())

    def build(self, input_shape):
        if len(input_shape) < 3 or None in input_shape[1:]:
            raise ValueError(
                f"CapsuleTransform needs capsules of shape (batch, ..., capsule_dim) with known sizes; "
                f"received shape {tuple(input_shape)}. Give the model a fixed input_shape."
            )
        self.num_inputs = math.prod(input_shape[1:-1])
        outputs = (self.capsule_dim,) if self.num_capsules is None else (self.num_capsules, self.capsule_dim)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(1 if self.shared else self.num_inputs, input_shape[-1], *outputs),
            initializer=self.kernel_initializer,
        )

    def call(self, inputs):
        d = inputs.shape[-1]
        capsules = ops.reshape(inputs, (-1, self.num_inputs, d))
        if self.shared:
            outputs = ops.matmul(capsules, ops.reshape(self.kernel, (d, -1)))
        else:  # one product per capsule, batched over capsules
            kernel = ops.reshape(self.kernel, (self.num_inputs, d, -1))
            outputs = ops.matmul(ops.transpose(capsules, (1, 0, 2)), kernel)
            outputs = ops.transpose(outputs, (1, 0, 2))
        return ops.reshape(outputs, (-1, *self.compute_output_shape(inputs.shape)[1:]))

    def compute_output_shape(self, input_shape):
        if self.num_capsules is None:
            return (*input_shape[:-1], self.capsule_dim)
        return (input_shape[0], math.prod(input_shape[1:-1]), self.num_capsules, self.capsule_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "capsule_dim": self.capsule_dim,
            "num_capsules": self.num_capsules,
            "shared": self.shared,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleLength(keras.layers.Layer):
    """Lengths of capsules, the confidence that each entity is present: ``(b, ..., e)`` → ``(b, ...)``, float32."""

    def call(self, inputs):
        return ops.cast(safe_norm(inputs), "float32")

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape[:-1], dtype="float32")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsuleMask(keras.layers.Layer):
    """Set all class capsules to zero except the chosen ones (the input of a class-conditional decoder).

    Call arguments:
        capsules: tensor ``(b, j, e)``.
        labels: None for the longest capsule of each example; or integer class ids ``(b,)`` or ``(b, 1)``; or a
            multi-hot tensor ``(b, j)``.

    Output shape: ``(b, j, e)``.
    """

    def call(self, capsules, labels=None):
        num_capsules = capsules.shape[1]
        if labels is None:
            labels = ops.argmax(safe_norm(capsules), axis=-1)
        mask = as_multi_hot(labels, num_capsules)
        return capsules * ops.cast(mask, capsules.dtype)[:, :, None]

    def compute_output_shape(self, capsules_shape, labels_shape=None):
        return capsules_shape
