"""Explainers: callables ``explainer(x, target=None)`` from images ``(b, H, W, C)`` to maps ``(b, H, W)``."""

from keras_capsvit.explain.attention import GraphAttention

__all__ = ["GraphAttention"]
