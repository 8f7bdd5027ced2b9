"""The 15 corruptions of ImageNet-C (Hendrycks and Dietterich 2019), on images or some of their patches."""

import contextlib
import importlib

import numpy as np

from keras_capsvit import checks
from keras_capsvit.patches import PatchGrid, apply_patch, cut_patches

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)

SMALLEST = 32  # side of an image that the library takes
# These draw from generators of Numba and scikit-image, which have seeds of their own.
_OWN_SEED = ("impulse_noise", "glass_blur")


def corrupt(images, name, severity=5, *, seed=0, keys=None):
    """Corrupt images as ImageNet-C was made, by the package imagecorruptions-imaug.

    Its strengths are those for ImageNet, of images of 224x224 pixels; its results have 8 bits. Images with a side below
    32 pixels are continued by their reflection, and cropped after. What happens to image ``k`` depends on ``seed`` and
    ``keys[k]`` only.

    Args:
        images: ``(b, H, W, C)``, float in [0, 1], with 1 or 3 channels.
        name: str, one of ``CORRUPTIONS``.
        severity: int from 1 to 5.
        seed: int.
        keys: integers ``(b,)``, one per image; None for ``0 ... b - 1``. Pass running numbers for batches of a stream.

    Returns:
        float32 array ``(b, H, W, C)`` in [0, 1].

    Raises:
        ValueError: for an unknown name or severity, images of another shape or range, and keys that are not one each.
        ImportError: without imagecorruptions-imaug.
    """
    images = _checked(images)
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise ValueError(f"Unknown corruption {name!r}; expected one of {', '.join(CORRUPTIONS)}.")
    checks.integer("severity", severity, 1, 5)
    checks.integer("seed", seed)
    axes = f"({len(images)},), one per image"
    keys = np.arange(len(images)) if keys is None else checks.integers("keys", keys, (len(images),), axes)
    library = _library()
    height, width, channels = images.shape[1:]
    below, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
    pixels = np.rint(255 * np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), "symmetric")).astype("uint8")
    corrupted = np.empty_like(images)
    for k, (image, key) in enumerate(zip(pixels, keys, strict=True)):
        number = int(np.random.SeedSequence([seed, key]).generate_state(1)[0])
        own = {"seed": number} if name in _OWN_SEED else {}
        with _global_seed(number):
            result = library.corrupt(image, int(severity), name, **own)
        corrupted[k] = (
            result[:height, :width].mean(axis=-1, keepdims=True) if channels == 1 else result[:height, :width]
        )
    return corrupted / 255


def corrupt_patches(images, grid, indices, name, severity=5, *, seed=0, keys=None):
    """Corrupt some patches of images (thesis 7.4.1): the corrupted image is seen there, and the clean one elsewhere.

    Args:
        images: as for ``corrupt``.
        grid: PatchGrid of the images.
        indices: ints ``(n,)``, patches of the grid for all images, or ``(b, n)``, such as ``grid.draw(b, n)``.
        name: str, one of ``CORRUPTIONS``.
        severity: int from 1 to 5.
        seed: int.
        keys: as for ``corrupt``.

    Returns:
        float32 array ``(b, H, W, C)`` in [0, 1].

    Raises:
        ValueError: for indices that are none, a grid of other images, and as ``corrupt``.
        ImportError: without imagecorruptions-imaug.
    """
    images, indices = _checked(images), checks.numbers(indices, "indices")
    if not isinstance(grid, PatchGrid):
        raise ValueError(f"Expected a PatchGrid of the images as grid; received {type(grid).__name__}.")
    if grid.image_shape != images.shape[1:3]:
        raise ValueError(f"The grid is one of images of {grid.image_shape}; received images of {images.shape[1:3]}.")
    whole = np.issubdtype(indices.dtype, np.integer)
    if not whole or not indices.ndim or indices.shape[:-1] not in ((), images.shape[:1]):
        raise ValueError(
            f"indices must be integers of shape (n,) or ({len(images)}, n); received {indices.dtype} of "
            f"{indices.shape}."
        )
    if indices.size and not (indices.min() >= 0 and indices.max() < len(grid)):
        raise ValueError(f"indices must lie in [0, {len(grid)}); received {indices.min()} to {indices.max()}.")
    positions = grid.positions[indices]
    corrupted = corrupt(images, name, severity, seed=seed, keys=keys)
    return apply_patch(images, cut_patches(corrupted, positions, grid.patch_size), positions)


def _checked(images):
    images = checks.numbers(images, "images")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            "Images must be float in [0, 1], of shape (n, height, width, channels) with 1 or 3 channels; "
            f"received {images.dtype} of shape {images.shape}."
        )
    if images.size and not (images.min() >= 0 and images.max() <= 1):  # not true of NaN either
        raise ValueError(f"Pixels must lie in [0, 1]; received values in [{images.min()}, {images.max()}].")
    return images.astype("float32")


def _library():
    try:
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        raise ImportError(
            'Corruptions need the package imagecorruptions-imaug: pip install "keras-capsvit[corruptions]".'
        ) from error


@contextlib.contextmanager
def _global_seed(seed):
    """NumPy's global generator, which the library draws from, as if new; afterwards as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
