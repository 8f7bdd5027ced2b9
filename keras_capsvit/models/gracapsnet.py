"""Graph capsule networks (thesis chapter 3)."""

import keras

from keras_capsvit import checks
from keras_capsvit.layers import (
    CapsuleInitializer,
    CapsuleTransform,
    GraphCapsPool,
    NodeContributions,
    TopKGraphPool,
)
from keras_capsvit.layers.chunks import InChunks
from keras_capsvit.layers.graph_pooling import gaussian_adjacency, relative_reach
from keras_capsvit.models.checks import check_images, check_positive
from keras_capsvit.models.primary import primary_capsules, smallest_size
from keras_capsvit.models.reconstruction import CapsuleModel


@keras.saving.register_keras_serializable(package="keras_capsvit")
class GraCapsNet(CapsuleModel):
    """Graph capsule network: a capsule network whose routing is multi-head graph pooling (thesis Algorithm 2).

    Two convolutions give ``h w`` primary capsules for each of ``num_heads`` types; each capsule is projected by a
    matrix of its own; each type is a graph over the grid whose nodes are pooled into class capsules by attention;
    the heads are averaged and squashed. Built-in explanations are what the nodes contribute to the length of a class
    capsule (``explain.GraphContribution``), and the attention (``explain.GraphAttention``).

    Args:
        input_shape: ints ``(H, W, C)``.
        num_classes: int ``M >= 2``.
        num_heads: int, graphs ``l``.
        primary_dim: int, dimension ``d`` of the primary capsules.
        capsule_dim: int, dimension ``e`` of node features and class capsules.
        filters: int, channels of the first convolution.
        kernel_size: int, of both convolutions.
        strides: pair of ints, of the first and the second convolution.
        sigma: float >= 0, width of the Gaussian adjacency in nodes (Eq. 3.1); 0 for nodes without neighbours, which is
            what the thesis's own code comes to, and explains best (row X.sigma of ``examples/reproduce``).
        self_loops: bool, add the identity to the adjacency.
        normalize: bool, degree-normalise the adjacency.
        pooling: ``"attention"``, graph pooling; or ``"top_k"``, which leaves the graph out (ablation of Fig. 3.3).
        shared_transform: bool, one projection for all nodes instead of one for each.
        backbone: model whose features replace the first convolution, such as ``ResNet20(...)`` (Table 3.2); the second
            is then a "same" convolution of stride 1, or left out if ``kernel_size`` is None.
        images_at_once: int, or None for the whole batch: how many images are pooled at a time, also in the backward
            pass, which computes their attention again, see docs/models.md.
        reconstruction: None, ``"conditional"`` or ``"unconditional"``, the decoder (see ``CapsuleModel``).
        reconstruction_weight: float, weight of the summed squared error.
        reconstruction_units: ints, hidden widths of the decoder.

    Call: images ``(b, H, W, C)`` with values in [0, 1] → lengths ``(b, M)`` in [0, 1).

    Taps: ``primary_capsules (b, h, w, l, d)``, ``attention (b, h, w, l, M)``, ``contributions (b, h, w, M)``, which add
    up to the lengths of class capsules before the squash, ``capsules (b, M, e)``, ``lengths (b, M)``,
    ``reconstruction (b, H, W, C)``.

    Raises:
        ValueError: for an input too small for the convolutions, and other arguments out of range.

    Example::

        model = GraCapsNet((28, 28, 1), 10)
        model.compile("adam", MarginLoss(), metrics=["accuracy"])
        model.fit(x, y, epochs=5)

    For CIFAR-10 the author's code has 512 channels, hence 64 heads, and 2,793,130 parameters as here, 3.7 % fewer than
    the 2.90 M of thesis Table 3.1, which does not tell its number of heads::

        model = GraCapsNet((32, 32, 3), 10, num_heads=64)
        training.fit(model, data.augment(train, shift=4, flip=True), test, "gracapsnet_cifar10")
    """

    def __init__(
        self,
        input_shape,
        num_classes,
        *,
        num_heads=32,
        primary_dim=8,
        capsule_dim=16,
        filters=256,
        kernel_size=3,
        strides=(1, 2),
        sigma=0.0,
        self_loops=False,
        normalize=False,
        pooling="attention",
        shared_transform=False,
        backbone=None,
        images_at_once=None,
        **kwargs,
    ):
        smallest = smallest_size(kernel_size, strides, backbone)
        input_shape, num_classes = check_images(input_shape, num_classes, smallest=smallest)
        check_positive(num_heads=num_heads, primary_dim=primary_dim, capsule_dim=capsule_dim)
        checks.number("sigma", sigma, 0)
        images = keras.Input(input_shape, name="images")
        _, primary = primary_capsules(
            images,
            num_types=num_heads,
            primary_dim=primary_dim,
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            backbone=backbone,
        )
        # Primary capsules are at most 1 long whatever their dimension, hence a variance of 1/8 that does not depend on
        # it; the more nodes or heads are averaged, the larger each has to be.
        height, width = primary.shape[1:3]
        adjacency = gaussian_adjacency(height, width, sigma, self_loops=self_loops, normalize=normalize)
        scale = primary_dim / 8 * relative_reach(adjacency, height, width) ** 2 * max(1.0, num_heads / 32) ** 0.25
        if checks.choice("pooling", pooling, ("attention", "top_k")) == "top_k":
            scale *= 25.0  # a mean over half the nodes, not over the few that attention chooses
        nodes = CapsuleTransform(
            capsule_dim, shared=shared_transform, kernel_initializer=CapsuleInitializer(scale), name="projection"
        )(primary)
        if pooling == "top_k":
            pool = TopKGraphPool(num_classes, name="graph_pooling")
        else:
            pool = GraphCapsPool(
                num_classes, sigma=sigma, self_loops=self_loops, normalize=normalize, name="graph_pooling"
            )
        capsules, attention = pool(nodes, return_attention_scores=True)
        votes = keras.layers.Reshape((height * width * num_heads, 1, capsule_dim), name="votes")(nodes)
        contributions = NodeContributions((height, width, num_heads), mean=True, name="contributions")
        pooled = capsules
        if images_at_once is not None:
            pooled = InChunks(pool, [pool], images_at_once, capsules, name="pooled")(nodes)
        super().__init__(
            images,
            pooled,
            taps={
                "primary_capsules": primary,
                "attention": attention,
                "contributions": contributions(attention, votes),
            },
            **kwargs,
        )
