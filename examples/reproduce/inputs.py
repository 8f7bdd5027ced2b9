"""What rows read: data sets, or in the smoke profile digits in their shape; and files that the user names."""

import functools
import hashlib
import importlib.util
import pathlib

import numpy as np
import tensorflow as tf

from keras_capsvit import data

# What sets that are made while they are read are made of; AffNIST is made of MNIST, too, but comes as files.
BASES = {
    "affine_mnist": "mnist",
    "expanded_mnist": "mnist",
    "multi_mnist": "mnist",
    "affnist": "mnist",
    "affine_cifar10": "cifar10",
}
MADE_SETS = {
    "affine_mnist": data.affine_sets.affine_mnist,
    "expanded_mnist": data.affine_sets.expanded_mnist,
    "multi_mnist": data.multidigit.multi_mnist,
    "affnist": data.affine_sets.affine_mnist,
    "affine_cifar10": data.affine_sets.affine_cifar10,
}
UNSLICED = ("digits", "affnist")  # TFDS does not read them
# Modules that rows need beside the package's own requirements, and what to install.
PACKAGES = {"imagecorruptions": "imagecorruptions-imaug", "keras_hub": "keras-hub", "jax": "jax", "foolbox": "foolbox"}
DIGITS = 300  # at most, in the smoke profile
TINT = (1.0, 0.8, 0.6)  # of digits as colour pictures


class Missing(Exception):
    """Something that a row needs is not there; the message says what, and where it is expected."""


def check(needs, profile, data_dir, weights):
    """Refuse a row that lacks something.

    Args:
        needs: list of str: data sets (``data.DATASETS``), modules (``PACKAGES``), other names are files or folders.
        profile: str; smoke needs modules only.
        data_dir, weights: paths or None.

    Raises:
        Missing: names what is not there, and where it is expected.
    """
    for name in needs:
        if name in PACKAGES:
            if importlib.util.find_spec(name) is None:
                raise Missing(f"the package {name}: pip install {PACKAGES[name]}")
        elif profile == "smoke":
            continue
        elif name in data.DATASETS:
            try:
                load(name, "test", data_dir=data_dir)
            except FileNotFoundError as error:
                raise Missing(str(error)) from None
        else:
            named(weights, name)


def named(folder, name):
    """Path of a file or folder in the folder that the user named, or anywhere below it.

    Raises:
        Missing: if it is not there.
    """
    if folder is None:
        raise Missing(f"{name}, expected in a folder of weights and pictures: name it with --weights")
    folder = pathlib.Path(folder)
    matches = [folder / name] if (folder / name).exists() else sorted(folder.rglob(name))
    if not matches:
        raise Missing(f"{name}, expected in {folder}, the folder of --weights")
    return matches[0]


def load(name, split, take=None, *, smoke=False, **settings):
    """A stream of a data set; in the smoke profile digits in its shape, changed as the made sets change theirs.

    Args:
        name: str, of ``data.DATASETS``.
        split: ``"train"``, which is shuffled, or ``"test"``.
        take: int, the first so many; all where there are fewer, or None.
        smoke: bool.
        **settings: of ``data.load``.

    Returns:
        ``tf.data.Dataset`` of batches.
    """
    if smoke:
        return _digits_as(name, split, take, **settings)
    if name in UNSLICED and take is not None:
        batch_size = settings.get("batch_size", 128)
        return data.load(name, split=split, **settings).unbatch().take(take).batch(batch_size)
    if take is not None and take < size(BASES.get(name, name), split, settings.get("data_dir")):
        split = f"{split}[:{take}]"
    return data.load(name, split=split, **settings)


@functools.cache
def size(name, split, data_dir):
    """Number of examples of a split, int."""
    return int(data.load(name, split=split, batch_size=1, data_dir=data_dir).cardinality())


def _digits_as(name, split, take, *, batch_size=128, seed=0, image_size=None, **options):
    """Real digits in the shape of a data set, coloured where it has colours."""
    shape = data.info(BASES.get(name, name)).image_shape
    sizes = shape[:2] if image_size is None else np.broadcast_to(image_size, 2).tolist()
    known = {option: value for option, value in options.items() if option not in ("data_dir", "allow_missing")}
    images, labels = _digits(split, None if name in MADE_SETS else tuple(map(int, sizes)))
    images, labels = images[:take] * np.float32(TINT[: shape[2]]), labels[:take]
    if name not in MADE_SETS:
        return data.from_arrays(images, labels, batch_size=batch_size, shuffle=split == "train", seed=seed)
    if shape[2] == 3:
        images = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    base = tf.data.Dataset.from_tensor_slices((images, labels))
    return MADE_SETS[name](base, batch_size=batch_size, shuffle=split == "train", seed=seed, **known)


@functools.cache
def _digits(split, image_size):
    """The first digits of a split, arrays."""
    return data.take(data.load("digits", split=split, image_size=image_size), DIGITS)


@functools.cache
def fingerprint(name, split, data_dir, smoke):
    """SHA-256 over the sorted hashes of all images and labels, a str of 16 characters: it does not depend on files."""
    if smoke:
        return f"digits, at most {DIGITS}"
    hashes = []
    for images, labels in data.load(name, split=split, data_dir=data_dir).as_numpy_iterator():
        pixels = np.round(images * 255).astype("uint8")
        examples = zip(pixels, labels, strict=True)
        hashes += [hashlib.sha256(image.tobytes() + bytes([int(label)])).digest() for image, label in examples]
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()[:16]
