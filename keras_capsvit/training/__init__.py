"""Training: recipes, ``fit`` that can be interrupted, adversarial training, and runs that are the same bit by bit."""

from keras_capsvit.training.adversarial import adversarial_fit
from keras_capsvit.training.fitting import StopAt, fit
from keras_capsvit.training.processes import share
from keras_capsvit.training.randomness import set_deterministic
from keras_capsvit.training.recipes import LOSSES, RECIPES, Recipe, loss_for

__all__ = [
    "LOSSES",
    "RECIPES",
    "Recipe",
    "StopAt",
    "adversarial_fit",
    "fit",
    "loss_for",
    "set_deterministic",
    "share",
]
