"""FGSM, BIM, MIM and PGD."""

import dataclasses

from keras_capsvit.attacks.gradient import GradientAttack


@dataclasses.dataclass(frozen=True)
class FGSM(GradientAttack):
    """Fast gradient sign method (Goodfellow et al. 2015; thesis Eq. 6.3): one step of size ``epsilon``."""

    steps: int = 1
    keep: str = "last"  # a second forward pass would cost half of the attack


@dataclasses.dataclass(frozen=True)
class BIM(GradientAttack):
    """Basic iterative method (Kurakin et al. 2017): steps from the image itself."""

    steps: int = 10


@dataclasses.dataclass(frozen=True)
class MIM(GradientAttack):
    """Momentum iterative method (Dong et al. 2018): steps along a decaying sum of gradients."""

    steps: int = 10
    decay: float = 1.0


@dataclasses.dataclass(frozen=True)
class PGD(GradientAttack):
    """Projected gradient descent (Madry et al. 2018; thesis Eq. 6.4): steps from a random point of the ball."""

    steps: int = 40
    random_start: bool = True
