"""Layers of capsule networks, residual networks and vision transformers."""

from keras_capsvit.layers.ablation import Ablation
from keras_capsvit.layers.attention import MLP, MixerBlock, MultiHeadSelfAttention, TransformerBlock, gelu
from keras_capsvit.layers.capsules import (
    CapsuleInitializer,
    CapsuleLength,
    CapsuleMask,
    CapsuleTransform,
    PrimaryCaps,
    votes_bytes,
)
from keras_capsvit.layers.contributions import NodeContributions
from keras_capsvit.layers.convolution import NormalizedConv2D, StandardizedConv2D
from keras_capsvit.layers.graph_pooling import GraphCapsPool, TopKGraphPool, gaussian_adjacency
from keras_capsvit.layers.levit import LeViTBlock, OffsetAttention
from keras_capsvit.layers.patch_embedding import PatchEmbedding, resize_positions
from keras_capsvit.layers.pooling import AveragePoolTo, MaxPool2D
from keras_capsvit.layers.routing import DynamicRouting, EMRouting, SelfRouting, TrainableRouting, UniformRouting

__all__ = [
    "MLP",
    "Ablation",
    "AveragePoolTo",
    "CapsuleInitializer",
    "CapsuleLength",
    "CapsuleMask",
    "CapsuleTransform",
    "DynamicRouting",
    "EMRouting",
    "GraphCapsPool",
    "LeViTBlock",
    "MaxPool2D",
    "MixerBlock",
    "MultiHeadSelfAttention",
    "NodeContributions",
    "NormalizedConv2D",
    "OffsetAttention",
    "PatchEmbedding",
    "PrimaryCaps",
    "SelfRouting",
    "StandardizedConv2D",
    "TopKGraphPool",
    "TrainableRouting",
    "TransformerBlock",
    "UniformRouting",
    "gaussian_adjacency",
    "gelu",
    "resize_positions",
    "votes_bytes",
]
