"""Files of named arrays, .npz and .safetensors: shapes first, values only when they are asked for, never a pickle."""

import math
import pathlib
import zipfile

import numpy as np

from keras_capsvit.files.damage import check_exists, reading, refuse

_PLAIN = "biuf"  # kinds of numbers


class Arrays:
    """An open file of named arrays; a context manager.

    Attributes:
        path: pathlib.Path of the file.
        shapes: dict from names to tuples of ints, as the file claims.
        floats: set of the names of arrays of floats.
        compressed: set of the names of those that may take far more memory than the file is large.
    """

    kind = ""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.shapes, self.floats, self.compressed = {}, set(), set()
        check_exists(self.path, self.kind)
        with reading(self.path, self.kind):
            self._open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def __contains__(self, name):
        return name in self.shapes

    def __iter__(self):
        return iter(self.shapes)

    def read(self, name):
        """The values of an array of plain numbers, NumPy; half precision that NumPy lacks becomes float32.

        It takes the memory that its shape says, so look at ``shapes`` before.

        Raises:
            FileError: for what is no array of numbers, and bytes that are not what their checksum or shape says.
        """
        with reading(self.path, self.kind):
            return self._read(name)


class Npz(Arrays):
    """``.npz``, what ``numpy.savez`` and ``savez_compressed`` write."""

    kind = "an .npz file of plain arrays"

    def _open(self):
        self._archive = zipfile.ZipFile(self.path)
        self._entries, self._numbers = {}, set()
        for entry in self._archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in self._entries:
                self._refuse(f"it has two arrays {name!r}")
            self._check_entry(entry, name)
            self._entries[name] = entry
            with self._archive.open(entry) as part:
                shape, _, dtype = self._header(part, name)
                declared = part.tell() + math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                self._refuse(f"{name!r} holds objects of Python, which are never unpickled")
            self.shapes[name] = shape
            if dtype.kind not in _PLAIN:
                continue
            if declared != entry.file_size or min(shape, default=0) < 0:
                self._refuse(f"{name!r} has {entry.file_size:,} bytes, {dtype} of shape {shape} needs {declared:,}")
            self._numbers.add(name)
            if entry.compress_type != zipfile.ZIP_STORED:
                self.compressed.add(name)
            if dtype.kind == "f":
                self.floats.add(name)

    def _close(self):
        self._archive.close()

    def _read(self, name):
        if name not in self._numbers:
            self._refuse(f"{name!r} is no array of plain numbers")
        with self._archive.open(self._entries[name]) as part:
            array = np.lib.format.read_array(part, allow_pickle=False)
            part.read(1)  # the end, where the checksum is compared
        return array

    def _check_entry(self, entry, name):
        if entry.flag_bits & 1:
            refuse(self.path, self.kind, f"{name!r} is encrypted", "Write it without a password.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self._refuse(f"{name!r} is compressed in a way that NumPy does not write")
        if not entry.filename.endswith(".npy"):
            self._refuse(f"it holds {entry.filename!r}, which is no array")

    def _header(self, part, name):
        # Version 1 is that of all plain arrays; others may have headers of gigabytes.
        if np.lib.format.read_magic(part) != (1, 0):
            self._refuse(f"{name!r} is no array of plain numbers")
        return np.lib.format.read_array_header_1_0(part)

    def _refuse(self, reason):
        refuse(self.path, self.kind, reason)


class Safetensors(Arrays):
    """``.safetensors``; needs the safetensors package, which checks that shapes and sizes agree with the file's."""

    kind = "a .safetensors file of arrays that NumPy knows"

    def _open(self):
        from safetensors import safe_open

        self._file = safe_open(self.path, framework="numpy")
        for name in self._file.keys():  # noqa: SIM118, no dict
            part = self._file.get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            if part.get_dtype().startswith(("F", "BF")):
                self.floats.add(name)

    def _close(self):
        del self._file

    def _read(self, name):
        array = self._file.get_tensor(name)
        # NumPy knows bfloat16 and its like only by ml_dtypes, as kinds of their own.
        return array.astype("float32") if array.dtype.isbuiltin == 2 else array


def arrays_of(path):
    """Open a file of named arrays by its suffix.

    Args:
        path: path of an ``.npz`` or ``.safetensors`` file.

    Returns:
        Arrays, a context manager.

    Raises:
        FileNotFoundError: if there is no such file.
        FileError: for another suffix, and a file that is damaged, encrypted, holds pickles, or is of another kind.
        ImportError: for ``.safetensors`` without the safetensors package.
    """
    path = pathlib.Path(path)
    kinds = {".npz": Npz, ".safetensors": Safetensors}
    if path.suffix not in kinds:
        refuse(path, "an .npz or .safetensors file", f"its name ends in {path.suffix!r}")
    if path.suffix == ".safetensors":
        try:
            import safetensors  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"Reading {path.name} needs the safetensors package: install it, or convert the file to .npz."
            ) from error
    return kinds[path.suffix](path)
