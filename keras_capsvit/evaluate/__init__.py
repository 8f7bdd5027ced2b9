"""Measurements of trained models, given as callables: robustness, and what representations show, with figures."""

from keras_capsvit.evaluate.representation import FACTORS, OFFSETS, compactness, sweep, vary
from keras_capsvit.evaluate.robustness import (
    Robustness,
    perturbation_norms,
    random_targets,
    robust_accuracy,
    robustness,
    success_rate,
)
from keras_capsvit.evaluate.votes import agreement, vote_gradients, vote_statistics

__all__ = [
    "FACTORS",
    "OFFSETS",
    "Robustness",
    "agreement",
    "compactness",
    "perturbation_norms",
    "random_targets",
    "robust_accuracy",
    "robustness",
    "success_rate",
    "sweep",
    "vary",
    "vote_gradients",
    "vote_statistics",
]
