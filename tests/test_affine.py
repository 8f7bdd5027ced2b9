"""Affine maps against a naive replica, the sets made with them, and the published AffNIST format."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from keras_capsvit import data
from keras_capsvit.data import affine, affine_sets, datasets

RANGES = {"rotation": 20.0, "shear": 45.0, "scale": (0.8, 1.2), "translation": 8.0}
MNIST = pathlib.Path("~/tensorflow_datasets/mnist").expanduser()


def naive_warp(image, matrix, shift):
    """Bilinear, zeros outside, one pixel and one neighbour after the other."""
    height, width, _ = image.shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    result = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            px, py = np.linalg.solve(matrix, np.array([x, y]) - centre - shift) + centre
            for row in (int(np.floor(py)), int(np.floor(py)) + 1):
                for column in (int(np.floor(px)), int(np.floor(px)) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        result[y, x] += (1 - abs(py - row)) * (1 - abs(px - column)) * image[row, column]
    return result


@pytest.fixture
def small_base(monkeypatch, digits):
    """Forty digits in the place of MNIST, forty colourful images in the place of CIFAR-10, without TFDS."""
    grey = tf.image.resize(digits[0][:40], (28, 28)).numpy().clip(0, 1)
    colour = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype="uint8")
    arrays = {"mnist": np.uint8(np.round(255 * grey)), "cifar10": colour}

    def read_tfds(name, data_dir, download, image_shape):
        return lambda split: tf.data.Dataset.from_tensor_slices((arrays[name], digits[1][:40]))

    monkeypatch.setattr(datasets, "read_tfds", read_tfds)
    return arrays, digits[1][:40]


@given(seed=st.integers(0, 10**6), height=st.integers(1, 7), width=st.integers(1, 7), channels=st.sampled_from([1, 3]))
def test_warp_equals_the_naive_one(seed, height, width, channels):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(2, height, width, channels)).astype("float32")
    matrices = np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2, 2))
    shifts = rng.uniform(-3, 3, (2, 2))
    expected = [naive_warp(*each) for each in zip(images, matrices, shifts, strict=True)]
    np.testing.assert_allclose(affine.warp(images, matrices, shifts), expected, atol=1e-4)


def test_warp_moves_to_the_right_and_downwards_about_the_centre():
    image = np.random.default_rng(0).uniform(size=(1, 6, 6, 1)).astype("float32")

    def warped(matrix, shift=(0, 0)):
        return affine.warp(image, [matrix], [shift]).numpy()[0, ..., 0]

    np.testing.assert_allclose(warped([[1, 0], [0, 1]]), image[0, ..., 0], atol=1e-6)
    np.testing.assert_allclose(warped([[1, 0], [0, 1]], (2, 1))[1:, 2:], image[0, :-1, :-2, 0], atol=1e-5)
    np.testing.assert_allclose(warped([[-1, 0], [0, 1]]), image[0, :, ::-1, 0], atol=1e-5)
    np.testing.assert_allclose(warped([[0, 1], [-1, 0]]), np.rot90(image[0, ..., 0]), atol=1e-5)


def test_random_numbers_are_those_of_splitmix64_and_look_random():
    def mix(z):
        z = (z + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    keys = [0, 1, -3, 2**31]
    expected = [[(mix((mix(5) + 2 * key + i) % 2**64) >> 40) / 2**24 for i in range(2)] for key in keys]
    np.testing.assert_array_equal(affine.uniform(keys, 5, 2), np.float32(expected))
    drawn = affine.uniform(tf.range(20_000), 0, 3).numpy()
    assert 0 <= drawn.min() < drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(drawn.var(0), 1 / 12, atol=0.002)
    neighbours = np.corrcoef(np.concatenate([drawn[:-1], drawn[1:]], axis=1).T)
    assert np.abs(neighbours - np.eye(6)).max() < 0.03


def test_every_parameter_fills_its_range_and_keeps_within():
    matrices = affine._matrices(affine.uniform(tf.range(5000), 0, 4), 20.0, 45.0, (0.8, 1.2)).numpy()
    # Undo scaling after shear after rotation: the second row is the factor of height times the turned unit vector.
    height = np.linalg.norm(matrices[:, 1], axis=-1)
    along = matrices[:, 1] / height[:, None]
    angle = np.degrees(np.arctan2(-along[:, 0], along[:, 1]))
    across = np.stack([along[:, 1], -along[:, 0]], axis=1)
    width = np.sum(matrices[:, 0] * across, axis=1)
    shear = np.degrees(np.arctan(np.sum(matrices[:, 0] * along, axis=1) / width))
    for values, low, high in [(angle, -20, 20), (shear, -45, 45), (height, 0.8, 1.2), (width, 0.8, 1.2)]:
        margin = (high - low) / 100
        assert low - 1e-3 <= values.min() < low + margin
        assert high - margin < values.max() <= high + 1e-3
    assert abs(np.corrcoef(width, height)[0, 1]) < 0.05


def test_a_transformation_depends_on_seed_and_key_alone(digits):
    images = digits[0][:9]
    all_at_once = affine.transform(images, 3, **RANGES).numpy()
    in_parts = [affine.transform(images[i : i + 2], 3, keys=np.arange(9)[i : i + 2], **RANGES) for i in range(0, 9, 2)]
    np.testing.assert_allclose(np.concatenate(in_parts), all_at_once, atol=3e-5)
    np.testing.assert_allclose(affine.transform(images[4:5], 3, keys=[4], **RANGES)[0], all_at_once[4], atol=3e-5)
    assert np.abs(affine.transform(images, 4, **RANGES) - all_at_once).max() > 0.1
    np.testing.assert_allclose(affine.transform(images, 3), images, atol=1e-6)
    assert len(np.unique(affine.transform(np.repeat(images[:1], 9, axis=0), 3, **RANGES), axis=0)) == 9
    compiled = tf.function(lambda x: affine.transform(x, 3, **RANGES))
    np.testing.assert_allclose(compiled(images), all_at_once, atol=3e-5)


def test_bytes_and_floats_are_transformed_alike():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype="uint8")
    np.testing.assert_allclose(
        affine.transform(images, 0, **RANGES), affine.transform(images / 255, 0, **RANGES), atol=3e-5
    )


@pytest.fixture
def maps(monkeypatch):
    """The matrices and shifts of the transformations that are made."""
    transformations, warp = [], affine.warp

    def recording(images, matrices, shifts):
        transformations.append((matrices, shifts))
        return warp(images, matrices, shifts)

    monkeypatch.setattr(affine, "warp", recording)
    return transformations, warp


def test_nothing_is_cut_off_and_shifts_keep_within_their_range(resized, maps):
    transformations, warp = maps
    images = np.pad(resized(200, 20), [(0, 0), (10, 10), (10, 10), (0, 0)])
    result = affine.transform(images, 0, **{**RANGES, "shear": 11.3}, keep_inside=True)
    matrices, shifts = (each.numpy() for each in transformations[0])
    seen_wider = warp(np.pad(images, [(0, 0), (30, 30), (30, 30), (0, 0)]), matrices, shifts).numpy()
    np.testing.assert_allclose(seen_wider[:, 30:70, 30:70], result, atol=1e-4)
    seen_wider[:, 30:70, 30:70] = 0
    assert seen_wider.max() < 1e-4
    assert 7.5 < np.abs(shifts).max() <= 8
    affine.transform(images, 0, **RANGES)  # the same draws, not kept inside
    np.testing.assert_array_equal(transformations[1][0][:, 1], matrices[:, 1])
    assert np.abs(transformations[1][1]).max() > 7.9


def test_what_does_not_fit_is_centred_and_what_is_black_goes_anywhere(maps):
    transformations, _ = maps
    affine.transform(np.ones((4, 9, 9, 1)), 0, rotation=20, scale=(1.2, 1.2), translation=5, keep_inside=True)
    np.testing.assert_allclose(transformations[0][1], 0, atol=1e-5)
    affine.transform(np.zeros((500, 9, 9, 1)), 0, rotation=20, translation=5, keep_inside=True)
    assert 4.9 < np.abs(transformations[1][1]).max() <= 5


def test_images_are_placed_exactly_and_everywhere():
    images = np.random.default_rng(0).uniform(0.1, 1, size=(300, 3, 4, 2)).astype("float32")
    placed = affine.place(images, 6, 0).numpy()
    corners = [tuple(np.argwhere(picture.any(-1)).min(0)) for picture in placed]
    assert set(corners) == {(row, column) for row in range(4) for column in range(3)}
    for image, picture, (row, column) in zip(images, placed, corners, strict=True):
        np.testing.assert_array_equal(picture[row : row + 3, column : column + 4], image)
        assert np.count_nonzero(picture) == image.size
    np.testing.assert_array_equal(affine.place(images[7:8], 6, 0, keys=[7])[0], placed[7])


@pytest.mark.samples(1)
@pytest.mark.parametrize("name", ["affine_mnist", "expanded_mnist", "affine_cifar10"])
def test_streams_repeat_with_the_seed_and_train_streams_change_with_the_epoch(small_base, name):
    def epochs(split, **settings):
        stream = data.load(name, split=split, **{"batch_size": 16, **settings})
        return [data.take(stream, 40) for _ in range(2)]

    (x, y), (again, _) = epochs("test")
    assert x.shape == (40, *data.info(name).image_shape)
    assert (x.dtype, y.dtype) == ("float32", "int64")
    assert 0 <= x.min() < x.max() <= 1
    np.testing.assert_array_equal(y, small_base[1])
    np.testing.assert_array_equal(again, x)
    np.testing.assert_allclose(epochs("test", batch_size=7)[0][0], x, atol=3e-5)
    assert np.abs(epochs("test", seed=1)[0][0] - x).max() > 0.1

    (first_epoch, first_labels), (second_epoch, _) = epochs("train")
    assert sorted(first_labels) == sorted(y)
    assert len(np.unique(np.concatenate([first_epoch, second_epoch, x]), axis=0)) > 115  # places may agree by chance
    for repeated in (epochs("train"), epochs("train", batch_size=7)):
        np.testing.assert_allclose([images for images, _ in repeated], [first_epoch, second_epoch], atol=3e-5)


def test_a_single_image_moves_with_every_epoch():
    base = tf.data.Dataset.from_tensors((np.ones((28, 28, 1), "float32"), 0))
    stream = affine_sets.expanded_mnist(base, batch_size=1, shuffle=True, seed=0)
    assert len(np.unique([data.take(stream, 1)[0] for _ in range(5)], axis=0)) > 3


def test_sets_are_what_their_names_say(small_base):
    grey, colour = (images / 255 for images in small_base[0].values())
    padded = np.pad(grey, [(0, 0), (6, 6), (6, 6), (0, 0)])
    expected = affine.transform(padded, 0, **RANGES, keep_inside=True)
    x, _ = data.take(data.load("affine_mnist", split="test"), 40)
    np.testing.assert_allclose(x, expected, atol=1e-5)
    still, _ = data.take(data.load("affine_mnist", split="test", rotation=0, shear=0, scale=(1, 1), translation=0), 40)
    np.testing.assert_allclose(still, padded, atol=1e-5)
    x, _ = data.take(data.load("affine_cifar10", split="test", rotation=60), 40)
    np.testing.assert_allclose(x, affine.transform(colour, 0, rotation=60, translation=2), atol=1e-5)
    x, _ = data.take(data.load("expanded_mnist", split="test"), 40)
    np.testing.assert_allclose(x.sum((1, 2, 3)), grey.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.skipif(not MNIST.is_dir(), reason="no prepared MNIST")
def test_few_real_digits_are_too_wide_for_the_default_ranges(maps):
    images, labels = data.take(data.load("mnist", split="test", data_dir=MNIST.parent), 2000)
    padded = np.pad(images, [(0, 0), (6, 6), (6, 6), (0, 0)])
    result = affine.transform(padded, 0, **RANGES, keep_inside=True)
    wider = maps[1](np.pad(padded, [(0, 0), (20, 20), (20, 20), (0, 0)]), *maps[0][0]).numpy()
    cut = np.abs(wider.sum((1, 2, 3)) - result.numpy().sum((1, 2, 3))) > 1e-2
    assert cut.mean() < 0.005
    x, y = data.take(data.load("affine_mnist", split="test[:2000]", data_dir=MNIST.parent), 2000)
    np.testing.assert_allclose(x, result, atol=1e-4)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rotation": 181}, r"rotation must be a number in \[0, 180\]; received 181"),
        ({"rotation": np.nan}, r"rotation must be a number in .* received nan"),
        ({"shear": 90}, r"shear must be a number in \[0, 90\); received 90"),
        ({"scale": (1.2, 0.8)}, r"scale must be a pair of factors, 0 < low <= high; received \(1.2, 0.8\)"),
        ({"scale": (0, 1)}, "scale must be a pair"),
        ({"scale": 1.2}, "scale must be a pair .* received 1.2"),
        ({"translation": -1}, r"translation must be a number in \[0, inf\); received -1"),
    ],
)
def test_impossible_ranges_are_refused_at_once(small_base, arguments, message):
    with pytest.raises(ValueError, match=message):
        affine.transform(np.zeros((1, 5, 5, 1)), 0, **arguments)
    with pytest.raises(ValueError, match=message):
        data.load("affine_mnist", **arguments)


def test_images_that_would_spoil_the_result_are_refused():
    for images, message in [
        (np.zeros((5, 5, 1)), r"\(n, height, width, channels\), float in \[0, 1\] or uint8; received \(5, 5, 1\)"),
        (np.zeros((1, 5, 5, 1), "int32"), "received .* of int32"),
        (np.full((1, 5, 5, 1), np.nan), "must be finite; received NaN"),
        (np.full((1, 5, 5, 1), np.inf), "must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            affine.transform(images, 0)
    two = np.zeros((2, 5, 5, 1))
    for keys, received in [([7], r"\(1,\) of int64"), ([0.5, 1.5], r"\(2,\) of float64")]:
        for function in (
            lambda keys: affine.transform(two, 0, keys=keys),
            lambda keys: affine.place(two, 9, 0, keys=keys),
        ):
            with pytest.raises(ValueError, match=rf"integers of shape \(2,\), one per image; received {received}"):
                function(keys)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\) and shifts \(2, 2\).*received \(1, 2, 2\) and \(2, 2\)"):
        affine.warp(two, np.eye(2)[None], np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite and invertible"):
        affine.warp(two, np.zeros((2, 2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="must hold images of 5x6; received size=5"):
        affine.place(np.zeros((1, 5, 6, 1)), 5, 0)


def test_options_and_sizes_of_other_sets_are_refused(small_base):
    with pytest.raises(ValueError, match="options of affine_cifar10 are rotation, translation; received shear"):
        data.load("affine_cifar10", shear=1)
    with pytest.raises(ValueError, match="options of mnist are none; received rotation"):
        data.load("mnist", rotation=1)
    with pytest.raises(ValueError, match="affine_mnist has images of 40x40 only; received image_size=28"):
        data.load("affine_mnist", image_size=28)
    endless = tf.data.Dataset.from_tensors((np.zeros((28, 28, 1)), 0)).repeat()
    for base, cardinality in [(endless, -1), (endless.take(0), 0)]:
        with pytest.raises(ValueError, match=f"known length; received cardinality {cardinality}. Choose"):
            affine_sets.expanded_mnist(base, batch_size=1, shuffle=False, seed=0)


def write_affnist(file, images, labels):
    """The published format: a column per image, row after row, among fields that are not read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "image": images.reshape(len(images), -1).T,
        "label_int": labels[None],
        "label_one_of_n": np.eye(10)[labels].T,
    }
    savemat(file, {"affNISTdata": fields})


@pytest.fixture
def published(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 40, 40), dtype="uint8"), np.arange(64) % 10
    for split in ("training_and_validation_batches", "test_batches"):
        folder = tmp_path / "affnist" / "transformed" / split
        for number, part in zip(sorted(range(1, 33), key=str), np.split(np.arange(64), 32), strict=True):
            write_affnist(folder / f"{number}.mat", images[part], labels[part])
    return tmp_path, images, labels


@pytest.mark.parametrize("inside", ["", "affnist", "affnist/transformed"])
def test_affnist_files_are_read_as_published(published, inside):
    folder, images, labels = published
    train, test = data.load("affnist", data_dir=folder / inside, batch_size=5)
    x, y = data.take(test, 64)
    np.testing.assert_allclose(x, images[..., None] / 255, atol=1e-6)
    np.testing.assert_array_equal(y, labels)
    assert (x.dtype, y.dtype) == ("float32", "int64")
    orders = [data.take(train, 64)[1] for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(labels)
    assert (orders[0] != orders[1]).any()
    np.testing.assert_array_equal([data.take(data.load("affnist", split="train", data_dir=folder), 64)[1]], orders[:1])


def test_an_incomplete_affnist_is_refused_or_asked_for(published):
    folder, images, _ = published
    batches = folder / "affnist" / "transformed" / "test_batches"
    for number in (3, 17):
        (batches / f"{number}.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"1.mat to 32.mat .*_batches; 2 are missing: 3.mat, 17.mat. Unpack"):
        data.load("affnist", split="test", data_dir=folder)
    there = data.load("affnist", split="test", data_dir=folder, allow_missing=True)
    assert sum(len(y) for _, y in there) == len(images) - 4
    (batches / "3.mat").write_bytes((batches / "4.mat").read_bytes())
    (batches / "17.mat").write_bytes((batches / "4.mat").read_bytes())
    (batches / "copy.mat").write_bytes((batches / "4.mat").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"test_batches; there are others: copy.mat. Unpack the whole set"):
        data.load("affnist", split="test", data_dir=folder)


def test_a_damaged_affnist_file_is_named_before_or_while_it_is_read(published):
    folder, _, _ = published
    file = folder / "affnist" / "transformed" / "test_batches" / "7.mat"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"7.mat cannot be read as a MATLAB 5 file: it ends 8 bytes too early"):
        data.load("affnist", split="test", data_dir=folder)
    file.write_bytes(whole.replace(b"label_int", b"label_Int"))
    stream = data.load("affnist", split="test", data_dir=folder)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"7.mat cannot be read as .*: .*arrays \['image'\]"):
        data.take(stream, 64)


def test_affnist_is_looked_for_in_the_folder_of_tfds_and_the_single_test_file_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    write_affnist(tmp_path / "affnist" / "test.mat", np.zeros((2, 40, 40), "uint8"), np.array([3, 4]))
    np.testing.assert_array_equal(data.take(data.load("affnist", split="test"), 2)[1], [3, 4])


def test_missing_affnist_files_are_named(tmp_path):
    message = rf"test_batches/\*.mat or test.mat in one of .*{tmp_path}/transformed.*University of Toronto.*data_dir"
    with pytest.raises(FileNotFoundError, match=message):
        data.load("affnist", split="test", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'train' and 'test', without slices; received 'test\[:10\]'"):
        data.load("affnist", split="test[:10]", data_dir=tmp_path)


def test_files_of_another_format_are_refused_before_training(tmp_path):
    def load():
        return data.load("affnist", split="test", data_dir=tmp_path)

    file = tmp_path / "test.mat"
    write_affnist(file, np.zeros((2, 28, 28), "uint8"), np.array([3, 4]))
    with pytest.raises(ValueError, match=r"AffNIST file: expected .* \(1600, n\).*; received \(784, 2\) of uint8"):
        load()
    write_affnist(file, np.zeros((2, 40, 40)), np.array([3, 4]))
    with pytest.raises(ValueError, match="of float64"):
        load()
    savemat(file, {"images": np.zeros(3)})
    with pytest.raises(ValueError, match=r"test.mat cannot be read as .*: it has no variable 'affNISTdata'"):
        load()
    file.write_text("not a MATLAB file, but long enough for a header" * 9)
    with pytest.raises(ValueError, match=r"test\.mat cannot be read as a MATLAB 5 file: it does not begin like one"):
        load()
