"""Patches that work wherever a camera sees them: expectation over transformations (Athalye et al. 2018)."""

import dataclasses

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks
from keras_capsvit.attacks.base import AttackWithResult
from keras_capsvit.attacks.borders import fools
from keras_capsvit.batches import generators, numbered, padded
from keras_capsvit.patches import apply_patch, check_positions

_AHEAD = 16  # steps that transformations are drawn for at a time, after which images that are fooled leave


@dataclasses.dataclass(frozen=True)
class PatchTransforms:
    """How patches are seen: moved, turned and scaled about their centre (bilinear), brighter or darker; uniform draws.

    Args:
        draws: int >= 1, of each image in each step, over which the gradient is averaged (EOT).
        translation: int >= 0, largest shift along each axis, either way, in pixels, as far as the patch stays within
            the image; None for any position.
        rotation: float in [0, 180], largest angle in degrees, either way.
        scale: pair of floats ``0 < low <= high``, factors of both sides.
        brightness: float in [0, 1], largest value that is added or subtracted, a share of the range of pixels, within
            which they are kept.

    Raises:
        ValueError: for settings out of range.

    Example::

        seen = PatchTransforms(translation=8, rotation=20, scale=(0.8, 1.2), brightness=0.1)
        result = PatchAttack(32, transforms=seen, steps=500).run(model, x, y)
        views = seen.apply(x, result.patches, result.positions, seed=1)  # (b, draws, H, W, C)
    """

    _: dataclasses.KW_ONLY
    draws: int = 8
    translation: int | None = 0
    rotation: float = 0.0
    scale: tuple = (1.0, 1.0)
    brightness: float = 0.0

    def __post_init__(self):
        checks.positive_int("draws", self.draws)
        if self.translation is not None:
            checks.integer("translation", self.translation, 0, checks.LARGEST)
        checks.number("rotation", self.rotation, 0, 180)
        checks.number("brightness", self.brightness, 0, 1)
        try:
            low, high = (float(checks.number("scale", each, 0, without=(0,))) for each in self.scale)
        except (TypeError, ValueError):
            low, high = 1.0, 0.0
        if low > high:
            raise ValueError(f"scale must be a pair of factors, 0 < low <= high; received {self.scale!r:.60}.")
        object.__setattr__(self, "scale", (low, high))

    def draw(self, seed, numbers, positions, patch_size, image_shape, steps=1):
        """Where and how patches are seen, float32 ``(b, steps, draws, n, 5)``, see ``seen``.

        Args:
            seed: int, or sequence of ints.
            numbers: ints ``(b,)``, images; what is drawn for one depends on the seed and its number alone.
            positions: ints ``(b, n, 2)``, which shifts are from.
            patch_size: ints ``(h, w)``.
            image_shape: ints ``(H, W)``.
            steps: int.
        """
        shape = (steps, self.draws, positions.shape[1], 5)
        drawn = np.reshape([random.uniform(size=shape) for random in generators(seed, numbers)], (-1, *shape))
        positions, room = positions[:, None, None], np.subtract(image_shape, patch_size)
        reach = np.inf if self.translation is None else self.translation
        lowest, highest = np.maximum(-positions, -reach), np.minimum(room - positions, reach)
        shifts = lowest + np.floor(drawn[..., :2] * (highest - lowest + 1))
        centre = positions + shifts + (np.array(patch_size) - 1) / 2
        angle = np.deg2rad(self.rotation) * (2 * drawn[..., 2] - 1)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * drawn[..., 3]
        brightness = self.brightness * (2 * drawn[..., 4] - 1)
        turned = np.stack([np.cos(angle) / factor, np.sin(angle) / factor, brightness], axis=-1)
        return np.concatenate([centre, turned], axis=-1).astype("float32")

    def apply(self, images, patches, positions, *, bounds=(0.0, 1.0), seed=0, numbers=None):
        """Images with patches as they are seen in each of the draws.

        Args:
            images: ``(b, H, W, C)``.
            patches: see ``patches.apply_patch``.
            positions: ints ``(2,)``, ``(n, 2)`` or ``(b, n, 2)``, which shifts are from.
            bounds: pair, the range of pixels, see Attack.
            seed: int.
            numbers: ints ``(b,)``, see Attack.

        Returns:
            float32 array ``(b, draws, H, W, C)``.

        Raises:
            ValueError: for pixels outside the bounds, and patches and positions that do not fit the images.
        """
        images = checks.images(images, bounds=checks.bounds(bounds))
        checks.integer("seed", seed)
        if numbers is None:
            numbers = np.arange(len(images))
        numbers = checks.integers("numbers", numbers, (len(images),), f"({len(images)},), one for each image")
        apply_patch(images, patches, positions)  # which says what does not fit
        size = np.shape(patches)[-3:-1]
        positions = check_positions(positions, size, images.shape)
        patches = np.broadcast_to(patches, (*positions.shape[:2], *size, images.shape[-1])).astype("float32")
        places = self.draw(seed, numbers, positions, size, images.shape[1:3])[:, 0]
        result = seen(images, patches, places, *checks.limits(bounds, images.shape[-1]))
        return ops.convert_to_numpy(result).reshape(len(images), self.draws, *images.shape[1:])


def seen(x, patches, places, low, high):
    """Images with patches on them as they are seen; of these patches the gradient is exact.

    Args:
        x: tensor ``(b, H, W, C)``.
        patches: tensor ``(b, n, h, w, C)``, or ``(1, n, h, w, C)``, the same on all images.
        places: tensor ``(b, draws, n, 5)``: row and column of the centre; cosine and sine of the angle over the factor
            of the sides; and what is added to the pixels, a share of their range.
        low: lowest pixel, a number or ``(C,)``; ``high``, the highest.

    Returns:
        Tensor ``(b draws, H, W, C)``.
    """
    draws, count = places.shape[1:3]
    height, width, channels = patches.shape[2:]
    images, places = ops.repeat(x, draws, axis=0), ops.reshape(places, (-1, count, 5))
    own = 0 if patches.shape[0] == 1 else ops.repeat(ops.arange(ops.shape(x)[0], dtype="int32"), draws)[:, None, None]
    rows = ops.reshape(ops.arange(ops.shape(x)[1], dtype="float32"), (1, -1, 1))
    columns = ops.reshape(ops.arange(ops.shape(x)[2], dtype="float32"), (1, 1, -1))
    for k in range(count):
        top, left, cos, sin, brightness = (places[:, k, part, None, None] for part in range(5))
        v = (height - 1) / 2 + cos * (rows - top) + sin * (columns - left)
        u = (width - 1) / 2 - sin * (rows - top) + cos * (columns - left)
        inside = ops.logical_and(_within(v, height), _within(u, width))
        pixels = ops.reshape(patches[:, k], (-1, channels))
        values = 0.0
        for row, row_share in _neighbours(v, height):
            for column, column_share in _neighbours(u, width):
                pixel = ops.take(pixels, (own * height + row) * width + column, axis=0)
                values = values + (row_share * column_share)[..., None] * pixel
        values = ops.clip(values + brightness[..., None] * (high - low), low, high)
        images = ops.where(inside[..., None], values, images)
    return images


def _within(place, size):
    return ops.logical_and(place >= -0.5, place < size - 0.5)


def _neighbours(place, size):
    """The pixels before and behind a place, and their shares of its value."""
    place = ops.clip(place, 0.0, size - 1.0)
    before = ops.floor(place)
    index = ops.cast(before, "int32")
    return (index, 1 - (place - before)), (ops.minimum(index + 1, size - 1), place - before)


class OverTransforms(AttackWithResult):
    """Base of PatchAttack: steps along the gradient averaged over ``transforms``, those of the image in each step."""

    def each_expected(self, objective, x, y, patches, positions, step, sign, numbers):
        """Patches ``(b, n, h, w, C)`` after the steps, of each image; and ints ``(b,)``, steps taken."""
        loop, left, steps_done = self.compiled(objective, "_expected_loop"), np.arange(len(x)), 0
        patches, iterations = patches.copy(), np.full(len(x), self.steps)
        numbers = numbered(len(x), numbers)
        while len(left) and steps_done < self.steps:
            rows, count = left[padded(len(left), len(x))], min(_AHEAD, self.steps - steps_done)
            places = self.places([2, steps_done], numbers[rows], positions[rows], x.shape, _AHEAD)
            settings = np.int32(count), step, sign, *self.limits(x)
            moved, fooled, iteration = map(
                ops.convert_to_numpy, loop(x[rows], y[rows], patches[rows], places, *settings)
            )
            patches[left], fooled = moved[: len(left)], fooled[: len(left)]
            iterations[left[fooled]] = steps_done + iteration[: len(left)][fooled]
            left, steps_done = left[~fooled], steps_done + count
        return patches, iterations

    def places(self, seed, numbers, positions, shape, steps):
        """What ``PatchTransforms.draw`` draws for images of a shape."""
        return self.transforms.draw([self.seed, *seed], numbers, positions, self.patch_size, shape[1:3], steps)

    def _expected_loop(self, objective):
        """Steps of each image, up to the one in which all draws fool."""

        def loop(x, y, patches, places, steps, step_size, sign, low, high):
            labels = ops.repeat(y, self.transforms.draws)

            def loss(patches, places):
                losses, scores = objective.loss_and_scores(seen(x, patches, places, low, high), labels)
                return losses / self.transforms.draws, scores

            gradient = autodiff.gradient(loss, has_aux=True)

            def step(i, patches, fooled, iteration):
                (_, scores), slope = gradient(patches, ops.take(places, i, axis=1))
                iteration = ops.where(fooled, iteration, i)
                if self.early_stop:
                    draws = ops.reshape(fools(scores, labels, sign), (-1, self.transforms.draws))
                    fooled = ops.logical_or(fooled, ops.all(draws, axis=1))
                size = ops.where(fooled, 0.0, sign)[:, None, None, None, None] * step_size
                return i + 1, ops.clip(patches + size * ops.sign(slope), low, high), fooled, iteration

            def going(i, patches, fooled, iteration):
                return ops.logical_and(i < steps, ops.logical_not(ops.all(fooled)))

            state = (0 * steps, patches, ops.zeros_like(y, dtype="bool"), ops.zeros_like(y, dtype="int32"))
            return ops.while_loop(going, step, state)[1:]

        return loop

    def _common_expected_step(self, objective):
        """A step of patches ``(1, n, h, w, C)`` for all images."""

        def loss(patches, x, y, places, low, high):
            labels = ops.repeat(y, self.transforms.draws)
            return objective.loss(seen(x, patches, places, low, high), labels)

        gradient = autodiff.gradient(loss)

        def step(patches, x, y, places, size, low, high):
            slope = gradient(patches, x, y, places, low, high)[1]
            return ops.clip(patches + size * ops.sign(slope), low, high)

        return step
