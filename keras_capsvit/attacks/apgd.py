"""Auto-PGD: gradient steps whose size follows from how the loss has risen so far."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.borders import fools, rivals
from keras_capsvit.attacks.examine import NOT_FINITE, examine
from keras_capsvit.attacks.losses import LOSSES, check_classes
from keras_capsvit.attacks.norms import NORMS, per_image, select
from keras_capsvit.batches import fewest, generators, numbered

KEEP = ("best", "first")
_MOMENTUM = 0.75  # share of a step that is new, from the second on
# Of the steps: when the size of steps is looked at first, by how much these times shrink, and the shortest.
_TIMES = {"linf": (0.22, 0.03, 0.06), "l2": (0.22, 0.03, 0.06), "l1": (0.04, 0.0, 0.04)}
# Of L1, what the radius is at first, and for which share of the steps.
_WIDER = ((3, 0.3), (2, 0.3))
_SHRINK, _SMALLEST = 1.5, 10.0


@dataclasses.dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020; for L1, Croce and Hein 2021): steps without a step size to choose.

    Steps begin with ``2 epsilon`` and momentum. At checkpoints, the first after 22 % of the steps and then ever more
    often, an image takes half the step and goes back to where its loss was highest, if the loss rose in at most a share
    ``rho`` of the steps since the last checkpoint, or if it has found nothing higher since then at the same step size.

    In L1 steps change the pixels of the largest gradients alone, of which there are fewer as the change itself becomes
    sparse; the radius is ``3 epsilon`` for 30 % of the steps, ``2 epsilon`` for 30 %, then ``epsilon``.

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        steps: int >= 1, of each attempt; it costs one gradient more than steps (in L1, three).
        restarts: int >= 1, attempts from different random starts; images that fool the objective need no further one.
        loss: what is raised: ``"ce"``, the cross-entropy, which is the objective's own loss; ``"dlr"``, the difference
            of logits ratio, of 3 classes or more; ``"dlr_targeted"``, the ratio towards each of the ``targets`` most
            probable other classes in turn, of 4 classes or more (APGD-T); ``"margin"``, the lead of the best other
            class. All but ``"ce"`` are of the scores alone.
        targets: int >= 1, most classes that ``"dlr_targeted"`` tries. Targeted, it raises the score of the class wanted
            against that of the most probable one besides it.
        rho: float in [0, 1].
        eot_iter: int >= 1, gradients that are averaged in each step, for models that draw random numbers (on the
            TensorFlow backend only: on JAX a compiled model draws the same ones every time).
        keep: ``"best"``, each image keeps what fools the objective, and of several such, or where nothing does, what
            has the highest loss (targeted: the lowest); or ``"first"``, images that fool the objective already stay as
            they are, others keep the first that does, and the attack ends when all have one, which is cheap.
        bounds: pair, the range of pixels, see Attack.
        seed: int, of random starts.

    Call: see Attack.

    Raises:
        ValueError: as Attack, and for a loss of which the objective has too few classes.

    Example::

        images = attacks.APGD(8 / 255, loss="dlr")(model, x, y)
    """

    epsilon: float
    _: dataclasses.KW_ONLY
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 9
    rho: float = 0.75
    eot_iter: int = 1
    keep: str = "best"
    bounds: tuple = (0.0, 1.0)
    seed: int = 0

    numeric = (*Attack.numeric, "restarts", "targets", "rho", "eot_iter")
    norms = ("linf", "l2", "l1")

    def __post_init__(self):
        self.check_settings(at_least_0=("epsilon",), counts=("steps", "restarts", "targets", "eot_iter"))
        checks.number("rho", self.rho, 0, 1)
        checks.choice("loss", self.loss, tuple(LOSSES))
        checks.choice("keep", self.keep, KEEP)

    @property
    def raised(self):
        """What shows whether a gradient reaches the pixels, which needs no other class."""
        return LOSSES["dlr" if self.loss == "dlr_targeted" else self.loss]

    def __call__(self, objective, x, y, targeted=False, *, numbers=None):
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        if not len(x):
            return x
        check_classes(self.loss, examine(objective, x))
        if self.eot_iter > 1 and autodiff.draws_once():
            raise ValueError(
                f"eot_iter={self.eot_iter} averages over what a model draws, which on this backend is the same at "
                "every call of a compiled model; expected eot_iter=1, or KERAS_BACKEND=tensorflow."
            )
        candidates, fooled = y[:, None], np.zeros(len(x), bool)
        if self.keep == "first" or self.loss == "dlr_targeted":
            scores = objective.scored(x)
            candidates = ops.convert_to_numpy(rivals(scores, y, scores.shape[1] - 1))  # most probable first
            if self.keep == "first":
                fooled = (scores.argmax(axis=1) == y) == targeted
        result, loss = x.copy(), np.full(len(x), -np.inf)
        towards = min(self.targets, candidates.shape[1]) if self.loss == "dlr_targeted" and not targeted else 1
        numbers = numbered(len(x), numbers)
        for attempt in range(towards * self.restarts):
            left = np.flatnonzero(~fooled)
            if not len(left):
                break
            few = fewest(len(left), len(x))
            rows, start = left[few], self.begin(x[left], attempt, numbers[left])[few]
            target = candidates[rows, attempt // self.restarts]
            images, losses, fooling = self._attempt(objective, x[rows], y[rows], target, start, targeted, len(left))
            if not np.isfinite(losses).all():
                raise ValueError(NOT_FINITE)
            better = fooling | (losses > loss[left])
            result[left[better]], loss[left[better]] = images[better], losses[better]
            fooled[left] = fooling
            if not attempt:
                begun = x.copy()
                begun[left] = start[: len(left)]
                self.check_result(objective, begun, result, y, targeted)
        return result

    def structure(self):
        return (*super().structure(), self.eot_iter > 1)

    def begin(self, x, attempt=0, numbers=None):
        """Where images ``x (b, H, W, C)`` start, an array: on the surface of the ball, but within bounds.

        Args:
            x: images ``(b, H, W, C)``.
            attempt: int, which one.
            numbers: see Attack.
        """
        norm, drawn = NORMS[self.norm], generators([self.seed, attempt], numbered(len(x), numbers))
        moves = [norm.surface(random, x.shape[1:], self.epsilon) for random in drawn]
        if self.norm == "l1":
            return (x + self.unit(x) * np.reshape(moves, x.shape)).astype("float32")  # which _attempt brings back
        return np.clip(x + np.reshape(moves, x.shape), *self.limits(x)).astype("float32")

    def _attempt(self, objective, x, y, target, start, targeted, count):
        """Images of one attempt, their losses and whether they fool, of the first ``count``; NumPy."""
        run, limits = self.compiled(objective, "_run"), self.limits(x).astype(x.dtype)
        phases = self._phases()
        for number, (wider, steps) in enumerate(phases):
            settings = np.array([self.epsilon * wider, self.rho, -1 if targeted else 1], x.dtype)
            times = [max(int(share * steps), 1) for share in _TIMES[self.norm]]
            if self.norm == "l1":
                times[1] = 0
            may_end = self.keep == "first" and number == len(phases) - 1
            whole = np.int32([steps, *times, self.eot_iter, may_end])
            images, losses, fooling, start = run(x, y, target, start, whole, settings, limits)
        return (ops.convert_to_numpy(values)[:count] for values in (images, losses, fooling))

    def _phases(self):
        """Pairs of a multiple of the radius, and steps with it."""
        wider = [(times, math.ceil(share * self.steps)) for times, share in _WIDER] if self.norm == "l1" else []
        rest = self.steps - sum(steps for _, steps in wider)
        return [*wider, (1, rest)] if rest > 0 else [(1, self.steps)]

    def _run(self, objective):
        gradient = self._gradient(objective)
        control = _Sparsity() if self.norm == "l1" else _Halving(NORMS[self.norm])

        def run(x, y, target, start, whole, settings, limits):
            steps, longest, shorter, shortest, draws, may_end = (whole[k] for k in range(6))
            epsilon, rho, sign = (settings[k] for k in range(3))
            back = NORMS[self.norm].region(x, epsilon, limits)
            start = back(start) if self.norm == "l1" else start

            def step(i, check, length, images, before, best, best_slope, best_loss, kept, kept_loss, fooled, *state):
                (losses, scores), slope = gradient(images, y, target, draws)
                losses, slope, fooling = sign * losses, sign * slope, fools(scores, y, sign)
                is_nan = ops.logical_or(ops.isnan(losses), ops.isnan(best_loss))
                higher = losses > best_loss
                best, best_slope = select(higher, images, best), select(higher, slope, best_slope)
                best_loss = ops.where(is_nan, float("nan"), ops.where(higher, losses, best_loss))
                better = ops.logical_and(fooling, ops.logical_not(fooled))
                if self.keep == "best":
                    better = ops.logical_or(better, ops.logical_and(fooling, losses > kept_loss))
                kept, kept_loss = select(better, images, kept), ops.where(better, losses, kept_loss)
                fooled = ops.logical_or(fooled, fooling)

                state = control.seen(i, losses, *state)
                now = ops.equal(i, check)
                again, *state = control.checked(now, best - x, best_loss, length, rho, epsilon, *state)
                images, slope = select(again, best, images), select(again, best_slope, slope)
                check = ops.where(now, check + ops.maximum(length - shorter, shortest), check)
                length = ops.where(now, ops.maximum(length - shorter, shortest), length)
                moved = control.moved(i, images, slope, before, back, *state)
                return (
                    *(i + 1, check, length, moved, images, best, best_slope, best_loss, kept, kept_loss, fooled),
                    *state,
                )

            def unfinished(i, *so_far):
                ended = ops.logical_and(may_end > 0, ops.all(so_far[9]))
                return ops.logical_and(i <= steps, ops.logical_not(ended))

            none = ops.full_like(x[:, 0, 0, 0], -np.inf)
            state = (0 * steps, longest, longest, start, start, start, ops.zeros_like(x), none, start, none, y < 0)
            state = ops.while_loop(unfinished, step, (*state, *control.begun(start - x, epsilon)))
            best, best_loss, kept, kept_loss, fooled = (state[k] for k in (5, 7, 8, 9, 10))
            # A loss of NaN on the way stays, whatever fooled.
            loss = ops.where(ops.logical_and(fooled, ops.logical_not(ops.isnan(best_loss))), kept_loss, best_loss)
            return select(fooled, kept, best), loss, fooled, best

        return run

    def _gradient(self, objective):
        """Losses, scores and gradients of images: with random numbers, the mean of several gradients."""
        gradient = autodiff.gradient(LOSSES[self.loss](objective), has_aux=True)

        def mean(images, y, target, draws):
            def more(i, losses, scores, slope):
                (losses, scores), new = gradient(images, y, target)
                return i + 1, losses, scores, slope + new

            (losses, scores), slope = gradient(images, y, target)
            state = ops.while_loop(lambda i, *_: i < draws, more, (0 * draws + 1, losses, scores, slope))
            # Losses and scores are the last ones, as in the authors' code.
            return state[1:3], state[3] / ops.cast(draws, slope.dtype)

        return mean if self.eot_iter > 1 else lambda images, y, target, draws: gradient(images, y, target)


class _Halving:
    """Size of steps in L-infinity and L2; what is kept of each image is an array ``(b,)``."""

    def __init__(self, norm):
        self.norm = norm

    def begun(self, change, epsilon):
        zeros = ops.zeros_like(change[:, 0, 0, 0])
        return zeros + 2 * epsilon, zeros, zeros + np.inf, zeros, zeros + 1

    def seen(self, i, losses, size, rises, last, then, halved):
        # The first step is compared with 0 instead of with the start, as it is in the authors' code.
        rises = rises + ops.cast(losses > last, rises.dtype)
        return size, rises, losses * ops.cast(i > 0, losses.dtype), then, halved

    def checked(self, now, change, best_loss, length, rho, epsilon, size, rises, last, then, halved):
        few = rises <= rho * ops.cast(length, rho.dtype)
        stuck = ops.logical_and(ops.equal(halved, 0), then >= best_loss)
        again = ops.logical_and(now, ops.logical_or(few, stuck))
        size = ops.where(again, size / 2, size)
        halved = ops.where(now, ops.cast(again, halved.dtype), halved)
        return again, size, ops.where(now, 0.0, rises), last, ops.where(now, best_loss, then), halved

    def moved(self, i, images, slope, before, back, size, *_):
        straight = back(images + per_image(size) * self.norm.direction(slope))
        new = ops.cast(ops.where(i > 0, _MOMENTUM, 1.0), images.dtype)
        return back(images + new * (straight - images) + (1 - new) * (images - before))


class _Sparsity:
    """Size of steps in L1, how many pixels a step changes, and in how many the best image differed; each ``(b,)``.

    The numbers of pixels are integers: a rounding error would let a step change one pixel more.
    """

    def begun(self, change, epsilon):
        count = _count(change)
        return epsilon + ops.zeros_like(change[:, 0, 0, 0]), _fewer(count), count

    def seen(self, i, losses, *state):
        return state

    def checked(self, now, change, best_loss, length, rho, epsilon, size, most, count):
        new = _count(change)
        sparser = 20 * new < 19 * count  # by more than 5 %
        smaller = ops.maximum(size / _SHRINK, epsilon / _SMALLEST)
        size = ops.where(now, ops.where(sparser, epsilon, smaller), size)
        return ops.logical_and(now, sparser), size, ops.where(now, _fewer(new), most), ops.where(now, new, count)

    def moved(self, i, images, slope, before, back, size, most, count):
        return back(images + per_image(size) * NORMS["l1"].sparse(slope, most))


def _count(change):
    """How many entries are not zero, integers ``(b,)``."""
    return ops.sum(ops.cast(ops.not_equal(change, 0), "int32"), axis=(1, 2, 3))


def _fewer(count):
    """Two thirds of ``count``, rounded up."""
    return (2 * count + 2) // 3
