"""Adversarial patches: small regions whose pixels may become anything (LaVAN, Karmon et al. 2018; thesis chapter 7)."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.borders import fools
from keras_capsvit.attacks.examine import judged
from keras_capsvit.attacks.patch_result import PatchResult, pixel_limits
from keras_capsvit.attacks.patch_transforms import OverTransforms, PatchTransforms
from keras_capsvit.batches import fewest
from keras_capsvit.patches import PatchGrid, apply_patch, check_positions, cut_patches, random_positions


@dataclasses.dataclass(frozen=True)
class PatchAttack(OverTransforms):
    """Steps along the sign of the gradient on the pixels of patches only, from random noise (LaVAN; thesis 7.3).

    An image that fools the objective leaves the batch at once, which the forward pass of the next gradient shows: the
    cost is one gradient per step of the images that are not fooled yet, and a forward pass for those left at the end.

    Args:
        patch_size: int, or pair of ints ``(h, w)``.
        positions: where the patches lie: ints ``(n, 2)``, pixels (top, left), on every image; ``(b, n, 2)``, on each;
            a PatchGrid, for ``num_patches`` of it drawn for each image; None for anywhere, also drawn.
        num_patches: int >= 1, where they are drawn.
        epsilon: float >= 0, largest change of a pixel; None for pixels anywhere within the bounds.
        step_size: float >= 0, change of a pixel in a step, in units of the pixels; None for 2/255 of their range.
        steps: int >= 1, at most.
        early_stop: bool, leave off when fooled; else every image takes all steps, which makes patches stronger.
        universal: bool, one patch (or ``num_patches``) for all images, which move at random from step to step: to
            other positions, unless they are given. Each step is on ``batch_size`` images, and none leaves.
        batch_size: int >= 1, images of a step of a universal patch.
        transforms: PatchTransforms, under which patches are to work: the gradient is averaged over draws, and an image
            leaves when all draws of a step fool. None for patches as they are. The result shows them as they are.
        bounds: pair, the range of pixels, see Attack.
        seed: int, of positions and of the noise, which is the same for all images; positions that are drawn depend on
            the seed and the number of the image.

    Call: see Attack. ``run`` returns more.

    Raises:
        ValueError: for settings out of range, and ``epsilon`` with a universal patch or with transforms.

    Example::

        attack = PatchAttack(16, positions=PatchGrid((224, 224), 16), steps=1000)
        result = attack.run(model, x, y)
        print(result.fooled.mean(), result.iterations[result.fooled].mean())
    """

    patch_size: int | tuple
    _: dataclasses.KW_ONLY
    positions: tuple | PatchGrid | None = None
    num_patches: int = 1
    epsilon: float | None = None
    step_size: float | None = None
    steps: int = 10_000
    early_stop: bool = True
    universal: bool = False
    batch_size: int = 64
    transforms: PatchTransforms | None = None
    bounds: tuple = (0.0, 1.0)
    seed: int = 0
    norm: str = dataclasses.field(default="linf", init=False)

    def __post_init__(self):
        self.check_settings(
            at_least_0=("epsilon", "step_size"),
            counts=("num_patches", "steps", "batch_size"),
        )
        object.__setattr__(self, "patch_size", checks.pair(self.patch_size, "patch_size"))
        if not isinstance(self.positions, PatchGrid | None):
            object.__setattr__(self, "positions", _tuples(checks.numbers(self.positions, "positions").tolist()))
        if self.universal and self.epsilon is not None:
            raise ValueError("A universal patch has no image to stay close to; leave epsilon out.")
        if not isinstance(self.transforms, PatchTransforms | None):
            raise ValueError(f"transforms must be PatchTransforms or None; received {self.transforms!r:.60}.")
        if self.transforms is not None and self.epsilon is not None:
            raise ValueError("A patch that moves has no pixels to stay close to; leave epsilon or transforms out.")

    def run(self, objective, x, y, targeted=False, *, numbers=None):
        """Attack images, see ``AttackWithResult.run``; returns a PatchResult.

        Raises:
            ValueError: as Attack, and for positions that do not fit the images.
        """
        objective, x, y = self.prepare(objective, x, y, targeted, numbers)
        positions = self._positions(x.shape, self.seed, numbers)
        sign = np.float32(-1 if targeted else 1)
        noise = np.random.default_rng(self.seed).uniform(size=(positions.shape[1], *self.patch_size, x.shape[-1]))
        low, high = pixel_limits(x, positions, self.patch_size, self.limits(x), self.epsilon)
        start = np.clip(low + apply_patch(np.zeros_like(x), noise, positions) * (high - low), low, high)
        if self.universal:
            patches = self._common(objective, x, y, noise, sign)
            images, iterations = apply_patch(x, patches, positions), np.full(len(x), self.steps)
            fooled = self._fools(objective, images, y, sign)
        elif self.transforms is not None:
            patches, step = cut_patches(start, positions, self.patch_size), self._step(x)
            patches, iterations = self.each_expected(objective, x, y, patches, positions, step, sign, numbers)
            images = apply_patch(x, patches, positions)
            fooled = self._fools(objective, images, y, sign)
        else:
            images, fooled, iterations = self._each(objective, start, low, high, y, sign)
            patches = cut_patches(images, positions, self.patch_size)
        self.check_result(objective, start, images, y, targeted)
        return PatchResult(images, patches, positions, fooled, iterations)

    def structure(self):
        # What the loops need of the settings are arguments, so one trace serves all positions, sizes and step sizes;
        # but universal patches are put on one after the other, so their number is part of what is compiled.
        count = np.atleast_2d(self.positions).shape[-2] if isinstance(self.positions, tuple) else self.num_patches
        if self.transforms is not None:
            return self.early_stop, count, self.patch_size, self.transforms.draws
        return self.early_stop, count if self.universal else None

    def _step(self, x):
        """Change of a pixel in a step, a number, or ``(C,)`` where channels have their own bounds."""
        if self.step_size is not None:
            return np.float32(self.step_size)
        return np.float32(2 / 255) * (self.limits(x)[1] - self.limits(x)[0])

    def _positions(self, shape, seed, numbers=None):
        which = shape[0] if numbers is None else numbers  # positions of an image depend on its number only
        if isinstance(self.positions, PatchGrid):
            positions = self.positions.positions[self.positions.draw(which, self.num_patches, seed=seed)]
        elif self.positions is None:
            positions = random_positions(shape[1:], self.patch_size, which, self.num_patches, seed=seed)
        else:
            positions = self.positions
        return check_positions(positions, self.patch_size, shape)

    def _each(self, objective, start, low, high, y, sign):
        """Images ``(b, H, W, C)`` after the steps, which are fooled, and steps taken, of a patch for each."""
        images, fooled, iterations = start.copy(), np.zeros(len(y), bool), np.full(len(y), self.steps)
        loop, step, left, steps_done = self.compiled(objective, "_loop"), self._step(start), np.arange(len(y)), 0
        state = [ops.convert_to_tensor(tensor) for tensor in (start, low, high, y)]
        while len(left) and steps_done < self.steps:
            steps_done, state[0], out = loop(*state, np.int32(steps_done), np.int32(self.steps), step, sign)
            steps_done, out = int(steps_done), ops.convert_to_numpy(out)[: len(left)]
            if out.any():
                gone, stay = np.flatnonzero(out), np.flatnonzero(~out)
                images[left[gone]] = ops.convert_to_numpy(ops.take(state[0], gone, axis=0))
                fooled[left[gone]], iterations[left[gone]] = True, steps_done - 1
                left = left[stay]
                if len(left):
                    state = [ops.take(tensor, stay[fewest(len(left), len(y))], axis=0) for tensor in state]
        if len(left):
            images[left] = ops.convert_to_numpy(state[0])[: len(left)]
            fooled[left] = judged(objective, state[0], state[3], sign)[: len(left)]
        return images, fooled, iterations

    def _loop(self, objective):
        """Steps, up to the one at which somebody turns out to be fooled, who does not take it."""
        gradient = autodiff.gradient(objective.loss_and_scores, has_aux=True)

        def loop(x, low, high, y, steps_done, steps, step_size, sign):
            def step(i, x, fooled):
                (_, scores), slope = gradient(x, y)
                fooled = fools(scores, y, sign) if self.early_stop else fooled
                # By a step of 0, because choosing between images costs more than all of the rest.
                size = ops.where(fooled, 0.0, sign)[:, None, None, None] * step_size
                return i + 1, ops.clip(x + size * ops.sign(slope), low, high), fooled

            def going(i, x, fooled):
                return ops.logical_and(i < steps, ops.logical_not(ops.any(fooled)))

            return ops.while_loop(going, step, (steps_done, x, ops.zeros_like(y, dtype="bool")))

        return loop

    def _fools(self, objective, x, y, sign):
        fooled = np.zeros(len(x), bool)
        for start in range(0, len(x), self.batch_size):
            few = slice(start, start + self.batch_size)
            fooled[few] = judged(objective, x[few], y[few], sign)
        return fooled

    def _common(self, objective, x, y, noise, sign):
        """Patches ``(n, h, w, C)`` for all images."""
        low, high = self.limits(x)
        pixels = (low + noise * (high - low)).astype("float32")
        if self.transforms is None:
            # Pixels of all patches in a row, and which of them every pixel of an image shows: so the shape of patches
            # is no shape of the compiled function.
            step, pixels = self.compiled(objective, "_common_step"), pixels.reshape(-1, x.shape[-1])
            own = np.arange(len(pixels), dtype="int32").reshape(*noise.shape[:-1], 1)
        else:
            step, pixels = self.compiled(objective, "_common_expected_step"), pixels[None]
        random = np.random.default_rng([self.seed, 1])
        fixed = self._positions(x.shape, 0) if isinstance(self.positions, tuple) else None
        for number in range(self.steps if len(x) else 0):
            few = random.permutation(len(x))[: self.batch_size]
            places = fixed[few] if fixed is not None else self._positions(x[few].shape, (self.seed, number + 1))
            if self.transforms is None:
                shown = apply_patch(np.full((*x[few].shape[:3], 1), -1, "int32"), own, places)[..., 0]
            else:
                shown = self.places([3, number], range(len(few)), places, x.shape, 1)[:, 0]
            pixels = step(pixels, x[few], y[few], shown, self._step(x) * sign, low, high)
        return ops.convert_to_numpy(pixels).reshape(noise.shape)

    def _common_step(self, objective):
        def loss(pixels, x, y, shown):
            pasted = ops.take(pixels, ops.maximum(shown, 0), axis=0)
            return objective.loss(ops.where(shown[..., None] < 0, x, pasted), y)

        gradient = autodiff.gradient(loss)

        def step(pixels, x, y, shown, size, low, high):
            return ops.clip(pixels + size * ops.sign(gradient(pixels, x, y, shown)[1]), low, high)

        return step


def _tuples(positions):
    return tuple(map(_tuples, positions)) if isinstance(positions, list) else positions
