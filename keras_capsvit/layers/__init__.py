"""Layers."""

from keras_capsvit.layers.capsules import (
    CapsuleInitializer,
    CapsuleLength,
    CapsuleMask,
    CapsuleTransform,
    PrimaryCaps,
    votes_bytes,
)
from keras_capsvit.layers.convolution import NormalizedConv2D
from keras_capsvit.layers.graph_pooling import GraphCapsPool, TopKGraphPool, gaussian_adjacency
from keras_capsvit.layers.routing import DynamicRouting, EMRouting, SelfRouting, TrainableRouting, UniformRouting

__all__ = [
    "CapsuleInitializer",
    "CapsuleLength",
    "CapsuleMask",
    "CapsuleTransform",
    "DynamicRouting",
    "EMRouting",
    "GraphCapsPool",
    "NormalizedConv2D",
    "PrimaryCaps",
    "SelfRouting",
    "TopKGraphPool",
    "TrainableRouting",
    "UniformRouting",
    "gaussian_adjacency",
    "votes_bytes",
]
