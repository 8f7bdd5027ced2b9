"""MATLAB files: what SciPy wrote is read, sizes are looked at first, and damage is found."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from keras_capsvit.data.matlab import check_whole, struct_arrays
from keras_capsvit.files import FileError

FIELDS = ("image", "label_int")


def write(path, *, compressed, dtype="int64", **others):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (1600, 7), "uint8"), rng.integers(0, 10, (1, 7)).astype(dtype)
    around = {"name": "text", "cells": np.array([1, "two", {"three": 3}], object), "empty": [], "last": np.eye(3)}
    fields = {**around, "image": image, "label_int": labels, **others}
    savemat(path, {"before": 1.0, "set": fields, "behind": "x"}, do_compression=compressed)
    return image, labels


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["int64", "float64", "uint8", "float32", "int16"])
def test_arrays_of_a_struct(tmp_path, compressed, dtype):
    image, labels = write(tmp_path / "a.mat", compressed=compressed, dtype=dtype)
    check_whole(tmp_path / "a.mat")
    arrays = struct_arrays(tmp_path / "a.mat", "set", (*FIELDS, "name", "cells", "missing"), 1600 * 7)
    assert list(arrays) == list(FIELDS)  # the others are no arrays of numbers
    for array, expected in zip(arrays.values(), (image, labels), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_small_whole_numbers_that_matlab_stores_in_few_bytes_have_their_class(tmp_path):
    write(tmp_path / "a.mat", compressed=False, small=np.array([[1.0, 2.0, 3.0]]))
    content = (tmp_path / "a.mat").read_bytes()
    long = struct.pack("<II3d", 9, 24, 1, 2, 3)
    short = struct.pack("<HH3Bx", 2, 3, 1, 2, 3)
    assert content.count(long) == 1
    field = content.rfind(struct.pack("<I", 14), 0, content.find(long))
    assert struct.unpack_from("<II", content, field + 8) == (6, 8)
    content = content.replace(long, short + bytes(24))  # what fills it up belongs to the field, not to the numbers
    (tmp_path / "a.mat").write_bytes(content)
    small = struct_arrays(tmp_path / "a.mat", "set", ["small"], 100)["small"]
    assert (small.dtype, small.tolist()) == ("float64", [[1, 2, 3]])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_cut_file_is_found_without_reading_it(tmp_path, compressed):
    write(tmp_path / "a.mat", compressed=compressed)
    content = (tmp_path / "a.mat").read_bytes()
    for end in (50, 130, len(content) // 2, len(content) - 1):
        (tmp_path / "a.mat").write_bytes(content[:end])
        with pytest.raises(FileError, match=r"a.mat cannot be read as a MATLAB 5 file: "):
            check_whole(tmp_path / "a.mat")


def test_flipped_bits_of_a_compressed_file_are_found_by_its_checksum(tmp_path):
    write(tmp_path / "a.mat", compressed=True)
    content = (tmp_path / "a.mat").read_bytes()
    start = 136 + struct.unpack_from("<I", content, 132)[0] + 8  # behind the variable before
    stop = start + struct.unpack_from("<I", content, start - 4)[0]
    for place in np.random.default_rng(1).integers(start, stop, 20):
        flipped = bytearray(content)
        flipped[place] ^= 4
        (tmp_path / "a.mat").write_bytes(flipped)
        with pytest.raises(FileError, match=r"a.mat cannot be read as a MATLAB 5 file: "):
            struct_arrays(tmp_path / "a.mat", "set", FIELDS, 1600 * 7)


def test_sizes_are_looked_at_before_anything_is_read(tmp_path):
    path = tmp_path / "a.mat"
    write(path, compressed=False)
    with pytest.raises(FileError, match=r"'image' of shape \(1600, 7\) has more than 1,599 bytes"):
        struct_arrays(path, "set", FIELDS, 1599)
    large = zlib.compress(struct.pack("<II", 14, 2**27) + bytes(2**27), 1)
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(large)) + large)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=r"a.mat cannot be read as a MATLAB 5 file: "):
            struct_arrays(path, "set", FIELDS, 1600 * 7)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    write(path, compressed=False)
    with pytest.raises(FileError, match="it has no variable 'other'"):
        struct_arrays(path, "other", FIELDS, 100)
    with pytest.raises(FileError, match="'before' is no struct of one element"):
        struct_arrays(path, "before", FIELDS, 100)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(100))
    with pytest.raises(FileError, match=r"does not begin like one; files of MATLAB 7.3 are of another kind"):
        struct_arrays(path, "set", FIELDS, 100)
