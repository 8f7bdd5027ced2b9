"""Explainers: callables ``explainer(x, target=None)`` from images ``(b, H, W, C)`` to maps ``(b, H, W)``."""

from keras_capsvit.explain.attention import GraphAttention
from keras_capsvit.explain.contrastive import CLRP, LRP, register_rule
from keras_capsvit.explain.rollout import AttentionRollout

__all__ = ["CLRP", "LRP", "AttentionRollout", "GraphAttention", "register_rule"]
