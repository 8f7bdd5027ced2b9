"""Files: refused in one form, shapes before values, and written whole or not at all."""

import os
import pathlib
import signal
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from keras_capsvit import files
from keras_capsvit.files import whole


def test_whatever_goes_wrong_is_one_error_that_names_the_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"\x80\x04abc")
    message = (
        r"a\.npz cannot be read as a thing: KeyError: 'b'\. It is .*begins like a pickle, which is never read.*again"
    )
    with pytest.raises(files.FileError, match=message), files.reading(path, "a thing"):
        raise KeyError("b")
    with pytest.raises(files.FileError, match="the inner one"), files.reading(path, "a thing"):
        raise files.FileError("the inner one")
    with pytest.raises(FileNotFoundError), files.reading(path, "a thing"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"Expected a thing at .*missing; there is no such file"):
        files.check_exists(tmp_path / "missing", "a thing")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b'{"a": 1', "JSONDecodeError"),
        (b"\xff\xfe{}", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"[]" + b" " * 100, "it has 102 bytes, more than 100"),
    ],
)
def test_json_that_is_none(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(files.FileError, match=f"a.json cannot be read as a list: .*{reason}"):
        files.read_json(path, "a list", most=100 if reason.endswith("100") else 2**24)


def test_arrays_are_read_as_numpy_wrote_them(tmp_path):
    rng = np.random.default_rng(0)
    written = {"a.weight": rng.normal(size=(3, 4)).T, "b": np.float32(2), "n": np.arange(5), "none": np.zeros((0, 3))}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **written)
        with files.arrays_of(tmp_path / "a.npz") as arrays:
            assert arrays.shapes == {name: array.shape for name, array in written.items()}
            assert arrays.floats == {"a.weight", "b", "none"}
            assert arrays.compressed == (set(written) if save is np.savez_compressed else set())
            for name, array in written.items():
                np.testing.assert_array_equal(arrays.read(name), array)


def member(tmp_path, content, **settings):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("a.npy", content)
    return path


def npy(shape, dtype="<f4", values=b"", version=1):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + values


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy((2,), values=bytes(4)), r"'a' has 7\d bytes, float32 of shape \(2,\) needs 7\d"),
        (npy((2**40, 2**40), values=bytes(4)), "of shape .* needs 4,835,703,278,458"),
        (npy((-2, -1), values=bytes(8)), r"float32 of shape \(-2, -1\)"),
        (npy((2,), values=bytes(8), version=2), "'a' is no array of plain numbers"),
        (npy("(" * 300), "(TokenError|Cannot parse header)"),
        (b"\x93NUMPY", "ValueError: EOF"),
    ],
)
def test_headers_are_not_believed(tmp_path, content, reason):
    with pytest.raises(files.FileError, match=f"a.npz cannot be read as an .npz file of plain arrays: .*{reason}"):
        files.arrays_of(member(tmp_path, content))


def test_no_pickle_no_code_and_no_password(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{}], object), b=np.ones(2))
    with pytest.raises(files.FileError, match="'a' holds objects of Python, which are never unpickled"):
        files.arrays_of(path)
    np.savez(path, a=np.array(["text"]), b=np.ones(2))
    with files.arrays_of(path) as arrays:
        assert arrays.floats == {"b"}
        with pytest.raises(files.FileError, match="'a' is no array of plain numbers"):
            arrays.read("a")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(files.FileError, match=r"'a' is encrypted.*Write it without a password"):
        files.arrays_of(path)
    with pytest.raises(files.FileError, match="in a way that NumPy does not write"):
        files.arrays_of(member(tmp_path, npy((), values=bytes(4)), compression=zipfile.ZIP_BZIP2))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy((), values=bytes(4)))
        archive.writestr("a.npy", npy((), values=bytes(4)))
    with pytest.raises(files.FileError, match="it has two arrays 'a'"):
        files.arrays_of(path)


def test_a_flipped_value_of_an_npz_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(5000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with files.arrays_of(path) as arrays, pytest.raises(files.FileError, match="Bad CRC-32"):
        arrays.read("a")


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "first")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("seco")
        assert path.read_text() == "first"
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    with files.replacing(path) as temporary:
        temporary.write_text("second")
        assert temporary.suffix == ".txt"
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("a.txt", "second")]


WRITES = """
import pathlib, sys, types
sys.modules["keras_capsvit"] = package = types.ModuleType("keras_capsvit")
package.__path__ = [sys.argv[2]]
from keras_capsvit import files
temporary = files.aside(sys.argv[1])
temporary.mkdir()
(temporary / "part").write_text("half of")
print(temporary.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    command = [sys.executable, "-c", WRITES, tmp_path, pathlib.Path(files.__file__).parents[1]]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        dead, living = [tmp_path / writer.stdout.readline().strip() for writer in writers]
        host, system, *rest = files.aside(tmp_path).name.removeprefix(".tmp-").split("-")
        elsewhere = tmp_path / "-".join([".tmp-0123456789ab", system, *rest])
        restarted = tmp_path / "-".join([f".tmp-{host}", "0123456789ab", *rest])
        long_ago = tmp_path / "-".join([f".tmp-{host}", "0123456789ab", "1", "2", "3"])
        unknown = tmp_path / ".tmp-0123"
        for folder in (elsewhere, restarted, long_ago, unknown):
            folder.mkdir()
        before = time.time() - 2 * 24 * 60 * 60
        os.utime(long_ago, (before, before))
        os.utime(elsewhere, (before, before))
        writers[0].send_signal(signal.SIGKILL)
        for _ in range(500):  # it need not have been waited for: what is left of it runs no more
            if whole._start(str(writers[0].pid)) == "0":
                break
            time.sleep(0.01)
        files.remove_abandoned(tmp_path)
        assert set(tmp_path.iterdir()) == {living, elsewhere, restarted, unknown}
        assert not dead.exists()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
