import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_capsvit import data
from keras_capsvit.data import affine_sets, datasets


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder of the published format with 12 training and 4 test images per data set, made here."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    for name in ("mnist", "fashion_mnist", "cifar10", "svhn_cropped"):
        builder = tfds.builder(name, data_dir=str(folder))
        shape = data.info(name).image_shape

        has_id = "id" in builder.info.features

        def examples(n, shape=shape, has_id=has_id):
            rng = np.random.default_rng(0)
            for i in range(n):
                example = {"image": rng.integers(0, 256, shape, dtype="uint8"), "label": i % 10}
                yield i, example | ({"id": str(i)} if has_id else {})

        builder._split_generators = lambda _, f=examples: {"train": f(12), "test": f(4)}
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return folder


def test_digits_are_the_real_ones_and_every_run_sees_the_same_split():
    train, test = data.load("digits", batch_size=100)
    x, y = data.take(test, 360)
    assert x.shape == (360, 28, 28, 1)
    assert (x.dtype, y.dtype) == ("float32", "int64")
    assert x.min() == 0
    assert x.max() == 1
    assert np.bincount(y).min() >= 34
    assert sum(len(labels) for _, labels in train) == 1437
    again, _ = data.take(data.load("digits", split="test"), 360)
    np.testing.assert_array_equal(again, x)


def test_size_of_digits_can_be_chosen():
    assert data.take(data.load("digits", split="test", image_size=8), 1)[0].shape == (1, 8, 8, 1)
    assert data.take(data.load("digits", split="test", image_size=(14, 20)), 1)[0].shape == (1, 14, 20, 1)


def test_training_order_changes_with_the_epoch_and_repeats_with_the_seed():
    def two_epochs(seed):
        stream = data.load("digits", split="train", seed=seed)
        return [np.concatenate([labels for _, labels in stream]) for _ in range(2)]

    (first_epoch, second_epoch), again, reseeded = two_epochs(0), two_epochs(0), two_epochs(1)
    assert (first_epoch != second_epoch).any()
    np.testing.assert_array_equal(again, [first_epoch, second_epoch])
    assert (reseeded[0] != first_epoch).any()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "svhn_cropped"])
def test_tfds_folders(data_dir, name):
    train, test = data.load(name, data_dir=data_dir, batch_size=5)
    about = data.info(name)
    assert [len(labels) for _, labels in train] == [5, 5, 2]
    x, y = data.take(test, 4)
    assert x.shape == (4, *about.image_shape)
    assert x.dtype == "float32"
    assert 0 <= x.min() < x.max() <= 1
    np.testing.assert_allclose(x * 255, np.round(x * 255), atol=1e-4)
    assert y.max() < about.num_classes
    sliced = data.load(name, split="train[:3]", data_dir=data_dir)
    assert sum(len(labels) for _, labels in sliced) == 3


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"'mnist' was expected .*{tmp_path}.*mnist.*download=True"):
        data.load("mnist", data_dir=tmp_path)


@pytest.fixture
def copied(data_dir, tmp_path):
    """The folder of one prepared data set, to be damaged."""
    return shutil.copytree(data_dir / "mnist", tmp_path / "mnist")


def file_of(folder, pattern):
    (file,) = folder.rglob(pattern)
    return file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-3], "truncated record|corrupted record"),
        (
            lambda content: content[: 16 + int.from_bytes(content[:8], "little")],
            "it has 1 examples, where 4 are",
        ),
        (lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:], "corrupted record"),
        (lambda content: b"", "it has 0 examples, where 4 are expected"),
    ],
)
def test_records_that_are_damaged_are_found_when_they_are_asked_for(copied, damage, message):
    record = file_of(copied, "*test.tfrecord*")
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(ValueError, match=rf"test\.tfrecord-\d+-of-\d+ cannot be read as .*({message}).*download=True"):
        data.load("mnist", split="test", data_dir=copied.parent)
    assert len(data.take(data.load("mnist", split="train", data_dir=copied.parent), 12)[1]) == 12  # which is whole


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_descriptions_of_a_folder_that_are_damaged_are_named(copied, name, damage):
    file = file_of(copied, name)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a file of a prepared TFDS folder"):
        data.load("mnist", data_dir=copied.parent)


def test_folders_that_were_not_written_to_their_end(copied):
    file_of(copied, "*train.tfrecord*").unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected 1 files of 'mnist'; 1 are missing: .*train\.tfrecord"):
        data.load("mnist", data_dir=copied.parent)
    file_of(copied, "dataset_info.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"'mnist' was expected .* or was not written to its end"):
        data.load("mnist", data_dir=copied.parent)


def test_an_example_that_is_far_too_long_is_not_decoded(copied):
    record = file_of(copied, "*test.tfrecord*")
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes(5000)]))
    with tf.io.TFRecordWriter(str(record)) as writer:
        for _ in range(4):
            example = tf.train.Example(features=tf.train.Features(feature={"image": feature}))
            writer.write(example.SerializeToString())
    with pytest.raises(ValueError, match=r"an example has 5,0\d\d bytes for images of \(28, 28, 1\)"):
        data.load("mnist", split="test", data_dir=copied.parent)


def test_datasets_that_cannot_be_imported_whole_are_no_damaged_folder(copied, monkeypatch):
    monkeypatch.delattr(tfds, "builder")
    with pytest.raises(ImportError, match=r"pip install 'tensorflow-metadata<1.18'"):
        data.load("mnist", data_dir=copied)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown data set 'emnist'; expected one of digits, mnist"):
        data.load("emnist")
    with pytest.raises(ValueError, match=r"'train' and 'test'; received 'validation'"):
        data.load("digits", split="validation")


def test_arrays_of_bytes_and_of_floats_give_the_same_stream():
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype="uint8")
    labels = np.arange(7)
    x, y = data.take(data.from_arrays(images, labels, batch_size=3), 7)
    np.testing.assert_allclose(x, images / 255, atol=1e-6)
    np.testing.assert_array_equal(y, labels)
    floats, _ = data.take(data.from_arrays(images / 255, labels), 7)
    np.testing.assert_allclose(floats, x, atol=1e-6)
    shuffled = data.from_arrays(images, labels, shuffle=True)
    assert sorted(data.take(shuffled, 7)[1]) == list(range(7))


def test_arrays_that_would_spoil_a_training_are_refused():
    images, labels = np.full((4, 5, 5, 1), 0.5), np.arange(4)
    broken = images.copy()
    broken[1, 2, 3] = np.nan
    for x, y, message in [
        (broken, labels, "received 1 NaN or infinite"),
        (images * 255, labels, r"\[0, 1\]; received values in \[127.5, 127.5\]. Divide"),
        (images[..., 0], labels, r"\(n, height, width, channels\); received \(4, 5, 5\)"),
        (images, labels[:3], r"\(4,\), one id per image; received \(3,\)"),
        (images, labels - 1, "integers from 0; received int64 with minimum -1"),
        (images, labels / 2, "received float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.from_arrays(x, y)


def test_take_says_how_many_there_are():
    with pytest.raises(ValueError, match="at least 361 examples in the stream; it holds 360"):
        data.take(data.load("digits", split="test"), 361)


def _plain(base, **settings):
    return datasets._batches(base, shape=(8, 8, 1), **settings)


def _keyed(base, **settings):
    return affine_sets.keyed_batches(base, lambda images, keys, seed: images, **settings)


@pytest.mark.parametrize("make", [_plain, _keyed])
def test_a_stream_read_in_part_is_whole_the_next_time(make):
    # A cache that is still being filled from below when the next reader comes ends wherever that stopped.
    labels = np.arange(20000)
    images = tf.zeros((len(labels), 8, 8, 1), "uint8")
    for _ in range(3):
        base = (
            tf.data.Dataset.from_tensor_slices((images, labels)).map(lambda *each: each, tf.data.AUTOTUNE).prefetch(99)
        )
        stream = make(base, batch_size=128, shuffle=False, seed=0)
        data.take(stream, 1000)
        seen = np.concatenate([y for _, y in stream.as_numpy_iterator()])
        np.testing.assert_array_equal(seen, labels)
