"""Data sets in the folders of TensorFlow Datasets, which are checked to be whole before anything is made of them."""

import functools
import math
import os
import pathlib

import tensorflow as tf

from keras_capsvit.files import read_json, reading, refuse

_KIND = "a file of a prepared TFDS folder"
_REMEDY = "Delete the folder and let TFDS prepare it again with download=True, or copy it again."


def read_tfds(name, data_dir, download, image_shape):
    """A callable from splits to unbatched streams of a data set in a TFDS folder.

    Every file of a split is read once when the split is asked for, to compare its checksums and number of examples;
    once per process, as long as the file stays as it is.

    Args:
        name: str, of the data set.
        data_dir: path of the TFDS folders; None for TFDS's own default.
        download: bool, let TFDS download and prepare what is missing.
        image_shape: ``(H, W, C)``; an example of many more bytes is refused, before its picture is decoded.

    Returns:
        Callable ``split → tf.data.Dataset`` of examples ``(image, label)``.

    Raises:
        FileNotFoundError: if the folder, or a file of it, is missing and ``download`` is false; names it.
        ValueError: for files that are damaged or were not written to their end, with their names; and splits that there
            are not.
        ImportError: if TensorFlow Datasets cannot be used beside the other packages that are installed.
    """
    import tensorflow_datasets as tfds

    if not hasattr(tfds, "builder"):  # an error of its own imports, which it keeps to itself
        raise ImportError(
            "tensorflow_datasets is installed and cannot be used, mostly because its tensorflow-metadata needs another "
            "protobuf than this TensorFlow: python -c 'import tensorflow_datasets.core' says why. With TensorFlow 2.18 "
            "and 2.19: pip install 'tensorflow-metadata<1.18'."
        )
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    with reading(root / name, "a prepared TFDS folder", _REMEDY):
        try:
            builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
        except Exception:
            _check_descriptions(root / name)  # to name the file
            raise
    if download:
        builder.download_and_prepare()
    folder = pathlib.Path(builder.data_dir)
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"Data set {name!r} was expected in the prepared TFDS folder {folder}, which does not exist or was not "
            "written to its end. Prepare it there, name another folder with data_dir, or let TFDS fetch it with "
            "download=True."
        )
    _check_descriptions(folder)
    with reading(folder / "dataset_info.json", _KIND, _REMEDY):
        lengths = {
            str(path): length
            for split in builder.info.splits.values()
            for path, length in zip(split.filepaths, split.shard_lengths, strict=True)
        }

    def read(split):
        with reading(folder / "dataset_info.json", f"{_KIND} with a split {split!r}", _REMEDY):
            files = [str(path) for path in builder.info.splits[split].filepaths]
        missing = [file for file in files if not pathlib.Path(file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Expected {len(files)} files of {name!r}; {len(missing)} are missing: {', '.join(missing[:10])}. "
                f"{_REMEDY}"
            )
        for file in files:
            if ".tfrecord" not in file:
                continue
            state = pathlib.Path(file).stat()
            count, longest = _examples(file, state.st_size, state.st_mtime_ns)
            if count != lengths[file]:
                refuse(file, _KIND, f"it has {count} examples, where {lengths[file]} are expected", _REMEDY)
            if longest > 2 * math.prod(image_shape) + 1024:
                refuse(file, _KIND, f"an example has {longest:,} bytes for images of {image_shape}", _REMEDY)
        return builder.as_dataset(split=split, as_supervised=True)

    return read


def _check_descriptions(folder):
    for name in ("dataset_info.json", "features.json"):
        for file in sorted(folder.rglob(name)):
            read_json(file, _KIND)


@functools.lru_cache(256)
def _examples(file, size, changed):
    """Number of examples in a file of a size and time of change, and bytes of the longest; compares all checksums."""

    def add(state, example):
        return state[0] + 1, tf.maximum(state[1], tf.strings.length(example))

    with reading(file, f"{_KIND} of {size:,} bytes", _REMEDY):
        return tuple(map(int, tf.data.TFRecordDataset(file, buffer_size=2**20).reduce((0, 0), add)))
