"""Explainers: callables ``explainer(x, target=None)`` from images ``(b, H, W, C)`` to maps ``(b, H, W)``."""

from keras_capsvit.explain.attention import GraphAttention
from keras_capsvit.explain.contrastive import CLRP, LRP, register_rule

__all__ = ["CLRP", "LRP", "GraphAttention", "register_rule"]
