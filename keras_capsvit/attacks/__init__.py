"""Attacks: an objective (what is attacked) times an algorithm (how)."""

from keras_capsvit.attacks.apgd import APGD
from keras_capsvit.attacks.auto import AutoAttack, AutoAttackResult
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.base_objective import Objective
from keras_capsvit.attacks.carlini_wagner import CarliniWagner, CarliniWagnerBox, CarliniWagnerLinf
from keras_capsvit.attacks.deepfool import DeepFool
from keras_capsvit.attacks.detection_aware import DetectionAware, reconstruction_error
from keras_capsvit.attacks.fab import FAB
from keras_capsvit.attacks.gradient import GradientAttack
from keras_capsvit.attacks.objectives import ORDERS, capsules, combined, logits, natural, votes
from keras_capsvit.attacks.patch import PatchAttack
from keras_capsvit.attacks.patch_fool import PatchFool
from keras_capsvit.attacks.patch_result import PatchResult
from keras_capsvit.attacks.patch_transforms import PatchTransforms
from keras_capsvit.attacks.pgd import BIM, FGSM, MIM, PGD
from keras_capsvit.attacks.precision import PRECISIONS, in_precision
from keras_capsvit.attacks.presets import PRESETS, preset
from keras_capsvit.attacks.square import Square, SquareResult

__all__ = [
    "APGD",
    "BIM",
    "FAB",
    "FGSM",
    "MIM",
    "ORDERS",
    "PGD",
    "PRECISIONS",
    "PRESETS",
    "Attack",
    "AutoAttack",
    "AutoAttackResult",
    "CarliniWagner",
    "CarliniWagnerBox",
    "CarliniWagnerLinf",
    "DeepFool",
    "DetectionAware",
    "GradientAttack",
    "Objective",
    "PatchAttack",
    "PatchFool",
    "PatchResult",
    "PatchTransforms",
    "Square",
    "SquareResult",
    "capsules",
    "combined",
    "in_precision",
    "logits",
    "natural",
    "preset",
    "reconstruction_error",
    "votes",
]
