"""Image data sets as streams of ``(images, labels)``: digits without any file, others from files or made of those."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from keras_capsvit import checks
from keras_capsvit.data import affine_sets, affnist, multidigit
from keras_capsvit.data.streams import check_reading, check_stream, mapped
from keras_capsvit.data.tfds_folders import read_tfds


@dataclasses.dataclass(frozen=True)
class Info:
    """Shape ``(H, W, C)`` of a data set's images, and its class names in label order (str)."""

    image_shape: tuple
    class_names: tuple

    @property
    def num_classes(self):
        """Number of classes, int."""
        return len(self.class_names)


_DIGITS = tuple("0123456789")
DATASETS = {
    "digits": Info((28, 28, 1), _DIGITS),
    "mnist": Info((28, 28, 1), _DIGITS),
    "fashion_mnist": Info(
        (28, 28, 1),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": Info(
        (32, 32, 3),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "svhn_cropped": Info((32, 32, 3), _DIGITS),
    "affnist": Info((40, 40, 1), _DIGITS),
    "affine_mnist": Info((40, 40, 1), _DIGITS),
    "expanded_mnist": Info((40, 40, 1), _DIGITS),
    "multi_mnist": Info((36, 36, 1), _DIGITS),
}
DATASETS["affine_cifar10"] = DATASETS["cifar10"]
# What a made set is made of, by which function, and the options of that function.
_MADE_SETS: dict[str, tuple] = {
    "affine_mnist": ("mnist", affine_sets.affine_mnist, ("rotation", "shear", "scale", "translation")),
    "expanded_mnist": ("mnist", affine_sets.expanded_mnist, ()),
    "affine_cifar10": ("cifar10", affine_sets.affine_cifar10, ("rotation", "translation")),
    "multi_mnist": ("mnist", multidigit.multi_mnist, ("pairs", "parts")),
}


def info(name) -> Info:
    """Image shape and class names of a data set.

    Args:
        name: str, one of ``DATASETS``.

    Returns:
        Info.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; expected one of {', '.join(DATASETS)}.")
    return DATASETS[name]


def load(
    name,
    *,
    split=("train", "test"),
    batch_size=128,
    image_size=None,
    data_dir=None,
    download=False,
    seed=0,
    **options,
):
    """Stream a data set in batches of float32 images in [0, 1] and int64 labels.

    Made when they are read, from the TFDS folders of MNIST or CIFAR-10: ``"affine_mnist"`` (options ``rotation``,
    ``shear``, ``scale``, ``translation``), ``"expanded_mnist"``, ``"affine_cifar10"`` (``rotation``, ``translation``)
    and ``"multi_mnist"`` (``pairs``, ``parts``); ``data.affine_sets`` and ``data.multidigit`` describe them.
    ``"affnist"`` reads the files that the University of Toronto publishes (32 versions of each of 60,000 and 10,000
    digits), from ``data_dir``, a folder ``transformed``, ``affnist`` or ``affnist/transformed`` in it; fewer than 32
    files are refused unless the option ``allow_missing`` is true.

    Args:
        name: ``"digits"`` (1,797 real 8x8 digits that scikit-learn carries, enlarged; 1,437 to train, 360 to test,
            stratified), or ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"``, ``"svhn_cropped"`` through TFDS, or one of
            those above.
        split: str or tuple of str. TFDS slices such as ``"train[:1000]"`` work, except for digits and affnist. Splits
            that begin with ``"train"`` are shuffled anew in every epoch, and moved anew in the affine and expanded
            sets; the others keep their order and images.
        batch_size: int.
        image_size: int or pair of ints to resize to (bilinear); None for 28x28 (digits) or the data set's own. Made
            sets and affnist have only their own.
        data_dir: path of the TFDS folders, or of AffNIST's files; None for TFDS's own default.
        download: bool, let TFDS download and prepare what is missing (not affnist).
        seed: int, of the order of training examples, and of what is made.
        **options: of the made sets and affnist, see above.

    Returns:
        One ``tf.data.Dataset`` per split, of ``(images (b, H, W, C), labels (b,))`` (for multi_mnist see there); not
        in a tuple if ``split`` is a str.

    Raises:
        ValueError: for an unknown data set or split, an option that the set does not have, or one out of range.
            Also for files that are damaged or were not written to their end; names the file.
        FileNotFoundError: if the TFDS folder is missing and ``download`` is false, and for missing files; names them.
    """
    shape = info(name).image_shape
    base, make, known = _MADE_SETS.get(name, (name, None, ("allow_missing",) if name == "affnist" else ()))
    if not set(options) <= set(known):
        raise ValueError(
            f"The options of {name} are {', '.join(known) or 'none'}; received {', '.join(sorted(options))}."
        )
    check_reading(batch_size, True, seed)
    checks.booleans(download=download)
    if image_size is not None:
        if make or name == "affnist":
            raise ValueError(f"{name} has images of {shape[0]}x{shape[1]} only; received image_size={image_size}.")
        height_width = checks.pair(image_size, "image_size")
        shape = (*height_width, shape[-1])
    if name == "affnist":
        make = functools.partial(affnist.affnist, data_dir=data_dir)
        read = str  # it reads by the name of the split
    else:
        read = _read_digits() if name == "digits" else read_tfds(base, data_dir, download, info(base).image_shape)
        make = make or functools.partial(_batches, shape=shape)
    splits = (split,) if isinstance(split, str) else split
    if not isinstance(splits, tuple | list) or not all(isinstance(each, str) for each in splits):
        raise ValueError(f"split must be a str, such as 'test', or a tuple of such; received {split!r}.")
    streams = tuple(
        make(read(each), batch_size=batch_size, shuffle=each.startswith("train"), seed=seed, **options)
        for each in splits
    )
    return streams[0] if isinstance(split, str) else streams


def from_arrays(images, labels, *, batch_size=128, shuffle=False, seed=0):
    """Stream arrays as ``load`` streams data sets, after checking them.

    Args:
        images: array ``(n, H, W, C)``, uint8 or float in [0, 1].
        labels: integer array ``(n,)``, ids from 0.
        batch_size: int.
        shuffle: bool, a new order in every epoch.
        seed: int.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, H, W, C) float32, labels (b,) int64)``.

    Raises:
        ValueError: for NaN or infinite pixels, pixels outside [0, 1], wrong ranks, lengths that differ, or labels that
            are negative or not integers.
    """
    check_reading(batch_size, shuffle, seed)
    images, labels = checks.numbers(images, "images"), checks.numbers(labels, "labels")
    if images.ndim != 4:
        raise ValueError(f"Images must have shape (n, height, width, channels); received {images.shape}.")
    if labels.shape != (len(images),):
        raise ValueError(f"Labels must have shape ({len(images)},), one id per image; received {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
        raise ValueError(f"Labels must be integers from 0; received {labels.dtype} with minimum {labels.min()}.")
    if images.dtype != np.uint8:
        broken = np.count_nonzero(~np.isfinite(images))
        if broken:
            raise ValueError(f"Pixels must be finite; received {broken} NaN or infinite values.")
        if images.size and (images.min() < 0 or images.max() > 1):
            raise ValueError(
                f"Float pixels must lie in [0, 1]; received values in [{images.min()}, {images.max()}]. "
                "Divide 8-bit values by 255, or pass them as uint8."
            )
        images = images.astype("float32")
    stream = tf.data.Dataset.from_tensor_slices((images, labels.astype("int64")))
    return _batches(stream, shape=images.shape[1:], batch_size=batch_size, shuffle=shuffle, seed=seed)


def take(dataset, n):
    """First ``n`` examples of a stream as arrays.

    Args:
        dataset: ``tf.data.Dataset`` of batches ``(images, labels)``.
        n: int >= 1.

    Returns:
        Images ``(n, H, W, C)`` float32 and labels ``(n,)`` int64 (for multi_mnist the dictionary of labels), NumPy.

    Raises:
        ValueError: if the stream holds fewer than ``n`` examples.
    """
    checks.positive_int("n", n)
    check_stream("dataset", dataset)
    batches, examples = [], 0
    for batch in dataset.as_numpy_iterator():
        batches.append(batch)
        examples += len(batch[0])
        if examples >= n:
            return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays)[:n], *batches)
    raise ValueError(f"Expected at least {n} examples in the stream; it holds {examples}.")


def _batches(stream, *, shape, batch_size, shuffle, seed):
    def prepare(image, label):
        image = tf.image.convert_image_dtype(image, "float32")
        if image.shape[1:] != shape:
            image = tf.clip_by_value(tf.image.resize(image, shape[:2]), 0.0, 1.0)
        return image, label

    if shuffle:
        stream = stream.shuffle(int(stream.cardinality()), seed=seed, reshuffle_each_iteration=True)
    return mapped(stream.batch(batch_size), prepare)


def _read_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels.astype("int64"), test_size=360, stratify=labels, random_state=0
    )
    arrays = {"train": (x_train, y_train), "test": (x_test, y_test)}

    def read(split):
        if split not in arrays:
            raise ValueError(f"digits has the splits 'train' and 'test'; received {split!r}.")
        return tf.data.Dataset.from_tensor_slices(arrays[split])

    return read
