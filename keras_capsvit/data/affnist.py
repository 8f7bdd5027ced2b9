"""AffNIST, from the MATLAB files that the University of Toronto publishes."""

import os
import pathlib

import numpy as np
import tensorflow as tf

_FILES = {
    "train": ("training_and_validation_batches/*.mat", "training_batches/*.mat"),
    "test": ("test_batches/*.mat", "test.mat"),
}


def affnist(split, *, data_dir, batch_size, shuffle, seed):
    """The published 40x40 images, one file in memory at a time.

    Args:
        split: ``"train"`` or ``"test"``.
        data_dir: path of the folder that holds the files, or the folder ``transformed``, ``affnist`` or
            ``affnist/transformed``; None for ``TFDS_DATA_DIR`` or TFDS's default folder.
        batch_size: int.
        shuffle: bool, a new order of the files, and of 20,000 images at a time, in every epoch.
        seed: int, of the order.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, 40, 40, 1) float32 in [0, 1], labels (b,) int64)``.

    Raises:
        ValueError: for another split, and for files of another format.
        FileNotFoundError: if there are no files; names the folders that were searched.
    """
    if split not in _FILES:
        raise ValueError(f"affnist has the splits 'train' and 'test', without slices; received {split!r}.")
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folders = [root, root / "transformed", root / "affnist", root / "affnist" / "transformed"]
    found = (sorted(folder.glob(pattern)) for folder in folders for pattern in _FILES[split])
    files = next(filter(None, found), None)
    if files is None:
        raise FileNotFoundError(
            f"The files of affnist were expected as {' or '.join(_FILES[split])} in one of the folders "
            f"{', '.join(map(str, folders))}; there are none. The University of Toronto publishes the data set as "
            "'affNIST' (the transformed images, 32 files per split); unpack it there or name its folder with data_dir. "
            "Similar digits are made here by load('affine_mnist')."
        )
    _read(files[0])  # refuses another format now, not in the middle of a training

    def read(file):  # one file in memory at a time: all of them are gigabytes
        images, labels = tf.numpy_function(lambda name: _read(name.decode()), [file], ["uint8", "int64"])
        return tf.data.Dataset.from_tensor_slices(
            (tf.ensure_shape(images, [None, 40, 40, 1]), tf.ensure_shape(labels, [None]))
        )

    stream = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    if shuffle:
        stream = stream.shuffle(len(files), seed=seed, reshuffle_each_iteration=True).flat_map(read)
        stream = stream.shuffle(20_000, seed=seed, reshuffle_each_iteration=True)
    else:
        stream = stream.flat_map(read)
    return (
        stream.batch(batch_size)
        .map(lambda x, y: (tf.image.convert_image_dtype(x, "float32"), y), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _read(file):
    from scipy.io import loadmat

    expected = "expected a struct 'affNISTdata' with 'image' (1600, n) of uint8 and 'label_int' (1, n) of 0 to 9"
    try:
        struct = loadmat(file)["affNISTdata"][0, 0]
        images, labels = struct["image"], struct["label_int"].ravel()
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{file} is no AffNIST file: {expected}; reading it failed with {error!r}.") from error
    if images.dtype != np.uint8 or images.shape != (1600, len(labels)) or not np.isin(labels, range(10)).all():
        raise ValueError(
            f"{file} is no AffNIST file: {expected}; received {images.shape} of {images.dtype} and {labels.shape} "
            f"labels from {labels.min()} to {labels.max()}."
        )
    # A column holds its image row by row.
    return np.ascontiguousarray(images.T).reshape(-1, 40, 40, 1), labels.astype("int64")
