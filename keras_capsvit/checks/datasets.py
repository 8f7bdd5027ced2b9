"""Whatever holds a data set as batches of images and class ids."""

import zlib

import keras
import numpy as np
from keras import ops

from keras_capsvit.checks import settings
from keras_capsvit.checks.arrays import numbers
from keras_capsvit.checks.labels import class_ids
from keras_capsvit.checks.pixels import images
from keras_capsvit.checks.settings import described

_INFINITE = -1  # what tf.data calls so


def batches_of(dataset, batch_size=128):
    """Batches of images and class ids, of whatever holds a data set.

    Args:
        dataset: pair of arrays ``(x (n, H, W, C), y)``, a tuple or a list, which is cut into batches; iterable of
            batches ``(x, y)``, which stay as they are, such as a batched ``tf.data.Dataset``; or of examples
            ``(image (H, W, C), label)``, which are put into batches. Labels: see ``class_ids``.
        batch_size: int >= 1.

    Returns:
        Iterator of pairs of float32 images ``(b, H, W, C)`` and int32 ids ``(b,)``.

    Raises:
        ValueError: for anything else, with what was received.
    """
    settings.batch_size(batch_size)
    if is_pair(dataset):
        x = numbers(dataset[0], "images")
        ids = class_ids(dataset[1], len(x) if x.ndim else 0)
        parts = (slice(k, k + batch_size) for k in range(0, max(len(ids), 1), batch_size))
        return ((images(x[part]), ids[part]) for part in parts)
    if endless(dataset):
        raise ValueError("Expected a data set that ends; this one repeats for ever. Give dataset.take(n), n batches.")
    if isinstance(dataset, keras.utils.PyDataset):
        return _batches(map(dataset.__getitem__, range(len(dataset))), batch_size)
    if isinstance(dataset, str | bytes | dict) or hasattr(dataset, "shape") or not hasattr(dataset, "__iter__"):
        raise _no_dataset(described(dataset))
    return _batches(dataset, batch_size)


def batches_in(dataset, batch_size=128):
    """Number of batches that ``batches_of`` gives, int, or None if a data set does not tell it."""
    settings.batch_size(batch_size)
    try:
        if is_pair(dataset):
            return -(-len(dataset[0]) // batch_size)
        batched = not hasattr(dataset, "element_spec") or len(dataset.element_spec[0].shape) == 4
        return len(dataset) if batched and not isinstance(dataset, tuple | list) else None
    except (TypeError, AttributeError, ValueError, LookupError):
        return None


class Repeatable:
    """A data set that is read several times, and has to give the same images and labels in the same order every time.

    Args:
        dataset: see ``batches_of``.
        batch_size: see ``batches_of``.

    Call: iterating gives batches as ``batches_of`` does; ``len`` is the number of batches, where the data set tells it.

    Raises:
        ValueError: for what can be read once only, such as a generator; and, while it is read, for a data set whose
            images or labels are not those of an earlier time, such as one that is shuffled anew.
    """

    def __init__(self, dataset, batch_size=128):
        if not is_pair(dataset) and hasattr(dataset, "__next__"):
            raise ValueError(
                f"Expected a data set that can be read several times; received {described(dataset)}, which gives its "
                "images once. Give a pair (x, y) of arrays, a list of batches, or a tf.data.Dataset."
            )
        self._dataset, self._batch_size, self._sums = dataset, batch_size, []

    def __len__(self):
        length = batches_in(self._dataset, self._batch_size)
        if length is None:
            raise TypeError("The data set does not tell its number of batches.")
        return length

    def __iter__(self):
        for number, (x, y) in enumerate(batches_of(self._dataset, self._batch_size)):
            checksum = zlib.crc32(np.ascontiguousarray(y), zlib.crc32(np.ascontiguousarray(x)))
            if number == len(self._sums):
                self._sums.append(checksum)
            elif self._sums[number] != checksum:
                raise ValueError(
                    "Expected a data set that gives the same images in the same order every time, because it is read "
                    f"several times; batch {number} is not the one of before. Shuffle with "
                    "reshuffle_each_iteration=False and augment before, or give a pair (x, y) of arrays."
                )
            yield x, y


def endless(dataset):
    """Whether a ``tf.data.Dataset`` or ``keras.utils.PyDataset`` tells that it never ends, bool."""
    if isinstance(dataset, keras.utils.PyDataset):
        return dataset.num_batches is None
    return callable(getattr(dataset, "cardinality", None)) and int(dataset.cardinality()) == _INFINITE


def _batches(dataset, batch_size):
    gathered = []
    for element in dataset:
        if not isinstance(element, tuple | list) or len(element) != 2:
            raise _no_dataset(f"elements that are {described(element)}")
        x, y = element
        rank = len(getattr(x, "shape", None) or np.shape(x))
        if rank == 3:
            gathered.append((ops.convert_to_numpy(x), ops.convert_to_numpy(y)))
            if len(gathered) == batch_size:
                yield _gathered(gathered)
                gathered = []
        elif rank == 4:
            x = images(x)
            yield x, class_ids(y, len(x))
        else:
            raise _no_dataset(f"elements ({described(x)}, {described(y)})")
    if gathered:
        yield _gathered(gathered)


def _gathered(examples):
    try:
        x, y = (np.stack(part) for part in zip(*examples, strict=True))
    except ValueError:
        raise _no_dataset("single images of different shapes") from None
    x = images(x)
    return x, class_ids(y, len(x))


def is_pair(dataset):
    """Whether a data set is a pair of arrays, not a list of two batches, bool."""
    if not isinstance(dataset, tuple | list) or len(dataset) != 2:
        return False
    return not any(isinstance(part, tuple) for part in dataset) and not _is_batch(dataset[0])


def _is_batch(part):
    return isinstance(part, list) and len(part) == 2 and hasattr(part[0], "shape") and len(part[0].shape) in (3, 4)


def _no_dataset(received):
    return ValueError(
        "Expected a data set: a pair (x, y) of arrays, or an iterable of batches (x (b, H, W, C), y (b,)) or of "
        f"examples (image (H, W, C), label), such as a tf.data.Dataset; received {received}."
    )
