"""Measurements of trained models, given as callables: robustness, and what representations show, with figures."""

from keras_capsvit.evaluate.detection import Detection, detection, detection_threshold
from keras_capsvit.evaluate.representation import FACTORS, OFFSETS, compactness, sweep, vary
from keras_capsvit.evaluate.robustness import (
    Robustness,
    attack_table,
    perturbation_norms,
    random_targets,
    robust_accuracy,
    robustness,
    success_rate,
    transfer_matrix,
)
from keras_capsvit.evaluate.table import Table, versions
from keras_capsvit.evaluate.votes import agreement, vote_gradients, vote_statistics

__all__ = [
    "FACTORS",
    "OFFSETS",
    "Detection",
    "Robustness",
    "Table",
    "agreement",
    "attack_table",
    "compactness",
    "detection",
    "detection_threshold",
    "perturbation_norms",
    "random_targets",
    "robust_accuracy",
    "robustness",
    "success_rate",
    "sweep",
    "transfer_matrix",
    "vary",
    "versions",
    "vote_gradients",
    "vote_statistics",
]
