"""Capsule layers."""

from keras_capsvit.layers.capsules import (
    CapsuleInitializer,
    CapsuleLength,
    CapsuleMask,
    CapsuleTransform,
    PrimaryCaps,
)
from keras_capsvit.layers.graph_pooling import GraphCapsPool, gaussian_adjacency

__all__ = [
    "CapsuleInitializer",
    "CapsuleLength",
    "CapsuleMask",
    "CapsuleTransform",
    "GraphCapsPool",
    "PrimaryCaps",
    "gaussian_adjacency",
]
