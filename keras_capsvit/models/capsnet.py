"""Capsule networks with routing, and without it (thesis chapters 4 and 5)."""

import math
from typing import ClassVar

import keras

from keras_capsvit.layers import (
    CapsuleInitializer,
    CapsuleLength,
    CapsuleTransform,
    DynamicRouting,
    EMRouting,
    NodeContributions,
    SelfRouting,
    TrainableRouting,
    UniformRouting,
)
from keras_capsvit.layers.chunks import InChunks
from keras_capsvit.models.checks import check_images, check_positive
from keras_capsvit.models.primary import primary_capsules, smallest_size
from keras_capsvit.models.reconstruction import CapsuleModel

ROUTINGS = ("dynamic", "rolled", "trainable", "uniform", "em", "self")


@keras.saving.register_keras_serializable(package="keras_capsvit")
class CapsNet(CapsuleModel):
    """Capsule network: primary capsules vote for class capsules, and routing weighs the votes (Sabour et al. 2017).

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        routing: ``"dynamic"`` (by agreement, 3 iterations); ``"rolled"`` (the same, coupling constant in the backward
            pass); ``"trainable"`` (coupling learned); ``"uniform"`` (none); ``"em"`` (matrix capsules: poses are not
            squashed, their activations come from a convolution of their own); ``"self"`` (every capsule routes itself;
            its pose is its vote for all classes, so class capsules have ``primary_dim`` dimensions); or a routing
            layer from votes to class capsules, such as ``DynamicRouting(5)``.
        shared_transform: bool, one transformation matrix for all primary capsules (Aff-CapsNet, Eq. 4.10).
        squash: bool, of primary and class capsules (ablation of Table 5.2).
        batch_norm: bool, batch normalisation of the channels that are grouped into primary capsules.
        num_types: int, capsule types.
        primary_dim: int; None for 8, and 16 for ``"em"`` (4x4 poses) and ``"self"``.
        capsule_dim: int, of the class capsules.
        filters: int, channels of the first convolution.
        kernel_size: int, of both convolutions; with a backbone, of the convolution on its features, or None for none.
        strides: pair of ints, of the first and the second convolution.
        backbone: model whose features replace the first convolution, such as ``ResNet20(...)`` (Table 3.2); the second
            is then a "same" convolution of stride 1.
        images_at_once: int, or None for the whole batch: how many images vote and are routed at a time, also in the
            backward pass, which computes their votes again. Thousands of classes fit into memory so, see
            docs/models.md.
        reconstruction: None, ``"conditional"`` or ``"unconditional"``, the decoder (see ``CapsuleModel``).
        reconstruction_weight: float, weight of the summed squared error.
        reconstruction_units: ints, hidden widths of the decoder.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → lengths ``(b, M)`` in [0, 1).

    Taps: ``primary_capsules (b, h, w, l, d)``, ``votes (b, i, j, e)``, ``coupling (b, i, j)``, ``capsules (b, M, e)``,
    ``contributions (b, h, w, M)``, which add up to the lengths of class capsules before the squash (to the lengths of
    ``"em"`` and ``"self"``, which have none), ``lengths (b, M)``, ``reconstruction (b, H, W, C)``. For ``"self"`` votes
    are ``(b, i, 1, e)``.

    Raises:
        ValueError: for an input too small for the convolutions, and other arguments out of range.

    Example::

        model = CapsNet((28, 28, 1), 10, routing="rolled", reconstruction="conditional")
        model.compile("adam", MarginLoss(), metrics=["accuracy"])
        model.fit(x, y, epochs=5)

    On ResNet18, as in the author's code for thesis chapter 6 (features of 4x4 nodes, 64 types of 8 dimensions)::

        shape = (32, 32, 3)
        model = CapsNet(
            shape, 10, backbone=ResNet18(shape, 10), kernel_size=None, num_types=64, batch_norm=True
        )
        training.fit(model, train, test, "resnet18_capsnet")
    """

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        routing="dynamic",
        shared_transform=False,
        squash=True,
        batch_norm=False,
        num_types=32,
        primary_dim=None,
        capsule_dim=16,
        filters=256,
        kernel_size=9,
        strides=(1, 2),
        backbone=None,
        images_at_once=None,
        **kwargs,
    ):
        smallest = smallest_size(kernel_size, strides, backbone)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=smallest)
        check_positive(num_types=num_types, capsule_dim=capsule_dim)
        route = _routing_layer(routing, num_classes, squash)
        has_activations = isinstance(route, EMRouting | SelfRouting)
        images = keras.Input(input_shape, name="images")
        features, primary = primary_capsules(
            images,
            num_types=num_types,
            primary_dim=(16 if has_activations else 8) if primary_dim is None else primary_dim,
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            backbone=backbone,
            squash=squash and not has_activations,
            batch_norm=batch_norm,
        )
        voting, poses = _voting(primary, route, num_classes, capsule_dim, shared_transform)
        votes, per_input = voting(primary), [] if poses is None else [poses(primary)]
        activations = [_activations(features, primary, kernel_size, strides, backbone)] if has_activations else []
        per_input += activations
        capsules, coupling = route(votes, *per_input, return_coupling=True)
        routed = capsules
        if images_at_once is not None:

            def function(primary, *activations):
                per_input = [] if poses is None else [poses(primary)]
                return route(voting(primary), *per_input, *activations)

            parts = [layer for layer in (voting, poses, route) if layer is not None]
            routed = InChunks(function, parts, images_at_once, capsules, name="routed")(primary, *activations)
        super().__init__(
            images,
            routed,
            taps={
                "primary_capsules": primary,
                "votes": votes,
                "coupling": coupling,
                "contributions": _contributions(primary, votes, coupling, capsules, per_input),
            },
            **kwargs,
        )


def _routing_layer(routing, num_classes, squash):
    if isinstance(routing, keras.Layer):
        return routing
    if not isinstance(routing, str) or routing not in ROUTINGS:
        raise ValueError(f"routing must be one of {ROUTINGS} or a routing layer; received {routing!r}.")
    if routing == "em":
        return EMRouting(name="routing")
    if routing == "self":
        return SelfRouting(num_classes, name="routing")
    if routing == "trainable":
        return TrainableRouting(squash=squash, name="routing")
    if routing == "uniform":
        return UniformRouting(squash=squash, name="routing")
    return DynamicRouting(rolled=routing == "rolled", squash=squash, name="routing")


def _voting(primary, route, num_classes, capsule_dim, shared):
    """Layers from primary capsules to votes ``(b, i, j, e)``, and to what else the routing needs of them, or None."""
    inputs, dim = math.prod(primary.shape[1:4]), primary.shape[-1]
    if isinstance(route, SelfRouting):
        votes = keras.layers.Reshape((inputs, 1, dim), name="votes")
        return votes, keras.layers.Reshape((inputs, dim), name="poses")
    # Class capsules start as sums of N votes over M; this gives them lengths of about .1 to .4 for any N, M and dims.
    # Independent votes add up as the square root of N (but for many classes the agreement finds a few that add up
    # faster, hence not M^2); votes by one shared matrix add up over the grid.
    matrix = isinstance(route, EMRouting)
    if matrix:
        scale = 1.0
    elif shared:
        scale = num_classes**2 * dim / (inputs * capsule_dim * math.prod(primary.shape[1:3]))
    else:
        scale = 1.25 * num_classes**1.6 * dim / (inputs * capsule_dim)
    votes = CapsuleTransform(
        capsule_dim,
        num_capsules=num_classes,
        shared=shared,
        matrix=matrix,
        kernel_initializer=CapsuleInitializer(scale),
        name="votes",
    )
    return votes, None


def _contributions(primary, votes, coupling, capsules, per_input):
    """What the nodes contribute to the lengths of class capsules, ``(b, h, w, M)``."""
    grid = primary.shape[1:4]
    weights = keras.layers.Reshape((*grid, coupling.shape[-1]), name="coupling")(coupling)
    layer = NodeContributions(grid, name="contributions")
    if not per_input:
        return layer(weights, votes)
    # Where capsules are weighted by how active they are, class capsules are scaled to the length of their activation.
    return layer(weights, votes, lengths=CapsuleLength(name="activation")(capsules), activations=per_input[-1])


def _activations(features, primary, kernel_size, strides, backbone):
    """Activations ``(b, i)`` of primary capsules, from a convolution beside that of their poses."""
    convolution = keras.layers.Conv2D(
        primary.shape[3],
        kernel_size or 1,
        strides=strides[1] if backbone is None else 1,
        padding="valid" if backbone is None else "same",
        activation="sigmoid",
        data_format="channels_last",
        name="activations",
    )
    return keras.layers.Flatten(data_format="channels_last")(convolution(features))


@keras.saving.register_keras_serializable(package="keras_capsvit")
class AffCapsNet(CapsNet):
    """Affine-robust capsule network: one shared transformation and no routing (thesis Eq. 4.10).

    Images ``(b, H, W, C)`` → lengths ``(b, M)``; arguments and taps are those of ``CapsNet`` without ``routing`` and
    ``shared_transform``.
    """

    fixed: ClassVar = {"routing": "uniform", "shared_transform": True}
