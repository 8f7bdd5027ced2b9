"""Arrays of a struct in a MATLAB 5 file, of which types and sizes are looked at before anything is read.

Only what is asked for is kept, and nothing else of the file is built: SciPy's reader makes all of it first, as large
and as deeply nested as a file says.
"""

import math
import os
import struct
import zlib

import numpy as np

from keras_capsvit.files import reading, refuse

KIND = "a MATLAB 5 file"
_HEADER = 128  # bytes: a text, a version, and the order of bytes
_MATRIX, _COMPRESSED, _STRUCT, _CHARACTERS = 14, 15, 2, 1
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_PIECE = 2**16


def struct_arrays(path, variable, fields, most):
    """Numeric arrays of a struct.

    Args:
        path: path of the file.
        variable: str, name of the struct, of one element.
        fields: list of str.
        most: int, bytes that an array may have.

    Returns:
        dict from the names of those fields that the struct has and that are numeric to arrays ``(rows, columns)``, in
        column-major order, of the class that MATLAB gives them.

    Raises:
        FileError: for what is no such file, was cut off or damaged, and arrays of more than ``most`` bytes.
    """
    with reading(path, KIND), open(path, "rb") as file:
        for kind, size, order in _elements(file, path):
            source = _Inflated(file, size) if kind == _COMPRESSED else _Plain(file, size)
            if kind == _COMPRESSED:
                kind, size = struct.unpack(f"{order}II", source.read(8))
            if kind != _MATRIX:
                continue
            element = _Element(source, size, order, path)
            (flags, *_), dimensions, name = element.numbers(), element.numbers(), element.text()
            if name == variable:
                if flags & 0xFF != _STRUCT or math.prod(dimensions) != 1:
                    refuse(path, KIND, f"{variable!r} is no struct of one element")
                arrays = _fields(element, fields, most)
                source.finish()
                return arrays
    refuse(path, KIND, f"it has no variable {variable!r}")


def check_whole(path):
    """Refuse a file whose parts do not end where it does, without reading them; see ``struct_arrays``."""
    with reading(path, KIND), open(path, "rb") as file:
        for _ in _elements(file, path):
            pass


def _elements(file, path):
    """Types and sizes of the variables of a file, and its order of bytes; the file stands behind each size."""
    end = os.fstat(file.fileno()).st_size
    header = file.read(_HEADER)
    order = {b"IM": "<", b"MI": ">"}.get(header[126:])
    if order is None or header[124:126] != struct.pack(f"{order}H", 0x0100):
        refuse(path, KIND, "it does not begin like one; files of MATLAB 7.3 are of another kind")
    place = _HEADER
    while place < end:
        file.seek(place)
        kind, size = struct.unpack(f"{order}II", file.read(8))
        place += 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        if place > end:
            refuse(path, KIND, f"it ends {place - end:,} bytes too early")
        yield kind, size, order


class _Plain:
    """Bytes of a file up to a size."""

    def __init__(self, file, size):
        self._file, self._left = file, size

    def read(self, count):
        data = self._next(min(count, self._left)) if count <= self._left else b""
        if len(data) != count:
            raise EOFError("a part is larger than what it lies in")
        self._left -= count
        return data

    def skip(self, count):
        while count:
            count -= len(self.read(min(count, _PIECE)))

    def finish(self):
        """Refuse more bytes than were read."""
        if self._left:
            raise ValueError("a part is smaller than what it lies in")

    def _next(self, count):
        return self._file.read(count)


class _Inflated(_Plain):
    """Bytes that a compressed part of a file holds; never more of them in memory than are asked for."""

    def __init__(self, file, size):
        super().__init__(file, math.inf)
        self._compressed, self._inflate = size, zlib.decompressobj()

    def finish(self):
        if self._next(1) or not self._inflate.eof:  # at the end the checksum is compared
            raise ValueError("a compressed part is larger than it says")

    def _next(self, count):
        data = bytearray()
        while len(data) < count and not self._inflate.eof:
            piece = self._inflate.unconsumed_tail or self._file.read(min(self._compressed, _PIECE))
            if not self._inflate.unconsumed_tail:
                self._compressed -= len(piece)
            if not piece:
                break
            data += self._inflate.decompress(piece, count - len(data))
        return bytes(data)


class _Element:
    """The parts of an element of a size, read one after the other."""

    def __init__(self, source, size, order, path):
        self.source, self.left, self.order, self.path = source, size, order, path

    def begin(self):
        """Type and size of the next part, how many bytes fill it up, and the bytes themselves if they are few."""
        kind, size = struct.unpack(f"{self.order}II", self._take(8))
        if kind >> 16:
            data = struct.pack(f"{self.order}I", size)[: kind >> 16]
            return kind & 0xFFFF, len(data), 0, data
        return kind, size, -size % 8, None

    def numbers(self, most=2**10):
        """A part as a list of numbers; one of more than ``most`` bytes is refused."""
        return self.array(most).tolist()

    def array(self, most):
        kind, size, filling, data = self.begin()
        if kind not in _TYPES or size > most:
            refuse(
                self.path, KIND, f"a part of {size:,} bytes of type {kind} lies where at most {most:,} were expected"
            )
        data = self._take(size) if data is None else data
        self.skip(filling)
        return np.frombuffer(data, np.dtype(_TYPES[kind]).newbyteorder(self.order))

    def text(self):
        return bytes(code & 0xFF for code in self.numbers()).decode("latin1")

    def matrix(self):
        """The next part as an element of its own."""
        kind, size, _, data = self.begin()
        if kind != _MATRIX or data is not None or size > self.left:
            refuse(self.path, KIND, "a field of the struct is no array")
        self.left -= size
        return _Element(self.source, size, self.order, self.path)

    def skip(self, count):
        self._check(count)
        self.source.skip(count)

    def _take(self, count):
        self._check(count)
        return self.source.read(count)

    def _check(self, count):
        if count > self.left:
            raise EOFError("a part is larger than what it lies in")
        self.left -= count


def _fields(element, requested, most):
    (length,) = element.numbers()
    names = bytes(code & 0xFF for code in element.numbers(2**16)).decode("latin1")
    names = [names[start : start + length].partition("\0")[0] for start in range(0, len(names), max(length, 1))]
    arrays = {}
    for name in names:
        field = element.matrix()
        if name in requested and field.left:
            (flags, *_), shape, _ = field.numbers(), field.numbers(), field.text()
            dtype = _CLASSES.get(flags & 0xFF)
            if dtype and not flags & 0x0800 and len(shape) == 2 and min(shape) >= 0:
                count = math.prod(shape)
                if count * np.dtype(dtype).itemsize > most:
                    refuse(element.path, KIND, f"{name!r} of shape {tuple(shape)} has more than {most:,} bytes")
                # Whole numbers are stored in fewer bytes than their class has.
                values = field.array(most)
                if len(values) != count:
                    refuse(element.path, KIND, f"{name!r} has {len(values)} values, its shape is {tuple(shape)}")
                arrays[name] = values.astype(dtype, copy=False).reshape(shape, order="F")
        field.skip(field.left)
    return arrays
