"""Square attack: random search over square windows, by scores alone (Andriushchenko et al. 2020)."""

import dataclasses
import functools

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import AttackWithResult
from keras_capsvit.attacks.borders import fools, lead
from keras_capsvit.attacks.examine import NOT_FINITE, leaves_graph
from keras_capsvit.attacks.norms import select
from keras_capsvit.attacks.windows import WINDOWS, Squares, draw, levels, sides
from keras_capsvit.batches import fewest, generators, next_fewer, numbered

LOSSES = ("margin", "ce")
_CHUNK = 256  # queries that windows are drawn for at a time


@dataclasses.dataclass
class SquareResult:
    """What a Square attack came to.

    Args:
        images: ``(b, H, W, C)``, float32.
        fooled: bools ``(b,)``, whether they fool the objective (targeted: give the class wanted).
        queries: ints ``(b,)``, images that the objective was asked for, without the look at the clean one; 0 where
            that fooled it already.
        loss: ``(b,)``, of ``images``, what was lowered; infinite where no query was needed.
    """

    images: np.ndarray
    fooled: np.ndarray
    queries: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Square(AttackWithResult):
    """Random search by scores alone, no gradients (Andriushchenko et al. 2020, Alg. 1 to 3). Defaults are published.

    A query changes a random square window of every image, and what lowers the loss is kept. An image that fools the
    objective is not asked for again. So everything that gives scores can be attacked: models live and served, models
    that round or have no gradient otherwise, and callables that leave the graph, such as ``model.predict`` or a
    function of NumPy arrays, which run outside of compiled code.

    Images that fool the objective already are returned unchanged; where nothing that fools it is found, the image of
    the lowest loss.

    Args:
        epsilon: float >= 0, radius of the ball, in units of the pixels.
        norm: ``"linf"``; ``"l2"``; or ``"l1"`` (Croce and Hein 2021).
        queries: int >= 1, at most, of each restart; the first asks for the start.
        p: float in (0, 1], area of the first windows as a share of the image. It is halved after 0.1, 0.5, 2, 5, 10,
            20, 40, 60 and 80 % of the queries.
        restarts: int >= 1, attempts from different starts, of the images that are not fooled by then.
        loss: ``"margin"``, by how much the own class leads (targeted: the wanted one lags); or ``"ce"``, the loss of
            the objective (untargeted: its negative), which of ``combined`` objectives sees all.
        bounds: pair, the range of pixels, see Attack.
        seed: int, of starts and windows.

    Call: see Attack. ``run`` returns more.

    Example::

        result = Square(8 / 255, queries=1000).run(model.predict, x, y)
        print(result.fooled.mean(), np.median(result.queries[result.fooled]))
    """

    epsilon: float
    _: dataclasses.KW_ONLY
    norm: str = "linf"
    queries: int = 5000
    p: float = 0.8
    restarts: int = 1
    loss: str = "margin"
    bounds: tuple = (0.0, 1.0)
    seed: int = 0

    numeric = ("epsilon", "queries", "p", "restarts", "bounds", "seed")
    norms = ("linf", "l2", "l1")
    uses_gradients = False

    def __post_init__(self):
        self.check_settings(at_least_0=("epsilon",), counts=("queries", "restarts"))
        checks.number("p", self.p, 0, 1, without=(0,))
        checks.choice("loss", self.loss, LOSSES)

    def run(self, objective, x, y, targeted=False, *, numbers=None):
        """Attack images, see ``AttackWithResult.run``; returns a SquareResult.

        Raises:
            ValueError: as Attack, but that callables may leave the graph, and gradients do not matter.
        """
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        count, sign = len(x), np.float32(-1 if targeted else 1)
        numbers = numbered(count, numbers)
        loss, queries = np.full(count, np.inf, "float32"), np.zeros(count, "int32")
        if not count:
            return SquareResult(x, np.zeros(0, bool), queries, loss)
        judge, loop, full = self._functions(objective, x)
        result = SquareResult(x.copy(), _judged(judge, x, y, sign, full)[1], queries, loss)
        for restart in range(self.restarts):
            left = np.flatnonzero(~result.fooled)
            if len(left):
                attempt = self._attempt(judge, loop, x[left], y[left], sign, numbers[left], restart, full)
                result.queries[left] += attempt.queries
                better = attempt.fooled | (attempt.loss < result.loss[left])
                for name in ("images", "fooled", "loss"):
                    getattr(result, name)[left[better]] = getattr(attempt, name)[better]
        return result

    def _functions(self, objective, x):
        """What judges images, the loop of queries, and the full size of batches that these are compiled for; as they
        are, and None, if the objective leaves the graph."""
        if leaves_graph(objective, x):
            return self._judge(objective), self._loop(objective, _repeat, autodiff.compiled), None
        return self.compiled(objective, "_judge"), self.compiled(objective, "_loop"), len(x)

    def _attempt(self, judge, loop, x, y, sign, numbers, restart, full):
        """SquareResult of one start; ``full`` is what ``fewest`` takes."""
        windows, shape, limits = WINDOWS[self.norm], x.shape[1:], self.limits(x)
        start = windows.start(x, generators([self.seed, restart, 0], numbers), self.epsilon, limits)
        loss, fooled = _judged(judge, start, y, sign, full)
        result = SquareResult(start, fooled, np.ones(len(x), "int32"), loss)
        side, left = sides(self.p, shape, self.norm), np.flatnonzero(~fooled)
        fixed = (side, windows.patterns(side), np.float32(self.epsilon), limits)
        for query in range(0, self.queries - 1, _CHUNK):
            if not len(left):
                break
            level = levels(query + np.arange(_CHUNK), self.queries)
            squares = draw([self.seed, restart, 1 + query // _CHUNK], numbers[left], side[level], shape)
            step, until = 0, min(_CHUNK, self.queries - 1 - query)
            while len(left) and step < until:
                rows = fewest(len(left), full)
                repeated = np.arange(len(rows)) >= len(left)  # count as fooled, so that nobody waits for them
                own, span = left[rows], np.int32([step, until, next_fewer(len(left), full)])
                step, *state = map(
                    ops.convert_to_numpy,
                    loop(x[own], y[own], start[own], loss[own], repeated, span, sign, level, *squares.of(rows), *fixed),
                )
                start[left], loss[left], now, queries = (part[: len(left)] for part in state)
                if np.isnan(loss).any():
                    raise ValueError(NOT_FINITE)
                fooled[left], step = now, int(step)
                result.queries[left] += queries
                left, squares = left[~now], squares.of(~now)
        return result

    def _judge(self, objective):
        def judge(images, y, sign):
            """What is lowered ``(b,)``, NaN for scores that are not finite, and whether images fool the objective."""
            if self.loss == "margin":
                scores = objective(images)
                loss = sign * lead(scores, y)
            else:
                loss, scores = objective.loss_and_scores(images, y)
                loss = -sign * loss
            finite = ops.logical_and(ops.all(ops.isfinite(scores), axis=-1), ops.isfinite(loss))
            return ops.where(finite, loss, float("nan")), fools(scores, y, sign)

        return judge

    def _loop(self, objective, repeat=ops.while_loop, wrap=lambda function: function):
        """Queries, up to the last one or until few enough images are left to go on with a smaller batch."""
        judge = self._judge(objective)
        propose, keep = _parts(self.norm, wrap)

        def loop(x, y, images, loss, fooled, span, sign, *drawn):
            drawn = [ops.convert_to_tensor(each) for each in drawn]

            def query(i, images, loss, fooled, queries):
                candidates = propose(i, x, images, *drawn)
                return i + 1, *keep(images, loss, fooled, queries, candidates, *judge(candidates, y, sign))

            def going(i, images, loss, fooled, queries):
                left = ops.sum(ops.cast(ops.logical_not(fooled), "int32"))
                unfinished = ops.logical_and(i < span[1], left > span[2])
                return ops.logical_and(unfinished, ops.logical_not(ops.any(ops.isnan(loss))))

            return repeat(going, query, (span[0], images, loss, fooled, ops.zeros_like(y, dtype="int32")))

        return loop


@functools.lru_cache
def _parts(norm, wrap):
    """What comes before and after the scores of a query: functions of tensors that give candidates, and keep some."""

    def propose(i, x, images, level, corners, turned, signs, side, patterns, epsilon, limits):
        square = Squares(*(ops.take(drawn, i, axis=0) for drawn in (corners, turned, signs)))
        now = ops.take(level, i)
        pattern = ops.take(patterns, now, axis=0)
        return WINDOWS[norm].propose(x, images, ops.take(side, now), pattern, square, epsilon, limits)

    def keep(images, loss, fooled, queries, candidates, losses, fooling):
        left = ops.logical_not(fooled)
        better = ops.logical_and(left, ops.logical_or(fooling, losses < loss))
        changed = ops.logical_or(better, ops.logical_and(left, ops.isnan(losses)))  # which ends the attack
        images = select(better, candidates, images)
        loss, fooled = ops.where(changed, losses, loss), ops.logical_or(fooled, ops.logical_and(left, fooling))
        return images, loss, fooled, queries + ops.cast(left, "int32")

    return wrap(propose), wrap(keep)


def _judged(judge, images, y, sign, full):
    """Losses ``(b,)`` and which images fool the objective, NumPy, or an error for scores that are not finite."""
    rows = fewest(len(images), full)
    loss, fooled = (np.array(ops.convert_to_numpy(each))[: len(images)] for each in judge(images[rows], y[rows], sign))
    if np.isnan(loss).any():
        raise ValueError(NOT_FINITE)
    return loss, fooled


def _repeat(condition, body, state):
    """What ``ops.while_loop`` does, of functions that cannot be compiled."""
    while condition(*state):
        state = body(*state)
    return state
