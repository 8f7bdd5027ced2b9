"""AffNIST, from the MATLAB files that the University of Toronto publishes."""

import os
import pathlib

import numpy as np
import tensorflow as tf

from keras_capsvit.data.matlab import check_whole, struct_arrays
from keras_capsvit.data.streams import mapped
from keras_capsvit.files import refuse

PARTS = 32  # files of each folder of batches, called 1.mat to 32.mat
_FILES = {
    "train": ("training_and_validation_batches/*.mat", "training_batches/*.mat"),
    "test": ("test_batches/*.mat", "test.mat"),
}
_KIND = "an AffNIST file"
_MOST_IMAGES = 100_000  # in a file; the largest have 60,000


def affnist(split, *, data_dir, batch_size, shuffle, seed, allow_missing=False):
    """The published 40x40 images, one file in memory at a time.

    Args:
        split: ``"train"`` or ``"test"``.
        data_dir: path of the folder that holds the files, or the folder ``transformed``, ``affnist`` or
            ``affnist/transformed``; None for ``TFDS_DATA_DIR`` or TFDS's default folder.
        batch_size: int.
        shuffle: bool, a new order of the files, and of 20,000 images at a time, in every epoch.
        seed: int, of the order.
        allow_missing: bool, read what there is of a set of 32 files, instead of refusing one that lacks some.

    Returns:
        ``tf.data.Dataset`` of ``(images (b, 40, 40, 1) float32 in [0, 1], labels (b,) int64)``. A file that turns out
        to be damaged while the stream is read is a ``tf.errors.InvalidArgumentError`` with its name.

    Raises:
        ValueError: for another split, and for files of another format or that were cut off.
        FileNotFoundError: if there are no files, or not all of them; names the folders that were searched, or the files
            that are missing.
    """
    if split not in _FILES:
        raise ValueError(f"affnist has the splits 'train' and 'test', without slices; received {split!r}.")
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folders = [root, root / "transformed", root / "affnist", root / "affnist" / "transformed"]
    listings = (sorted(folder.glob(pattern)) for folder in folders for pattern in _FILES[split])
    files = next(filter(None, listings), None)
    if files is None:
        raise FileNotFoundError(
            f"The files of affnist were expected as {' or '.join(_FILES[split])} in one of the folders "
            f"{', '.join(map(str, folders))}; there are none. The University of Toronto publishes the data set as "
            "'affNIST' (the transformed images, 32 files per split); unpack it there or name its folder with data_dir. "
            "Similar digits are made here by load('affine_mnist')."
        )
    if files[0].parent.name.endswith("_batches") and not allow_missing:
        _check_complete(files)
    for file in files:
        check_whole(file)
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
    return mapped(stream.batch(batch_size), lambda x, y: (tf.image.convert_image_dtype(x, "float32"), y))


def _check_complete(files):
    names, folder = {file.name for file in files}, files[0].parent
    missing = [f"{number}.mat" for number in range(1, PARTS + 1) if f"{number}.mat" not in names]
    unknown = sorted(names - {f"{number}.mat" for number in range(1, PARTS + 1)})
    if missing or unknown:
        lacks = [f"{len(missing)} are missing: {', '.join(missing)}"] if missing else []
        lacks += [f"there are others: {', '.join(unknown)}"] if unknown else []
        raise FileNotFoundError(
            f"Expected the {PARTS} files 1.mat to {PARTS}.mat of affnist in {folder}; {'; '.join(lacks)}. Unpack the "
            "whole set there, or pass allow_missing=True to read what there is, which is not AffNIST's own split."
        )


def _read(file):
    expected = "expected a struct 'affNISTdata' with 'image' (1600, n) of uint8 and 'label_int' (1, n) of 0 to 9"
    arrays = struct_arrays(file, "affNISTdata", ("image", "label_int"), 1600 * _MOST_IMAGES)
    if set(arrays) != {"image", "label_int"}:
        refuse(file, _KIND, f"{expected}; received the arrays {sorted(arrays)}")
    images, labels = arrays["image"], arrays["label_int"].ravel()
    if images.dtype != np.uint8 or images.shape != (1600, len(labels)) or not np.isin(labels, range(10)).all():
        between = f" from {labels.min()} to {labels.max()}" if labels.size else ""
        refuse(
            file,
            _KIND,
            f"{expected}; received {images.shape} of {images.dtype} and {labels.shape} labels{between}",
        )
    # A column holds its image row by row.
    return np.ascontiguousarray(images.T).reshape(-1, 40, 40, 1), labels.astype("int64")
