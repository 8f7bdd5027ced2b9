"""Capsule networks, ConvNets and vision transformers for Keras 3: trained, explained, attacked and served."""

import importlib

from keras_capsvit.layers import (
    CapsuleLength,
    CapsuleMask,
    CapsuleTransform,
    DynamicRouting,
    EMRouting,
    GraphCapsPool,
    MultiHeadSelfAttention,
    NormalizedConv2D,
    PatchEmbedding,
    PrimaryCaps,
    SelfRouting,
    StandardizedConv2D,
    TopKGraphPool,
    TrainableRouting,
    TransformerBlock,
    UniformRouting,
)
from keras_capsvit.losses import MarginLoss
from keras_capsvit.metrics import SubsetAccuracy
from keras_capsvit.models import (
    VGG19,
    AffCapsNet,
    AlexNet,
    CapsNet,
    ConvNetAvg,
    ConvNetCR,
    ConvNetCRSF,
    ConvNetFC,
    ConvNetR,
    DeiT,
    DenseNet,
    GoogLeNet,
    GraCapsNet,
    LeViT,
    MLPMixer,
    ResNet,
    ResNet18,
    ResNet20,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    SwinTransformer,
    VisionTransformer,
    load_model,
    load_weights,
    load_weights_from,
)
from keras_capsvit.schedules import LinearWarmup
from keras_capsvit.versions import warn_of_untested

__version__ = "0.1.0"

warn_of_untested()

# Imported at first use: data and serving need TensorFlow, which a JAX machine may not have, and plot needs matplotlib.
_SUBMODULES = (
    "attacks",
    "autodiff",
    "data",
    "evaluate",
    "explain",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "patches",
    "plot",
    "schedules",
    "serving",
    "taps",
    "training",
)

__all__ = [
    "VGG19",
    "AffCapsNet",
    "AlexNet",
    "CapsNet",
    "CapsuleLength",
    "CapsuleMask",
    "CapsuleTransform",
    "ConvNetAvg",
    "ConvNetCR",
    "ConvNetCRSF",
    "ConvNetFC",
    "ConvNetR",
    "DeiT",
    "DenseNet",
    "GoogLeNet",
    "DynamicRouting",
    "EMRouting",
    "GraCapsNet",
    "LeViT",
    "GraphCapsPool",
    "LinearWarmup",
    "MLPMixer",
    "MarginLoss",
    "MultiHeadSelfAttention",
    "NormalizedConv2D",
    "PatchEmbedding",
    "PrimaryCaps",
    "ResNet",
    "ResNet101",
    "ResNet152",
    "ResNet18",
    "ResNet20",
    "ResNet34",
    "ResNet50",
    "SelfRouting",
    "StandardizedConv2D",
    "SubsetAccuracy",
    "SwinTransformer",
    "TopKGraphPool",
    "TrainableRouting",
    "TransformerBlock",
    "UniformRouting",
    "VisionTransformer",
    "load_model",
    "load_weights",
    "load_weights_from",
    *_SUBMODULES,
]


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"keras_capsvit.{name}")
    raise AttributeError(f"module 'keras_capsvit' has no attribute {name!r}")
