"""FGSM, BIM, MIM and PGD: one loop of gradient steps within a ball around each image."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.norms import NORMS


@dataclasses.dataclass(frozen=True)
class GradientAttack(Attack):
    """Steps along the gradient of the loss; the attacks below are settings of it.

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        step_size: float, norm of a step; None for ``epsilon / 4``, but ``epsilon`` for a single step.
        steps: int >= 1.
        norm: ``"linf"`` or ``"l2"``.
        decay: float or None; with a number, steps follow the decaying sum of gradients (momentum), each divided by its
            L1 norm (Dong et al. 2018, Eq. 6).
        random_start: bool, start at a random point of the ball instead of the image.
        restarts: int, attempts from different random starts, of which each image keeps the one of the highest loss
            (targeted: the lowest).
        bounds: pair of floats, the range of pixels.
        seed: int, of random starts.

    Call: see Attack.
    """

    epsilon: float
    _: dataclasses.KW_ONLY
    step_size: float | None = None
    steps: int = 10
    norm: str = "linf"
    decay: float | None = None
    random_start: bool = False
    restarts: int = 1
    bounds: tuple = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self):
        if self.step_size is None:
            object.__setattr__(self, "step_size", self.epsilon / (1 if self.steps == 1 else 4))
        self.check_ranges(at_least_0=("epsilon", "step_size"), at_least_1=("steps", "restarts"))
        if self.restarts > 1 and not self.random_start:
            raise ValueError("Restarts from the same start find the same; set random_start=True.")

    def __call__(self, objective, x, y, targeted=False):
        objective, x, y = self.prepare(objective, x, y)
        if not len(x):
            return x
        best = best_loss = None
        for restart in range(self.restarts):
            state = self.advance(objective, x, y, self.begin(x, restart), self.steps, targeted)
            found = ops.convert_to_numpy(state[0])
            if self.restarts == 1:
                return found
            loss = ops.convert_to_numpy(self.compiled(objective, self._loss)(found, y)) * (-1 if targeted else 1)
            if best is None:
                best, best_loss = found, loss
            better = loss > best_loss
            best = np.where(better[:, None, None, None], found, best)
            best_loss = np.where(better, loss, best_loss)
        return best

    def begin(self, x, restart=0):
        """State before the first step: where the images ``x`` start, and the momentum.

        Args:
            x: images ``(b, H, W, C)``.
            restart: int, which attempt.

        Returns:
            Pair of arrays of the shape of ``x``.
        """
        start = x
        if self.random_start:
            random = np.random.default_rng([self.seed, restart])
            start = x + NORMS[self.norm].random(random, x.shape, self.epsilon)
        return np.clip(start, *self.bounds).astype("float32"), np.zeros_like(x)

    def advance(self, objective, x, y, state, steps, targeted=False):
        """Some steps from a state, compiled once per attack, objective and shape.

        Args:
            objective: Objective.
            x: clean images ``(b, H, W, C)``.
            y: class ids ``(b,)``.
            state: what ``begin`` or ``advance`` returned.
            steps: int.
            targeted: bool.

        Returns:
            The new state.
        """
        sign = np.float32(-1 if targeted else 1)
        return self.compiled(objective, self._loop)(x, y, *state, np.int32(steps), sign)

    def _loss(self, objective):
        return objective.loss

    def _loop(self, objective):
        move = self.mover(objective)

        def loop(x, y, adversarial, momentum, steps, sign):
            def step(i, adversarial, momentum):
                return i + 1, *move(x, y, adversarial, momentum, sign)

            return ops.while_loop(lambda i, *_: i < steps, step, (0 * steps, adversarial, momentum))[1:]

        return loop

    def mover(self, objective):
        """One step, a function of tensors ``(x, y, adversarial, momentum, sign) → (adversarial, momentum)``."""
        gradient, norm = autodiff.gradient(objective.loss), NORMS[self.norm]

        def move(x, y, adversarial, momentum, sign):
            direction = sign * gradient(adversarial, y)[1]
            if self.decay is not None:
                direction = momentum = self.decay * momentum + _by_l1(direction)
            return self.within(x, adversarial + self.step_size * norm.direction(direction)), momentum

        return move

    def within(self, x, moved):
        """Images ``moved`` brought back into the ball around ``x`` and the bounds."""
        # Where the ball is no box, the order of the two matters a little; each attack has that of Cleverhans.
        if self.decay is None:
            moved = ops.clip(moved, *self.bounds)
        return ops.clip(x + NORMS[self.norm].project(moved - x, self.epsilon), *self.bounds)


def _by_l1(gradient):
    # By the mean, which is the L1 norm up to a constant that no direction depends on. A zero gradient stays zero.
    size = ops.mean(ops.abs(gradient), axis=(1, 2, 3), keepdims=True)
    return gradient / ops.where(size > 0, size, 1.0)


@dataclasses.dataclass(frozen=True)
class FGSM(GradientAttack):
    """Fast gradient sign method (Goodfellow et al. 2015; thesis Eq. 6.3): one step of size ``epsilon``."""

    steps: int = 1


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
