"""Files of a training's state, without a training: whole or refused, the one before kept."""

import os

import numpy as np
import pytest

from keras_capsvit.files import FileError
from keras_capsvit.training import checkpoints

ABOUT = {"kind": {}, "model": {}, "rows": [{"epoch": 0, "loss": float("nan")}], "stopped": False, "random": {}}


def arrays():
    random = np.random.default_rng(0)
    return [random.normal(size=(3, 4)).astype("float32"), np.float32(2.5).reshape(()), np.array([1, 2], "int64")]


def saved(folder, epochs):
    written = checkpoints.Checkpoints(folder)
    for epoch in epochs:
        rows = [{"epoch": k} for k in range(epoch)]
        written.save(epoch, {**ABOUT, "rows": rows}, [array + epoch for array in arrays()])
    return written


def test_what_is_written_is_read(tmp_path):
    import ml_dtypes

    every = [*arrays(), np.zeros((0, 3), "float32"), np.ones(3, ml_dtypes.bfloat16), np.array([True, False])]
    checkpoints.write(tmp_path / "file", ABOUT, every)
    about, read = checkpoints.read(tmp_path / "file")
    assert str(about) == str(ABOUT)  # NaN and all
    for a, b in zip(every, read, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_newest_is_read_and_the_one_before_kept(tmp_path):
    folder = saved(tmp_path / "checkpoint", range(4))
    path, about, read = folder.newest()
    assert path.name == "epoch-000003.checkpoint"
    assert about["epoch"] == 3
    np.testing.assert_array_equal(read[0], arrays()[0] + 3)
    assert sorted(os.listdir(tmp_path / "checkpoint")) == ["epoch-000002.checkpoint", "epoch-000003.checkpoint"]
    folder.delete()
    assert not (tmp_path / "checkpoint").exists()
    assert folder.newest() is None
    folder.delete()  # nothing there is nothing to do


def test_every_damage_is_seen(tmp_path):
    """Cut after any byte, or any byte changed: refused by name, never read as something else."""
    path = tmp_path / "file"
    checkpoints.write(path, ABOUT, arrays())
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for k in random.choice(len(whole), 60, replace=False):
        for damaged in (whole[:k], whole[:k] + bytes([whole[k] ^ (1 << random.integers(8))]) + whole[k + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(FileError, match="file cannot be read as a checkpoint of a training"):
                checkpoints.read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileError, match="its checksum does not match"):
        checkpoints.read(path)


def test_a_damaged_newest_one_falls_back_and_says_so(tmp_path):
    folder = saved(tmp_path, range(3))
    (tmp_path / "epoch-000002.checkpoint").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"epoch-000002.checkpoint cannot be .* goes on from .*epoch-000001.checkpoint"
    ):
        _, about, read = folder.newest()
    assert about["epoch"] == 1
    np.testing.assert_array_equal(read[0], arrays()[0] + 1)
    (tmp_path / "epoch-000001.checkpoint").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        FileError, match=r"No checkpoint in .* is whole\. .*000002.*000001.*zip archive.*delete the folder to begin"
    ):
        folder.newest()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"epoch": -5}, "it says that it is of epoch -5"),
        ({"epoch": 7}, "it says that it is of epoch 7"),
        ({"epoch": "1"}, "it says that it is of epoch '1'"),
        ({"rows": []}, "it is of 1 epochs and has rows of 0"),
    ],
)
def test_nonsense_with_a_right_checksum_is_refused(tmp_path, lie, message):
    checkpoints.write(tmp_path / "epoch-000001.checkpoint", {**ABOUT, "epoch": 1, **lie}, arrays())
    with pytest.raises(FileError, match=message):
        checkpoints.Checkpoints(tmp_path).newest()


def test_an_end_at_any_call_of_the_system_leaves_a_whole_one(tmp_path, monkeypatch):
    """As if killed before each of the calls that write, flush, rename and remove, in turn."""

    class Killed(BaseException):
        pass

    def run(calls):
        folder, done = tmp_path / str(calls), -1
        with monkeypatch.context() as patch:
            left = calls

            def dying(call):
                def instead(*args, **kwargs):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise Killed
                    return call(*args, **kwargs)

                return instead

            for name in ("fsync", "replace", "unlink", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                written = checkpoints.Checkpoints(folder)
                for epoch in range(3):
                    written.save(epoch, {**ABOUT, "rows": [{}] * epoch}, [array + epoch for array in arrays()])
                    done = epoch
                return True
            except Killed:
                pass
        newest = written.newest()
        assert (-1 if newest is None else newest[1]["epoch"]) - done in (0, 1)
        if newest is not None:
            np.testing.assert_array_equal(newest[2][0], arrays()[0] + newest[1]["epoch"])
        return False

    calls = 0
    while not run(calls):
        calls += 1
    assert calls > 8
