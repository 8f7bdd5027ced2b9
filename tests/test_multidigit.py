"""Two overlapping digits: what they are made of, how partners are drawn, and that nothing but the base is stored."""

import numpy as np
import pytest
import tensorflow as tf

from keras_capsvit import CapsNet, ConvNetAvg, data, training
from keras_capsvit.data import datasets
from keras_capsvit.data.multidigit import multi_mnist


@pytest.fixture
def base():
    """Thirty images whose every pixel tells which they are, of four classes of unequal size."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 3, 4, 9], [3, 12, 5, 10]))
    images = np.broadcast_to(np.arange(1, 31, dtype="uint8")[:, None, None, None] * 8, (30, 28, 28, 1)).copy()
    return images, labels.astype("int64")


def stream(base, **settings):
    return multi_mnist(
        tf.data.Dataset.from_tensor_slices(base), **{"batch_size": 7, "shuffle": False, "seed": 0, **settings}
    )


def identities(parts):
    """Numbers of the base images, from the brightness of the parts."""
    return np.round(parts.max((2, 3, 4)) * 255 / 8).astype(int) - 1


def test_an_example_is_the_clipped_sum_of_its_two_digits(base):
    images, y = data.take(stream(base, pairs=4), 120)
    assert images.shape == (120, 36, 36, 1)
    assert (images.dtype, y["classes"].dtype, y["parts"].dtype) == ("float32", "int64", "float32")
    assert y["classes"].shape == (120, 2)
    assert y["parts"].shape == (120, 2, 36, 36, 1)
    np.testing.assert_array_equal(np.minimum(y["parts"][:, 0] + y["parts"][:, 1], 1), images)
    assert images.max() == 1


def test_digits_are_of_different_classes_and_whole_within_four_pixels_of_the_centre(base):
    _, y = data.take(stream(base, pairs=40), 1200)
    assert (y["classes"][:, 0] != y["classes"][:, 1]).all()
    which = identities(y["parts"])
    np.testing.assert_array_equal(base[1][which], y["classes"])
    np.testing.assert_array_equal(which[:, 0], np.arange(1200) % 30)
    shown = y["parts"].reshape(-1, 36, 36) > 0
    assert (shown.sum((1, 2)) == 28 * 28).all()
    shifts = np.stack([shown.any(2).argmax(1), shown.any(1).argmax(1)], axis=1).reshape(-1, 2, 2) - 4
    assert {tuple(shift) for shift in shifts.reshape(-1, 2)} == {(r, c) for r in range(-4, 5) for c in range(-4, 5)}
    together = np.corrcoef(shifts.reshape(-1, 4).T)
    assert np.abs(together - np.eye(4)).max() < 0.1


def test_partners_are_drawn_evenly_from_all_other_classes(base):
    _, y = data.take(stream(base, pairs=150, batch_size=500), 4500)
    which, labels = identities(y["parts"]), base[1]
    index = int(np.flatnonzero(labels == 3)[0])
    counts = np.bincount(which[labels[which[:, 0]] == 3, 1], minlength=30)
    assert (counts[labels == 3] == 0).all()
    expected = counts.sum() / 18  # as many images are of other classes
    assert (np.abs(counts[labels != 3] - expected) < 5 * np.sqrt(expected)).all()
    assert len(set(which[which[:, 0] == index, 1])) > 12


def test_examples_depend_on_the_seed_and_not_on_batches_or_epochs(base):
    whole = data.take(stream(base, pairs=2), 60)
    for again in (data.take(stream(base, pairs=2, batch_size=60), 60), data.take(stream(base, pairs=9), 60)):
        tf.nest.map_structure(np.testing.assert_array_equal, again, whole)
    assert (data.take(stream(base, pairs=2, seed=1), 60)[1]["classes"] != whole[1]["classes"]).any()


def test_training_sees_the_same_examples_in_a_new_order_every_epoch(base):
    train = stream(base, pairs=2, shuffle=True)
    first_epoch, second_epoch = (data.take(train, 60)[0] for _ in range(2))
    fixed, _ = data.take(stream(base, pairs=2), 60)

    def as_set(images):
        return {image.tobytes() for image in images}

    assert as_set(first_epoch) == as_set(second_epoch) == as_set(fixed)
    assert (first_epoch != second_epoch).any()
    np.testing.assert_array_equal(data.take(stream(base, pairs=2, shuffle=True), 60)[0], first_epoch)


def test_without_parts_the_labels_are_multi_hot(base):
    images, y = data.take(stream(base, pairs=2), 60)
    same, labels = data.take(stream(base, pairs=2, parts=False), 60)
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(labels, np.eye(10, dtype="float32")[y["classes"]].sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [True, False])
def test_a_recipe_trains_on_pairs_and_counts_pairs(base, parts):
    few = training.Recipe(epochs=1, loss="margin" if parts else "binary_cross_entropy")
    if parts:
        model = CapsNet((36, 36, 1), 10, filters=4, num_types=1, reconstruction="conditional")
    else:
        model = ConvNetAvg((36, 36, 1), 10, filters=4)
    train, test = (stream(base, pairs=2, parts=parts, shuffle=shuffle) for shuffle in (True, False))
    accuracy = training.fit(model, train, test, few, verbose=0).history["val_accuracy"][-1]
    x, y = data.take(test, 60)
    multi_hot = np.eye(10)[y["classes"]].sum(axis=1) if parts else y
    best = np.argsort(model.predict(x, verbose=0), axis=1)[:, -2:]
    np.testing.assert_allclose(accuracy, np.mean(np.take_along_axis(multi_hot, best, axis=1).all(axis=1)), atol=1e-6)


def test_a_thousand_pairs_per_image_are_streamed(base):
    long = stream(base, pairs=1000, batch_size=128, shuffle=True)
    assert int(long.cardinality()) == int(np.ceil(30_000 / 128))
    assert data.take(long, 128)[0].shape == (128, 36, 36, 1)


def test_it_is_loaded_by_name(base, monkeypatch):
    asked = []

    def read_tfds(name, data_dir, download, image_shape):
        asked.append(name)
        return lambda split: tf.data.Dataset.from_tensor_slices(base)

    monkeypatch.setattr(datasets, "read_tfds", read_tfds)
    train, test = data.load("multi_mnist", pairs=3, batch_size=30, seed=2)
    assert asked == ["mnist"]
    assert [len(list(each)) for each in (train, test)] == [3, 3]
    x, y = data.take(test, 90)
    tf.nest.map_structure(np.testing.assert_array_equal, (x, y), data.take(stream(base, pairs=3, seed=2), 90))
    assert data.info("multi_mnist").image_shape == x.shape[1:]
    with pytest.raises(ValueError, match="options of multi_mnist are pairs, parts; received rotation"):
        data.load("multi_mnist", rotation=3)


def test_what_cannot_be_paired_is_refused(base):
    for pairs in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"pairs must be an integer from 1; received {pairs}"):
            stream(base, pairs=pairs)
    with pytest.raises(ValueError, match=r"two classes .*; received 3 images, all of class 5\. Use a larger"):
        stream((base[0][:3], np.full(3, 5)))
    with pytest.raises(ValueError, match="received cardinality 0"):
        stream((base[0][:0], base[1][:0]))
