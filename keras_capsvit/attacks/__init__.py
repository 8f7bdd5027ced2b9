"""Attacks: an objective (what is attacked) times an algorithm (how)."""

from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.carlini_wagner import CarliniWagner
from keras_capsvit.attacks.deepfool import DeepFool
from keras_capsvit.attacks.gradient import BIM, FGSM, MIM, PGD, GradientAttack
from keras_capsvit.attacks.objectives import Objective, capsules, logits, natural, votes

__all__ = [
    "BIM",
    "FGSM",
    "MIM",
    "PGD",
    "Attack",
    "CarliniWagner",
    "DeepFool",
    "GradientAttack",
    "Objective",
    "capsules",
    "logits",
    "natural",
    "votes",
]
