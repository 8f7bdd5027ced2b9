"""Measurements of trained models, given as callables: what their representations show, with figures."""

from keras_capsvit.evaluate.representation import (
    FACTORS,
    OFFSETS,
    agreement,
    compactness,
    sweep,
    vary,
    vote_gradients,
    vote_statistics,
)

__all__ = [
    "FACTORS",
    "OFFSETS",
    "agreement",
    "compactness",
    "sweep",
    "vary",
    "vote_gradients",
    "vote_statistics",
]
