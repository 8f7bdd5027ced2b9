"""Measurements of trained models, given as callables: robustness, and what representations show, with figures."""

from keras_capsvit.evaluate.detection import Detection, detection, detection_threshold
from keras_capsvit.evaluate.patches import (
    classified_correctly,
    fooling_rate,
    patch_share,
    patch_transfer,
    position_map,
    shift_table,
)
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
    "classified_correctly",
    "compactness",
    "detection",
    "detection_threshold",
    "fooling_rate",
    "patch_share",
    "patch_transfer",
    "perturbation_norms",
    "position_map",
    "random_targets",
    "robust_accuracy",
    "robustness",
    "shift_table",
    "success_rate",
    "sweep",
    "transfer_matrix",
    "vary",
    "versions",
    "vote_gradients",
    "vote_statistics",
]
