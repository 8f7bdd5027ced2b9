"""Files of a training's state: each whole or not there, with a checksum, and the one before kept."""

import hashlib
import json
import math
import pathlib
import warnings

import numpy as np

from keras_capsvit import files

# A file is this line with the checksum of all that follows; the length of the JSON text, 8 bytes; the text; the arrays.
_FIRST = b"keras_capsvit checkpoint, version 1, SHA-256 "
_KIND = "a checkpoint of a training"
_KEPT = 2


class Checkpoints:
    """The checkpoints in a folder, which is made when there is one to write.

    Args:
        folder: path.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def save(self, epoch, about, arrays):
        """Write a checkpoint; those before the last one go.

        Args:
            epoch: int >= 0, epochs done.
            about: dict that JSON takes, with ``rows``, one of each epoch.
            arrays: list of NumPy arrays.
        """
        files.remove_abandoned(self.folder)
        write(self._path(epoch), {**about, "epoch": epoch}, arrays)
        for path in self._paths()[_KEPT:]:
            path.unlink()

    def newest(self):
        """The newest checkpoint that is whole; a warning names those that are not.

        Returns:
            Its path, its ``about`` and its arrays; None where there is no checkpoint.

        Raises:
            FileError: if none is whole; names all.
        """
        errors = []
        for path in self._paths():
            try:
                about, arrays = read(path)
                self._check(path, about)
            except files.FileError as error:
                errors.append(str(error))
                continue
            for message in errors:
                warnings.warn(f"{message} The training goes on from the one before, {path}.", stacklevel=4)
            return path, about, arrays
        if errors:
            raise files.FileError(
                f"No checkpoint in {self.folder} is whole. {' '.join(errors)} Copy one back from elsewhere, or delete "
                "the folder to begin the training anew."
            )
        return None

    def delete(self):
        """Delete all checkpoints, the newest last, and the folder."""
        files.remove_abandoned(self.folder)
        for path in reversed(self._paths()):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _check(self, path, about):
        epoch, rows = about.get("epoch"), about.get("rows", ())
        if not isinstance(epoch, int) or path != self._path(epoch):
            files.refuse(path, _KIND, f"it says that it is of epoch {epoch!r}")
        if len(rows) != epoch:
            files.refuse(path, _KIND, f"it is of {epoch} epochs and has rows of {len(rows)}")

    def _path(self, epoch):
        return self.folder / f"epoch-{epoch:06d}.checkpoint"

    def _paths(self):
        """Newest first."""
        return sorted(self.folder.glob("epoch-*.checkpoint"), reverse=True)


def write(path, about, arrays):
    """Write a file of ``about``, a dict that JSON takes, and arrays."""
    shapes = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps({**about, "arrays": shapes}).encode()
    # As bytes, because not all dtypes have a buffer.
    parts = [len(text).to_bytes(8, "little"), text]
    parts += [np.ascontiguousarray(array).reshape(-1).view("uint8") for array in arrays]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(_FIRST + digest.hexdigest().encode() + b"\n")
        for part in parts:
            file.write(part)


def read(path):
    """What ``write`` wrote, ``(about, arrays)``; FileError for a file that is damaged or of another kind."""
    path = pathlib.Path(path)
    with files.reading(path, _KIND), open(path, "rb") as file:
        header = file.readline(len(_FIRST) + 65)
        if not header.startswith(_FIRST):
            files.refuse(path, _KIND, "its first line is another")
        start = file.tell()
        if hashlib.file_digest(file, "sha256").hexdigest() != header[len(_FIRST) : -1].decode():
            files.refuse(path, _KIND, "its checksum does not match")
        size = file.tell()
        file.seek(start)
        length = int.from_bytes(file.read(8), "little")
        if length > size - file.tell():
            files.refuse(path, _KIND, "it is shorter than it says")
        about = json.loads(file.read(length))
        shapes = [(np.dtype(name), shape) for name, shape in about.pop("arrays")]
        counts = [math.prod(shape) for _, shape in shapes]
        sizes = [dtype.itemsize * count for (dtype, _), count in zip(shapes, counts, strict=True)]
        if min(counts, default=0) < 0 or sum(sizes) != size - file.tell():
            files.refuse(path, _KIND, "its arrays have another size than it says")
        arrays = [
            np.frombuffer(file.read(bytes_), dtype).reshape(shape)
            for (dtype, shape), bytes_ in zip(shapes, sizes, strict=True)
        ]
        return about, arrays
