"""Measurements: of trained models, given as callables, of representations, and of explanations, given as maps."""

from keras_capsvit.evaluate.attack_tables import attack_table, transfer_matrix
from keras_capsvit.evaluate.attacking import perturbation_norms
from keras_capsvit.evaluate.auto_attack import AutoAttackReport, auto_attack
from keras_capsvit.evaluate.certified import CertifiedPatchAccuracy, certified_patch_accuracy
from keras_capsvit.evaluate.compare import compare
from keras_capsvit.evaluate.complexity import complexity, sparseness
from keras_capsvit.evaluate.detection import Detection, detection, detection_threshold
from keras_capsvit.evaluate.fidelity import PERTURBATIONS, infidelity, max_sensitivity
from keras_capsvit.evaluate.insertion import ScoreCurve, deletion, insertion
from keras_capsvit.evaluate.localisation import energy_inside, patch_share, pointing_game, rank_accuracy
from keras_capsvit.evaluate.paired import paired_tests
from keras_capsvit.evaluate.patches import (
    classified_correctly,
    fooling_rate,
    patch_transfer,
    position_map,
    shift_table,
)
from keras_capsvit.evaluate.perturbation import PerturbationCurve, ablation_drop, aopc, neuron_ablation
from keras_capsvit.evaluate.representation import FACTORS, OFFSETS, compactness, sweep, vary
from keras_capsvit.evaluate.road import road
from keras_capsvit.evaluate.robustness import Robustness, robust_accuracy, robustness, success_rate
from keras_capsvit.evaluate.sanity import (
    class_sensitivity,
    conservation,
    parameter_randomization,
    rank_correlation,
)
from keras_capsvit.evaluate.table import Table, versions
from keras_capsvit.evaluate.targets import random_targets
from keras_capsvit.evaluate.votes import agreement, vote_gradients, vote_statistics

__all__ = [
    "FACTORS",
    "OFFSETS",
    "PERTURBATIONS",
    "AutoAttackReport",
    "CertifiedPatchAccuracy",
    "Detection",
    "PerturbationCurve",
    "Robustness",
    "ScoreCurve",
    "Table",
    "ablation_drop",
    "agreement",
    "aopc",
    "attack_table",
    "auto_attack",
    "certified_patch_accuracy",
    "class_sensitivity",
    "classified_correctly",
    "compactness",
    "compare",
    "complexity",
    "conservation",
    "deletion",
    "detection",
    "detection_threshold",
    "energy_inside",
    "fooling_rate",
    "infidelity",
    "insertion",
    "max_sensitivity",
    "neuron_ablation",
    "paired_tests",
    "parameter_randomization",
    "patch_share",
    "patch_transfer",
    "perturbation_norms",
    "pointing_game",
    "position_map",
    "random_targets",
    "rank_accuracy",
    "rank_correlation",
    "road",
    "robust_accuracy",
    "robustness",
    "shift_table",
    "sparseness",
    "success_rate",
    "sweep",
    "transfer_matrix",
    "vary",
    "versions",
    "vote_gradients",
    "vote_statistics",
]
