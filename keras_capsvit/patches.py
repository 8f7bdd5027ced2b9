"""Where patches lie on images, and images with patches on them; a position is the pixel ``(top, left)`` of a patch."""

import dataclasses
import math

import numpy as np

from keras_capsvit import checks

_TRIES = 1000  # at positions that do not overlap


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """The patches that an image is cut into, in rows from the top left; those that would cross the border are left out.

    Args:
        image_shape: ints ``(H, W)`` or ``(H, W, C)``.
        patch_size: int, or pair of ints ``(h, w)``.
        offset: pair of ints from 0, where the first patch begins; ``(0, 0)`` is aligned with the patches of a vision
            transformer of that patch size.

    Raises:
        ValueError: for sizes that are none, and patches of which none fits.

    Example::

        grid = PatchGrid((224, 224), 16)
        attacked = apply_patch(images, np.load("patch.npy"), grid.positions[[105]])
    """

    image_shape: tuple
    patch_size: int | tuple
    _: dataclasses.KW_ONLY
    offset: tuple = (0, 0)

    def __post_init__(self):
        object.__setattr__(self, "image_shape", _size(self.image_shape))
        object.__setattr__(self, "patch_size", checks.pair(self.patch_size, "patch_size"))
        object.__setattr__(self, "offset", checks.pair(self.offset, "offset", lowest=0))
        if not len(self):
            raise ValueError(
                f"A patch must fit into the image; received patches of {self.patch_size} from {self.offset} in images "
                f"of {self.image_shape}."
            )

    @property
    def rows(self):
        """Patches from top to bottom, int."""
        return self._count(0)

    @property
    def columns(self):
        """Patches from left to right, int."""
        return self._count(1)

    def __len__(self):
        return self.rows * self.columns

    @property
    def positions(self):
        """Positions of all patches, row by row, int array ``(rows columns, 2)``."""
        cells = np.stack(np.divmod(np.arange(len(self)), self.columns), axis=-1)
        return cells * self.patch_size + np.array(self.offset)

    @property
    def boxes(self):
        """Boxes ``(top, left, bottom, right)`` of all patches, the ends excluded, int array ``(rows columns, 4)``."""
        return boxes(self.positions, self.patch_size)

    def draw(self, batch, num_patches=1, *, seed=0):
        """Different patches for each image, drawn at random; those of image ``k`` depend on the seed and ``k`` only.

        Args:
            batch: int, number of images; or ints ``(b,)``, which images.
            num_patches: int from 0 to ``rows columns``.
            seed: int from 0, or sequence of such.

        Returns:
            Indices into ``positions``, int array ``(batch, num_patches)``.

        Raises:
            ValueError: for more patches than there are.
        """
        checks.integer("num_patches", num_patches, 0, len(self))
        generators = _generators(seed, batch)
        drawn = [random.permutation(len(self))[:num_patches] for random in generators]
        return np.reshape(np.array(drawn, int), (len(generators), num_patches))

    def _count(self, axis):
        return max(0, (self.image_shape[axis] - self.offset[axis]) // self.patch_size[axis])


def boxes(positions, patch_size) -> np.ndarray:
    """Boxes of patches, such as ``evaluate.patch_share`` and ``pointing_game`` take.

    Args:
        positions: ints ``(..., 2)``.
        patch_size: int, or pair of ints ``(h, w)``.

    Returns:
        int array ``(..., 4)``: top, left, bottom, right, the last two excluded.
    """
    positions = checks.numbers(positions, "positions")
    positions = checks.integers("positions", positions, (*positions.shape[:-1], 2), "(..., 2)", low=None)
    return np.concatenate([positions, positions + checks.pair(patch_size, "patch_size")], axis=-1)


def random_positions(image_shape, patch_size, batch, num_patches=1, *, seed=0):
    """Positions anywhere on each image, not aligned, of patches that do not overlap.

    Args:
        image_shape: ints ``(H, W)`` or ``(H, W, C)``.
        patch_size: int, or pair of ints ``(h, w)``.
        batch: int, number of images; or ints ``(b,)``, which images.
        num_patches: int from 0.
        seed: int from 0, or sequence of such; the positions of image ``k`` depend on it and ``k`` only.

    Returns:
        int array ``(batch, num_patches, 2)``.

    Raises:
        ValueError: if the patches do not fit, or after 1,000 tries always overlapped.
    """
    grid, generators = PatchGrid(image_shape, patch_size), _generators(seed, batch)
    room = np.array(grid.image_shape) - grid.patch_size + 1
    # More do not fit side by side, so no number of tries would find places.
    checks.integer("num_patches", num_patches, 0, math.prod(grid.image_shape) // math.prod(grid.patch_size))
    positions = np.zeros((len(generators), num_patches, 2), int)
    for k, random in enumerate(generators):
        for _ in range(_TRIES):
            positions[k] = random.integers(room, size=(num_patches, 2))
            apart = np.any(np.abs(positions[k][:, None] - positions[k]) >= grid.patch_size, axis=-1)
            if np.all(apart | np.eye(num_patches, dtype=bool)):
                break
        else:
            raise ValueError(
                f"{num_patches} patches of {grid.patch_size} on images of {grid.image_shape} overlapped {_TRIES} times "
                "in a row; take fewer or smaller ones, or positions of a PatchGrid."
            )
    return positions


def apply_patch(images, patch, positions):
    """Images with patches in place of their pixels; where patches overlap, the last is seen.

    Args:
        images: ``(b, H, W, C)``.
        patch: one patch ``(h, w, C)`` for all positions; ``(n, h, w, C)``, one per position; or ``(b, n, h, w, C)``,
            those of each image.
        positions: ints, one position ``(2,)``; ``(n, 2)``, those of every image; or ``(b, n, 2)``, those of each image.

    Returns:
        Array of the shape and dtype of ``images``, which stay as they are.

    Raises:
        ValueError: for shapes that do not fit, patches that cross the border, and of images of integers patches whose
            values these cannot hold.
    """
    images, patch = np.array(checks.numbers(images, "images")), checks.numbers(patch, "a patch")
    if images.ndim != 4:
        raise ValueError(f"Images must have shape (batch, height, width, channels); received {images.shape}.")
    if patch.ndim not in (3, 4, 5) or patch.shape[-1] != images.shape[-1]:
        raise ValueError(
            f"A patch must have shape (h, w, {images.shape[-1]}), (n, h, w, {images.shape[-1]}) or (batch, n, h, w, "
            f"{images.shape[-1]}); received {patch.shape}."
        )
    if images.dtype.kind in "iu" and not np.array_equal(patch.astype(images.dtype), patch):
        raise ValueError(
            f"A patch on images of {images.dtype} must have values of that type; received {patch.dtype}, from "
            f"{patch.min()} to {patch.max()}. Scale or cast it, or take images of floats."
        )
    size = patch.shape[-3:-1]
    positions = check_positions(positions, size, images.shape)
    shape = (*positions.shape[:2], *patch.shape[-3:])
    try:
        patches = np.broadcast_to(patch, shape)
    except ValueError:
        raise ValueError(
            f"Expected a patch for each of {shape[1]} positions, and if each image has its own, for {shape[0]} "
            f"images; received patches {patch.shape}."
        ) from None
    for k in range(shape[1]):
        images[_pixels(positions[:, k], size)] = patches[:, k]
    return images


def cut_patches(images, positions, patch_size):
    """What lies at given positions of images.

    Args:
        images: ``(b, H, W, C)``.
        positions: see ``apply_patch``.
        patch_size: int, or pair of ints ``(h, w)``.

    Returns:
        Patches ``(b, n, h, w, C)`` as ``apply_patch`` takes them.

    Raises:
        ValueError: for patches that cross the border.
    """
    images, size = checks.numbers(images, "images"), checks.pair(patch_size, "patch_size")
    if images.ndim != 4:
        raise ValueError(f"Images must have shape (batch, height, width, channels); received {images.shape}.")
    positions = check_positions(positions, size, images.shape)
    patches = np.empty((*positions.shape[:2], *size, images.shape[-1]), images.dtype)
    for k in range(positions.shape[1]):
        patches[:, k] = images[_pixels(positions[:, k], size)]
    return patches


def check_positions(positions, patch_size, shape):
    """Positions of patches on images ``shape = (b, H, W, C)``, as an int array ``(b, n, 2)``.

    Raises:
        ValueError: for other shapes, numbers that are no integers, and patches that cross the border.
    """
    array = checks.numbers(positions, "positions")
    if not np.issubdtype(array.dtype, np.integer) or array.ndim not in (1, 2, 3) or array.shape[-1] != 2:
        raise ValueError(
            f"Positions must be integers of shape (2,), (n, 2) or ({shape[0]}, n, 2), the pixel (top, left) of each "
            f"patch; received {array.dtype} of shape {array.shape}."
        )
    array = array[None] if array.ndim == 1 else array
    if array.ndim == 3 and len(array) != shape[0]:
        raise ValueError(f"Expected positions for {shape[0]} images; received {len(array)}.")
    room = np.array(shape[1:3]) - patch_size
    outside = np.any((array < 0) | (array > room), axis=-1)
    if outside.any():
        raise ValueError(
            f"Patches of {tuple(patch_size)} must lie within images of {tuple(shape[1:3])}; received the position "
            f"{tuple(array[outside][0].tolist())}."
        )
    return np.broadcast_to(array, (shape[0], *array.shape[-2:]))


def _pixels(positions, size):
    """Indices of the pixels of one patch per image, at positions ``(b, 2)``."""
    rows = positions[:, 0, None] + np.arange(size[0])
    columns = positions[:, 1, None] + np.arange(size[1])
    return np.arange(len(positions))[:, None, None], rows[:, :, None], columns[:, None, :]


def _size(shape):
    """``(H, W)`` of the shape of an image, with channels or without."""
    if not isinstance(shape, tuple | list | np.ndarray) or len(shape) not in (2, 3):
        raise ValueError(f"image_shape must be (H, W) or (H, W, C), integers from 1; received {shape!r}.")
    return checks.pair(tuple(shape)[:2], "image_shape")


def _generators(seed, batch):
    """For each of a number of images, or of those named, a generator that depends on the seed and the image alone."""
    several = isinstance(seed, tuple | list | np.ndarray) and len(seed) > 0
    seed = [checks.integer("seed", each) for each in (seed if several else [seed])]
    if np.ndim(batch) == 0:
        batch = range(checks.integer("batch", batch))
    else:
        batch = checks.integers("batch", batch, (None,), "(b,)").tolist()
    return [np.random.default_rng([*seed, k]) for k in batch]
