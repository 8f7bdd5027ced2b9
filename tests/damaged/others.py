"""Files of data sets, exported models, pictures, and results."""

import importlib
import io
import json
import pathlib
import struct
import sys
import zlib

import h5py
import numpy as np
import tensorflow as tf
from PIL import Image
from scipy.io import savemat

from damaged import damages, weights
from damaged.damages import GENERIC
from keras_capsvit import data, serving
from keras_capsvit.evaluate.progress import Progress

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


class Kind:
    """A kind of files in a folder.

    Args:
        special: dict from damages to callables ``(file, rng, marker) → None``, which change the file in place.
        unnoticed: see ``Weights``.
    """

    errors = (ValueError, FileNotFoundError)

    def __init__(self, special=None, unnoticed=()):
        self.special, self.unnoticed = special or {}, unnoticed
        self.damages = (*GENERIC, *self.special)

    def files(self, folder):
        """Files that may be damaged."""
        return [path for path in sorted(folder.rglob("*")) if path.is_file()]

    def damage(self, name, folder, rng, marker):
        files = self.files(folder)
        file = files[int(rng.integers(len(files)))]
        if name in self.special:
            self.special[name](file, rng, marker)
        else:
            file.write_bytes(damages.generic(name, file.read_bytes(), rng, marker))
        return [file]

    def unchanged(self):
        return True


class AffNist(Kind):
    """One MATLAB file, compressed or not."""

    errors = (ValueError, FileNotFoundError, tf.errors.InvalidArgumentError)

    def __init__(self, compressed, **settings):
        super().__init__(MAT, **settings)
        self.compressed = compressed

    def make(self, folder):
        rng = np.random.default_rng(0)
        write_mat(
            folder / "test.mat",
            rng.integers(0, 256, (1600, 20), "uint8"),
            rng.integers(0, 10, (1, 20)),
            self.compressed,
        )

    def read(self, folder):
        stream = data.load("affnist", split="test", data_dir=folder)
        return [np.concatenate(arrays) for arrays in zip(*stream.as_numpy_iterator(), strict=True)]


def write_mat(file, image, labels, compressed, **others):
    fields = {"affine": np.eye(3, 20), "text": "written here", "cells": np.array([1, "two"], object)}
    savemat(file, {"affNISTdata": {**fields, "image": image, "label_int": labels, **others}}, do_compression=compressed)


def _mat(image_of=None, labels_of=None, **others):
    def change(file, rng, marker):
        image, labels = rng.integers(0, 256, (1600, 20), "uint8"), rng.integers(0, 10, (1, 20))
        image, labels = image_of(image) if image_of else image, labels_of(labels) if labels_of else labels
        write_mat(file, image, labels, bool(rng.integers(2)), **others)

    return change


def _mat_lie(file, rng, marker):
    """Another number in one of the tags and headers, which begin the file and its parts."""
    content = bytearray(file.read_bytes())
    place = 128 + 4 * int(rng.integers(60 if len(content) > 20_000 else 2))
    struct.pack_into("<I", content, place, int(rng.choice([0, 1, 2**16, 2**31, 2**32 - 1, rng.integers(2**32)])))
    file.write_bytes(content)


def _mat_bomb(file, rng, marker):
    """A compressed part that unfolds to half a gigabyte: of the image, or of anything."""
    header = file.read_bytes()[:128]
    if rng.integers(2):
        part = damages.zeros_deflated()
    else:
        count = damages.BOMB // 1600
        whole = io.BytesIO()
        savemat(whole, {"affNISTdata": {"image": np.zeros((1600, 2), "uint8"), "label_int": np.zeros((1, 2))}})
        begin = whole.getvalue()[128:].replace(struct.pack("<II", 1600, 2), struct.pack("<II", 1600, count))
        begin = begin.replace(struct.pack("<II", 2, 3200), struct.pack("<II", 2, 1600 * count))
        compressor = zlib.compressobj(1)
        part = compressor.compress(begin[:300]) + zlib.compress(bytes(2**20), 1)
    file.write_bytes(header + struct.pack("<II", 15, len(part)) + part)


def _mat_nested(file, rng, marker):
    """Cells in cells, a hundred thousand deep."""
    inner = b""
    head = struct.pack("<IIIIII", 6, 8, 1, 0, 5, 8) + struct.pack("<II", 1, 1) + struct.pack("<II", 1, 0)
    depth = 100_000
    sizes = [len(head)]
    for _ in range(depth - 1):
        sizes.append(len(head) + 8 + sizes[-1])
    inner = b"".join(struct.pack("<II", 14, size % 2**32) + head for size in reversed(sizes))
    fields = struct.pack("<IIIIII", 6, 8, 2, 0, 5, 8) + struct.pack("<II", 1, 1)
    fields += struct.pack("<II", 1, 11) + b"affNISTdata".ljust(16, b"\0")
    fields += struct.pack("<HHI", 5, 4, 8) + struct.pack("<II", 1, 16) + b"image".ljust(8, b"\0") + b"label_in"
    content = fields + inner
    part = zlib.compress(struct.pack("<II", 14, len(content)) + content)
    file.write_bytes(file.read_bytes()[:128] + struct.pack("<II", 15, len(part)) + part)


def _mat_73(file, rng, marker):
    with h5py.File(file, "w", userblock_size=512) as hdf5:
        hdf5["affNISTdata/image"] = np.zeros((2, 1600), "uint8")
    content = bytearray(file.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    file.write_bytes(content)


MAT = {
    "image of floats": _mat(lambda image: image / 255),
    "other shape": _mat(lambda image: image[:784]),
    "no class": _mat(labels_of=lambda labels: labels + 7),
    "NaN": _mat(labels_of=lambda labels: np.where(labels == labels[0, 0], np.nan, labels)),
    "fewer labels": _mat(labels_of=lambda labels: labels[:, 1:]),
    "cells": _mat(lambda image: np.array([image], object)),
    "lie in a header": _mat_lie,
    "bomb": _mat_bomb,
    "nested": _mat_nested,
    "MATLAB 7.3": _mat_73,
}


class Tfds(Kind):
    """The prepared folder of MNIST."""

    def __init__(self):
        super().__init__({"missing": lambda file, rng, marker: file.unlink(), "large picture": _large_picture})

    def make(self, folder):
        import tensorflow_datasets as tfds

        builder = tfds.builder("mnist", data_dir=str(folder))

        def examples(count):
            rng = np.random.default_rng(0)
            for number in range(count):
                image = rng.integers(0, 256, (28, 28, 1), "uint8")
                yield number, {"image": image, "label": int(rng.integers(10))}

        builder._split_generators = lambda _: {"train": examples(8), "test": examples(4)}
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        info = next(folder.rglob("dataset_info.json"))
        # It names the folder that it was written in, in which there will be nothing.
        info.write_text(json.dumps({**json.loads(info.read_text()), "location": {}}))

    def files(self, folder):
        return [file for file in super().files(folder) if "label.labels" not in file.name]

    def read(self, folder):
        streams = data.load("mnist", split=("train[:100%]", "test"), data_dir=folder)
        return [array for stream in streams for batch in stream.as_numpy_iterator() for array in batch]


def _large_picture(file, rng, marker):
    """A record with a picture of 16,000 x 16,000 pixels, and the right checksums."""
    record = next(file.parent.glob("*test*tfrecord*"))
    picture = io.BytesIO()
    Image.new("1", (16_000, 16_000)).save(picture, "PNG")
    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture.getvalue()])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
    }
    with tf.io.TFRecordWriter(str(record)) as writer:
        for _ in range(4):
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


class Exported(Kind):
    """An exported model, of which some files may be damaged: those with a part of a name."""

    def __init__(self, part, special=None, unnoticed=()):
        super().__init__(special, unnoticed)
        self.part = part

    def make(self, folder):
        model = weights.transformer()
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(size=array.shape).astype("float32") for array in model.get_weights()])
        serving.export(model, folder, taps=[])

    def files(self, folder):
        return [file for file in super().files(folder) if self.part in str(file.relative_to(folder))]

    def read(self, folder):
        served = serving.load(folder)
        x = np.random.default_rng(1).uniform(size=(2, 8, 8, 1)).astype("float32")
        return [served(x).numpy()]


def _card(change):
    def damage(file, rng, marker):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


CARD = {
    "no object": _card(lambda card: [card]),
    "NaN": _card(lambda card: {**card, "input": {**card["input"], "range": [float("nan"), 1.0]}}),
    "range": _card(lambda card: {**card, "input": {**card["input"], "range": "[0, 1]"}}),
    "name": _card(lambda card: {**card, "name": {"a": 1}}),
    "bomb": lambda file, rng, marker: file.write_bytes(b" " * damages.BOMB),
}


class Picture(Kind):
    """A picture as the examples read it."""

    def __init__(self, suffix):
        super().__init__({"bomb": self.bomb, "postscript": self.postscript}, ("flip", "zero", "cut"))
        self.suffix = suffix

    def make(self, folder):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), "uint8")
        Image.fromarray(pixels).save(folder / f"picture.{self.suffix}")

    def read(self, folder):
        sys.path.insert(0, str(EXAMPLES))
        try:
            return [importlib.import_module("pictures").read(folder / f"picture.{self.suffix}", (16, 16))]
        finally:
            sys.path.remove(str(EXAMPLES))

    @staticmethod
    def bomb(file, rng, marker):
        size = int(rng.choice([9_000, 16_000, 60_000]))
        Image.new("1", (16_000, 16_000)).save(file, "PNG")
        content = bytearray(file.read_bytes())
        struct.pack_into(">II", content, 16, size, size)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
        file.write_bytes(content)

    @staticmethod
    def postscript(file, rng, marker):
        file.write_bytes(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({marker}) (w) file\nshowpage\n".encode())


class Results(Kind):
    """What an interrupted evaluation has measured."""

    def __init__(self):
        pickles = lambda data, rng, marker: weights.NPZ["pickle"](data, rng, marker)  # noqa: E731
        changes = {name: weights.NPZ[name] for name in ("dtype", "lie in a header", "lie in directory", "encrypted")}
        changes |= {"pickle": pickles, "bomb": weights.NPZ["bomb"]}
        super().__init__({name: _in_place(change) for name, change in changes.items()})

    def make(self, folder):
        self.read(folder)

    def read(self, folder):
        rng = np.random.default_rng(0)
        with Progress(folder, "results", {"number": 3}, total=None) as progress:
            for _ in range(4):
                x, y = rng.normal(size=(2, 3, 3, 1)), np.zeros(2, int)
                progress.batch(lambda x=x: {"mean": x.mean(axis=(1, 2, 3)), "large": x[:, 0, 0, 0] > 0}, x, y)
        return list(progress.results().values())


def _in_place(change):
    def damage(file, rng, marker):
        file.write_bytes(change(file.read_bytes(), rng, marker))

    return damage


KINDS = {
    "mat": AffNist(False, unnoticed=("flip", "zero", "lie in a header")),
    "mat deflated": AffNist(True),
    "tfds": Tfds(),
    "model card": Exported("model_card.json", CARD),
    "SavedModel": Exported("saved_model.pb", unnoticed=("flip", "zero", "append", "cut")),
    "variables": Exported("variables/"),
    "png": Picture("png"),
    "jpeg": Picture("jpg"),
    "results": Results(),
}
