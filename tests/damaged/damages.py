"""Damage that any file may suffer, and how archives lie about what they hold."""

import io
import pickle
import struct
import zipfile
import zlib

import numpy as np

GENERIC = ("flip", "cut", "append", "zero", "swap")
BOMB = 2**29  # bytes that a bomb unfolds to
_BOMBS = {}


class Payload:
    """What runs code when it is unpickled: it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def generic(name, data, rng, marker):
    """Bytes with a damage of GENERIC."""
    data = bytearray(data)
    if name == "flip":
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif name == "cut":
        del data[int(rng.integers(len(data))) :]
    elif name == "append":
        data += rng.bytes(int(rng.integers(1, 4096)))
    elif name == "zero":
        start = int(rng.integers(len(data)))
        count = int(rng.integers(1, 513))
        data[start : start + count] = bytes(len(data[start : start + count]))
    else:
        contents = (
            lambda: b"",
            lambda: rng.bytes(4096),
            lambda: pickle.dumps(Payload(marker)),
            lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
            lambda: b"{}",
            lambda: b"[" * 200_000,
            lambda: _saved(np.save, np.zeros((4, 4))),
            lambda: _saved(np.savez, weight=np.zeros((4, 4))),
            lambda: b"\x89HDF\r\n\x1a\n" + rng.bytes(4096),
            lambda: zipped({"config.json": b"{}", "metadata.json": b"{}"}),
        )
        data = contents[int(rng.integers(len(contents)))]()
    return bytes(data)


def _saved(write, *arrays, **named):
    file = io.BytesIO()
    write(file, *arrays, **named)
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip archive of a dict from names to bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def members(data):
    """The members of a zip archive, a dict."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def encrypted(data):
    """A zip archive that says that all members are encrypted."""
    data = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 4)
    return bytes(data)


def lying_directory(data, rng):
    """A zip archive one of whose members has another checksum, size, or place than its directory says."""
    data = bytearray(data)
    places, place = [], data.find(b"PK\x01\x02")
    while place >= 0:
        places.append(place)
        place = data.find(b"PK\x01\x02", place + 4)
    place = places[int(rng.integers(len(places)))]
    field = int(rng.choice([10, 16, 20, 24, 42]))  # method, checksum, both sizes, place
    lie = int(rng.choice([0, 1, 99, 2**16, 2**31, 2**32 - 2, int(rng.integers(2**32 - 1))]))
    if field == 10:
        struct.pack_into("<H", data, place + field, lie % 2**16)
    else:
        struct.pack_into("<I", data, place + field, lie)
    return bytes(data)


def bomb(name, begin=b""):
    """A deflated zip archive of a member that begins so and goes on with half a gigabyte of zeros."""
    if (name, begin) not in _BOMBS:
        file = io.BytesIO()
        archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with archive, archive.open(name, "w") as part:
            part.write(begin)
            for _ in range(BOMB >> 22):
                part.write(bytes(2**22))
        _BOMBS[name, begin] = file.getvalue()
    return _BOMBS[name, begin]


def zeros_deflated():
    """Half a gigabyte of zeros, by zlib."""
    if "zlib" not in _BOMBS:
        compressor = zlib.compressobj(1)
        _BOMBS["zlib"] = b"".join(compressor.compress(bytes(2**22)) for _ in range(BOMB >> 22)) + compressor.flush()
    return _BOMBS["zlib"]


def npy(array, marker=None):
    """Bytes of an .npy file; of a pickle of Payload with a marker."""
    file = io.BytesIO()
    if marker is not None:
        array = np.array([Payload(marker)], object)
    np.save(file, array, allow_pickle=marker is not None)
    return file.getvalue()


def npy_header(shape, dtype="<f4"):
    """The beginning of an .npy file of a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
