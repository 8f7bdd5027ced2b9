"""What every model refuses: before it is built, and as its weights."""

import math

import numpy as np

from keras_capsvit import checks
from keras_capsvit.files import FileError


def check_images(input_shape, num_classes, *, smallest=1):
    """Refuse shapes that are not images of at least ``smallest`` pixels each way, and fewer than two classes.

    Returns:
        Tuple of ints ``(H, W, C)``, and the number of classes, an int.
    """
    received, input_shape = input_shape, _ints(input_shape)
    if input_shape is None or len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), positive ints; received {received!r:.60}.")
    checks.memory("An image", input_shape, "Take smaller images.", times=1)
    num_classes = checks.integer("num_classes", num_classes, 2, checks.LARGEST)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"Images of {input_shape[0]}x{input_shape[1]} are too small for this network; the smallest legal size "
            f"is {smallest}x{smallest}."
        )
    return input_shape, num_classes


def check_sizes(name, values, count=None):
    """Refuse what is no sequence of positive ints, ``count`` of them if given; otherwise return it as a tuple."""
    sizes = _ints(values)
    if sizes is None or (count is not None and len(sizes) != count) or max(sizes, default=0) > checks.LARGEST:
        number = "positive ints" if count is None else f"{count} positive ints"
        raise ValueError(f"{name} must be {number}, each up to {checks.LARGEST}; received {values!r:.60}.")
    return sizes


def _ints(values):
    """Values as a tuple of ints; None if they are none, or not positive."""
    if isinstance(values, str | bytes | dict | set) or not hasattr(values, "__len__"):
        return None
    whole = [isinstance(each, int | np.integer) and not isinstance(each, bool) and each > 0 for each in values]
    return tuple(map(int, values)) if all(whole) else None


def check_positive(**arguments):
    """Refuse arguments that are not positive ints, or tuples of them."""
    for name, value in arguments.items():
        for each in value if isinstance(value, tuple) else (value,):
            checks.positive_int(name, each, checks.LARGEST)


def check_rates(**arguments):
    """Refuse arguments that are no numbers in [0, 1), such as rates of dropout."""
    for name, value in arguments.items():
        checks.number(name, value, 0, 1, without=(1,))


def check_weights(name, shape):
    """Refuse weights of a shape whose training does not fit into memory; the message calls them ``name``.

    Training holds four arrays of their size: the weights, their gradient, and the two moments of Adam.
    """
    checks.memory(f"A weight of {name}", shape, "Take fewer classes, channels or units, or smaller images.")


def check_normalization(mean, std, channels):
    """Per-channel ``mean`` and ``std`` as tuples of floats, or both None; refuses others."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std are given together or not at all; received mean={mean}, std={std}.")
    if mean is None:
        return None, None
    mean, std = (
        tuple(np.ravel(checks.numbers(value, name)).tolist()) for name, value in (("mean", mean), ("std", std))
    )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"Expected {channels} values each, one per channel; received mean={mean}, std={std}.")
    if not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"Expected finite means and positive std; received mean={mean}, std={std}.")
    return mean, std


def check_variant(variant, sizes, input_shape):
    """Entry of ``sizes`` and patch size of a variant such as ``"S/16"``; refuses others, and images not of patches."""
    size, _, patch_size = str(variant).partition("/")
    if size not in sizes or not patch_size.isdigit() or int(patch_size) < 1:
        raise ValueError(f"variant must be a size of {tuple(sizes)}, '/' and a patch size; received {variant!r}.")
    patch_size = int(patch_size)
    if any(pixels % patch_size for pixels in input_shape[:2]):
        nearest = tuple(-(-pixels // patch_size) * patch_size for pixels in input_shape[:2])
        raise ValueError(
            f"Patches of {patch_size}x{patch_size} do not tile images of {input_shape[0]}x{input_shape[1]}; the next "
            f"larger legal size is {nearest[0]}x{nearest[1]}. Resize or pad the images, or choose another patch size."
        )
    return sizes[size], patch_size


def choose(defaults, **sizes):
    """The given arguments by name, and those of ``defaults``, in the same order, for which None is given."""
    return {
        name: default if value is None else value
        for (name, value), default in zip(sizes.items(), defaults, strict=True)
    }


def refuse_weights(problems, path, model, expected):
    """Refuse a file of weights that has problems; names the first ten of them and says how many there are."""
    if problems:
        shown = "; ".join(sorted(problems)[:10])
        more = f"; and {len(problems) - 10} more, {len(problems)} in all" if len(problems) > 10 else ""
        raise FileError(f"{path.name} does not fit {model.name}: {shown}{more}. {expected}")
