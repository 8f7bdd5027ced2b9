"""Image data sets as streams of ``(images, labels)``: digits without any file, the others from TFDS folders."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf


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
}


def info(name):
    """Image shape and class names of a data set.

    Args:
        name: str, one of ``DATASETS``.

    Returns:
        Info.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}; expected one of {', '.join(DATASETS)}.")
    return DATASETS[name]


def load(name, *, split=("train", "test"), batch_size=128, image_size=None, data_dir=None, download=False, seed=0):
    """Stream a data set in batches of float32 images in [0, 1] and int64 labels.

    Args:
        name: ``"digits"`` (1,797 real 8x8 digits that scikit-learn carries, enlarged; 1,437 to train, 360 to test,
            stratified), or ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"``, ``"svhn_cropped"`` through TFDS.
        split: str or tuple of str. TFDS slices such as ``"train[:1000]"`` work, except for digits. Splits that begin
            with ``"train"`` are shuffled anew in every epoch, the others keep their order.
        batch_size: int.
        image_size: int or pair of ints to resize to (bilinear); None for 28x28 (digits) or the data set's own.
        data_dir: path of the TFDS folders; None for TFDS's own default.
        download: bool, let TFDS download and prepare what is missing.
        seed: int, of the order of training examples.

    Returns:
        One ``tf.data.Dataset`` per split, of ``(images (b, H, W, C), labels (b,))``; not in a tuple if ``split`` is a
        str.

    Raises:
        ValueError: for an unknown data set or split.
        FileNotFoundError: if the TFDS folder is missing and ``download`` is false; names the folder.
    """
    shape = info(name).image_shape
    if image_size is not None:
        height_width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        shape = (*height_width, shape[-1])
    read = _read_digits() if name == "digits" else _read_tfds(name, data_dir, download)
    splits = (split,) if isinstance(split, str) else split
    streams = tuple(_batches(read(one), shape, batch_size, one.startswith("train"), seed) for one in splits)
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
    images, labels = np.asarray(images), np.asarray(labels)
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
    return _batches(stream, images.shape[1:], batch_size, shuffle, seed)


def take(dataset, n):
    """First ``n`` examples of a stream as arrays.

    Args:
        dataset: ``tf.data.Dataset`` of batches ``(images, labels)``.
        n: int.

    Returns:
        Images ``(n, H, W, C)`` float32 and labels ``(n,)`` int64, NumPy.

    Raises:
        ValueError: if the stream holds fewer than ``n`` examples.
    """
    images, labels, found = [], [], 0
    for x, y in dataset:
        images.append(x.numpy())
        labels.append(y.numpy())
        found += len(labels[-1])
        if found >= n:
            return np.concatenate(images)[:n], np.concatenate(labels)[:n]
    raise ValueError(f"Expected at least {n} examples in the stream; it holds {found}.")


def _batches(stream, shape, batch_size, shuffle, seed):
    def prepare(image, label):
        image = tf.image.convert_image_dtype(image, "float32")
        if image.shape[1:] != shape:
            image = tf.clip_by_value(tf.image.resize(image, shape[:2]), 0.0, 1.0)
        return image, label

    stream = stream.cache()
    if shuffle:
        stream = stream.shuffle(int(stream.cardinality()), seed=seed, reshuffle_each_iteration=True)
    return stream.batch(batch_size).map(prepare, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


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


def _read_tfds(name, data_dir, download):
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    if download:
        builder.download_and_prepare()
    elif not (pathlib.Path(builder.data_dir) / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"Data set {name!r} was expected in the prepared TFDS folder {builder.data_dir}, which does not exist. "
            "Prepare it there, name another folder with data_dir, or let TFDS fetch it with download=True."
        )

    def read(split):
        return builder.as_dataset(split=split, as_supervised=True)

    return read
