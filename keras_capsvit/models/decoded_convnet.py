"""ConvNets with a decoder: one component of a capsule network at a time (thesis 5.3.3)."""

from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.models.capsnet import CapsNet
from keras_capsvit.models.checks import check_images, check_weights
from keras_capsvit.models.primary import primary_capsules, smallest_size
from keras_capsvit.models.reconstruction import CapsuleModel


class _DecodedConvNet(CapsuleModel):
    """Two convolutions and one dense layer to a representation of ``M`` groups of ``group_dim`` activations."""

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        group_dim=16,
        filters=256,
        kernel_size=9,
        strides=(1, 2),
        **kwargs,
    ):
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=smallest_size(kernel_size, strides))
        group_dim = checks.positive_int("group_dim", group_dim, checks.LARGEST)
        images = keras.Input(input_shape, name="images")
        features, maps = primary_capsules(
            images,
            num_types=1,
            primary_dim=filters,
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            squash=False,
        )
        flat = keras.layers.Flatten(data_format="channels_last")(keras.layers.ReLU()(maps))
        check_weights("the representation", (flat.shape[-1], num_classes * group_dim))
        groups = keras.layers.Dense(num_classes * group_dim, name="representation")(flat)
        groups = keras.layers.Reshape((num_classes, group_dim), name="groups")(groups)
        super().__init__(
            images,
            groups,
            logits=self.classify(groups),
            taps={"features": features},
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ConvNetR(_DecodedConvNet):
    """ConvNet with reconstruction: a dense layer to logits, and a decoder that sees the whole representation.

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        group_dim: int, activations per class; the representation has ``M * group_dim``.
        filters: int, channels of both convolutions.
        kernel_size: int, of both convolutions.
        strides: pair of ints, of the two convolutions.
        reconstruction_weight: float, weight of the summed squared error.
        reconstruction_units: ints, hidden widths of the decoder.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → logits ``(b, M)``.

    Taps: ``features (b, h, w, filters)``, ``capsules (b, M, group_dim)`` (the representation, in groups),
    ``logits (b, M)``, ``reconstruction (b, H, W, C)``.
    """

    fixed: ClassVar = {"reconstruction": "unconditional"}

    def classify(self, groups):
        flat = keras.layers.Flatten()(groups)
        check_weights("logits", (flat.shape[-1], groups.shape[1]))
        return keras.layers.Dense(groups.shape[1], dtype="float32", name="logits")(flat)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ConvNetCR(_DecodedConvNet):
    """ConvNet with class-conditional reconstruction: a class's logit is the sum of its group of activations, and the
    decoder sees one group.

    Arguments, call and taps are those of ``ConvNetR``.
    """

    fixed: ClassVar = {"reconstruction": "conditional"}

    def classify(self, groups):
        return ops.sum(ops.cast(groups, "float32"), axis=2)


@keras.saving.register_keras_serializable(package="keras_capsvit")
class ConvNetCRSF(CapsNet):
    """ConvNet with class-conditional reconstruction and squashing, which is CapsNet without routing (thesis 5.3.3).

    Images ``(b, H, W, C)`` → lengths ``(b, M)``; arguments and taps are those of ``CapsNet`` without ``routing`` and
    ``reconstruction``.
    """

    fixed: ClassVar = {"routing": "uniform", "reconstruction": "conditional"}
