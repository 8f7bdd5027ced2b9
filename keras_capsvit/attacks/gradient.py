"""One loop of gradient steps within a ball around each image, of which FGSM, BIM, MIM and PGD are settings."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.examine import NOT_FINITE
from keras_capsvit.attacks.norms import NORMS, per_image
from keras_capsvit.attacks.objectives import natural
from keras_capsvit.attacks.state import State, better_of
from keras_capsvit.batches import generators, numbered

KEEP = ("best", "last")


@dataclasses.dataclass(frozen=True)
class GradientAttack(Attack):
    """Steps along the gradient of the loss; FGSM, BIM, MIM and PGD are settings of it.

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        step_size: float >= 0, norm of a step, in units of the pixels; None for ``relative_step * epsilon``.
        relative_step: float >= 0, norm of a step as a share of ``epsilon``; None for 1/4, but 1 for a single step.
        steps: int >= 1.
        norm: ``"linf"`` or ``"l2"``.
        decay: float >= 0 or None; with a number, steps follow the decaying sum of gradients (momentum), each divided by
            its L1 norm (Dong et al. 2018, Eq. 6).
        random_start: bool, start at a random point of the ball instead of the image.
        restarts: int, attempts from different random starts.
        keep: ``"best"``, of all steps and restarts each image keeps what fools the objective, and of several such, or
            where nothing does, what has the highest loss (targeted: the lowest); or ``"last"``, what the last step
            leads to, as Cleverhans and Foolbox do (of restarts, by the same rule).
        bounds: pair, the range of pixels, see Attack.
        seed: int, of random starts.

    Call: see Attack.
    """

    epsilon: float | None = None
    _: dataclasses.KW_ONLY
    step_size: float | None = None
    relative_step: float | None = None
    steps: int = 10
    norm: str = "linf"
    decay: float | None = None
    random_start: bool = False
    restarts: int = 1
    keep: str = "best"
    bounds: tuple = (0.0, 1.0)
    seed: int = 0

    numeric = (*Attack.numeric, "relative_step", "decay", "random_start", "restarts")

    def __post_init__(self):
        if self.epsilon is None:
            kind = type(self).__name__
            raise ValueError(
                f"Expected epsilon, the radius of the ball in units of the pixels, such as {kind}(0.03), or for pixels "
                f"from 0 to 255, {kind}(8, bounds=(0, 255)); received none."
            )
        self.check_settings(
            at_least_0=("epsilon", "step_size", "relative_step", "decay"),
            counts=("steps", "restarts"),
        )
        if self.step_size is not None and self.relative_step is not None:
            raise ValueError(
                f"Expected step_size or relative_step; received both, {self.step_size} and {self.relative_step}. Set "
                "one to None."
            )
        if self.restarts > 1 and not self.random_start:
            raise ValueError("Restarts from the same start find the same; set random_start=True.")
        checks.choice("keep", self.keep, KEEP)

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not len(x):
            return x
        result = self._none_yet(x)
        for restart in range(self.restarts):
            start = self.begin(x, restart, numbers)
            state = self.advance(objective, x, y, start, self.steps, targeted)
            state = State(*map(ops.convert_to_numpy, state))
            self.check_losses(state)
            self.check_result(objective, start.images, state.images, y, targeted)
            result = self._better_of(objective, y, result, state, targeted)
        return result.best

    @property
    def step(self):
        """Norm of a step, in units of the pixels: ``step_size``, or what follows from ``epsilon``."""
        if self.step_size is not None:
            return self.step_size
        share = self.relative_step
        return self.epsilon * ((1 if self.steps == 1 else 1 / 4) if share is None else share)

    def structure(self):
        return (*super().structure(), self.decay is None)

    def begin(self, x, restart=0, numbers=None):
        """State before the first step: where the images ``x`` start.

        Args:
            x: images ``(b, H, W, C)``.
            restart: int, which attempt.
            numbers: see Attack.

        Returns:
            State.
        """
        start = x
        if self.random_start:
            norm, shape = NORMS[self.norm], (1, *x.shape[1:])
            drawn = generators([self.seed, restart], numbered(len(x), numbers))
            start = x + np.reshape([norm.random(random, shape, self.epsilon) for random in drawn], x.shape)
        return self._none_yet(np.clip(start, *self.limits(x)).astype("float32"))

    def advance(self, objective, x, y, state, steps, targeted=False):
        """Some steps from a state, compiled once per objective, shape, and settings that are no numbers.

        Args:
            objective: Objective.
            x: clean images ``(b, H, W, C)``.
            y: class ids ``(b,)``.
            state: what ``begin`` or ``advance`` returned.
            steps: int.
            targeted: bool.

        Returns:
            The new State.
        """
        loop = self.compiled(objective, "_loop")
        return State(
            *loop(x, y, *state, np.int32(steps), np.float32(-1 if targeted else 1), self._settings(), self.limits(x))
        )

    def check_losses(self, state):
        """Refuse a State on whose way a loss was NaN."""
        if np.isnan(ops.convert_to_numpy(state.loss)).any():
            raise ValueError(NOT_FINITE)

    def kept(self, state):
        """Images of a State that are kept if the attack ends there, a NumPy array; the last ones are not judged yet."""
        images, best, fooled = map(ops.convert_to_numpy, (state.images, state.best, state.fooled))
        return np.where(fooled[:, None, None, None], best, images)

    def within_step(self, objective):
        """The attack as a function of tensors, for use inside a train step that is compiled as a whole.

        What a call refuses is NaN here: images outside the bounds, and those of labels that are no class ids.

        Args:
            objective: see Attack.

        Returns:
            Callable ``(x (b, H, W, C), y, seed) → images (b, H, W, C)``, float32, with labels as in a call and a
            keras.random.SeedGenerator.
        """
        objective = natural(objective)
        loop, judge, norm, sign = self._loop(objective), self._judge(objective), NORMS[self.norm], np.float32(1)

        def drawn(shape, seed):
            # Of the whole batch, so that images on several devices begin where they do on one.
            rows, count = shape[0], autodiff.replicas()
            noise = norm.draw((count * rows, *shape[1:]), self.epsilon, seed)
            return noise if count == 1 else noise[autodiff.replica() * rows :][:rows]

        def attacked(x, y, seed):
            x = ops.cast(x, "float32")
            y, are_ids = _ids(y)
            low, high = limits = self.limits(x)
            slack = checks.TOLERANCE * (high - low)
            fits = ops.all(ops.logical_and(x >= low - slack, x <= high + slack), axis=(1, 2, 3))
            none_yet = (x, ops.full_like(x[:, 0, 0, 0], -np.inf), ops.zeros_like(x[:, 0, 0, 0], dtype="bool"))
            best, loss, fooled = none_yet
            for _ in range(self.restarts):
                start = x + drawn(ops.shape(x), seed) if self.random_start else x
                state = (ops.clip(start, low, high), ops.zeros_like(x), *none_yet)
                images, _, *judged = loop(x, y, *state, np.int32(self.steps), sign, self._settings(), limits)
                if self.keep == "last" and self.restarts == 1:
                    best = images
                    break
                so_far = none_yet if self.keep == "last" else judged
                images, new_loss, new_fooled = judge(y, images, *so_far, sign)
                better = ops.where(ops.equal(new_fooled, fooled), new_loss > loss, new_fooled)
                best = ops.where(per_image(better), images, best)
                loss = ops.where(better, new_loss, loss)
                fooled = ops.logical_or(new_fooled, fooled)
            return ops.where(per_image(ops.logical_and(fits, are_ids)), best, np.float32(np.nan))

        return attacked

    def _none_yet(self, x):
        return State(x, np.zeros_like(x), x, np.full(len(x), -np.inf, "float32"), np.zeros(len(x), bool))

    def _better_of(self, objective, y, result, state, targeted):
        """The better of two states for each image; the last images are judged where it matters."""
        if self.keep == "last":
            if self.restarts == 1:
                return result._replace(best=state.images)
            state = state._replace(best=result.best, loss=result.loss, fooled=result.fooled)
        judged = self.compiled(objective, "_judge")(y, state.images, *state[2:], np.float32(-1 if targeted else 1))
        best, loss, fooled = map(ops.convert_to_numpy, judged)
        if not np.isfinite(loss).all():
            raise ValueError(NOT_FINITE)
        better = np.where(fooled == result.fooled, loss > result.loss, fooled)
        return result._replace(
            best=np.where(better[:, None, None, None], best, result.best),
            loss=np.where(better, loss, result.loss),
            fooled=fooled | result.fooled,
        )

    def _settings(self):
        return np.float32([self.epsilon, self.step, self.decay or 0])

    def _judge(self, objective):
        def judge(y, images, best, loss, fooled, sign):
            return better_of(images, *objective.loss_and_scores(images, y), y, sign, best, loss, fooled)

        return judge

    def _loop(self, objective):
        move = self.mover(objective)

        def loop(x, y, images, momentum, best, loss, fooled, steps, sign, settings, limits):
            back = self.within(x, settings[0], limits)

            def step(i, images, momentum, *so_far):
                so_far = list(so_far)
                moved, momentum, losses, scores = move(y, images, momentum, sign, settings, back)
                if self.keep == "best":
                    so_far = better_of(images, losses, scores, y, sign, *so_far)
                else:
                    so_far[1] = ops.where(ops.isnan(losses), float("nan"), so_far[1])
                return i + 1, moved, momentum, *so_far

            state = (0 * steps, images, momentum, best, loss, fooled)
            return ops.while_loop(lambda i, *_: i < steps, step, state)[1:]

        return loop

    def mover(self, objective):
        """One step, a function of tensors.

        Args:
            objective: Objective.

        Returns:
            Callable ``(y, images, momentum, sign, settings, back)`` of labels, where the step begins, +1 or (targeted)
            -1, what ``_settings`` returns, and what ``within`` returns; it returns the moved images, the momentum, and
            losses and scores of the images before.
        """
        gradient, norm = autodiff.gradient(objective.loss_and_scores, has_aux=True), NORMS[self.norm]

        def move(y, images, momentum, sign, settings, back):
            (losses, scores), slope = gradient(images, y)
            if self.decay is not None:
                slope = momentum = settings[2] * momentum + _by_l1(slope)
            # The sign goes to the size of the step, a number, and not to the gradient, as large as all images.
            return back(images + (sign * settings[1]) * norm.direction(slope)), momentum, losses, scores

        return move

    def within(self, x, epsilon, limits):
        """What brings moved images back into the ball around ``x`` and the bounds, a function of them."""
        back = NORMS[self.norm].region(x, epsilon, limits)
        # Where the ball is no box, the order of the two matters a little; each attack has that of Cleverhans.
        if self.norm == "linf" or self.decay is not None:
            return back
        return lambda moved: back(ops.clip(moved, limits[0], limits[1]))


def _ids(y):
    """Class ids ``(b,)`` of labels as in a call, tensors, and whether they are such, ``(b,)``."""
    if len(y.shape) == 2 and y.shape[1] != 1:
        y = ops.cast(y, "float32")
        is_one_hot = ops.logical_and(ops.equal(ops.sum(y, axis=1), 1), ops.equal(ops.max(y, axis=1), 1))
        return ops.argmax(y, axis=1), is_one_hot
    y = ops.reshape(y, (-1,))
    ids = ops.cast(y, "int32")
    return ids, ops.logical_and(ops.equal(ops.cast(ids, y.dtype), y), ids >= 0)


def _by_l1(gradient):
    # By the mean, which is the L1 norm up to a constant that no direction depends on. A zero gradient stays zero.
    size = ops.mean(ops.abs(gradient), axis=(1, 2, 3), keepdims=True)
    return gradient / ops.where(ops.equal(size, 0), 1.0, size)
