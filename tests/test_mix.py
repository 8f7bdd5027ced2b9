"""Mixed images and their labels."""

import keras
import numpy as np
import pytest

from keras_capsvit import GraCapsNet, data, training
from keras_capsvit.losses import CrossEntropy

pytestmark = pytest.mark.tensorflow  # the streams are
CLASSES = 400


def mixed(batch_size=CLASSES, size=(9, 7), **settings):
    """Images of one class each, white noise, and what they are mixed to."""
    x = np.random.default_rng(0).uniform(size=(CLASSES, *size, 2)).astype("float32")
    stream = data.from_arrays(x, np.arange(CLASSES), batch_size=batch_size)
    return x, *data.take(data.mix(stream, CLASSES, **settings), CLASSES)


def of_neighbours(rows):
    """Shares of images themselves, and of those before them."""
    own = np.diag(rows)
    neighbour = rows[np.arange(CLASSES), np.arange(CLASSES) - 1]
    np.testing.assert_allclose(own + neighbour, 1, atol=1e-6)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    return own


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 0.8, 1.0, 50.0])
def test_mixup_is_the_mean_by_shares_that_are_beta_distributed(alpha):
    x, images, rows = mixed(mixup=alpha)
    own = of_neighbours(rows)
    share = own[:, None, None, None]
    np.testing.assert_allclose(images, share * x + (1 - share) * np.roll(x, 1, axis=0), atol=1e-6)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(own.mean() - 0.5) < 4 * np.sqrt(variance / CLASSES)
    fourth = np.mean((np.random.default_rng(0).beta(alpha, alpha, size=100_000) - 0.5) ** 4)
    assert abs(np.mean((own - 0.5) ** 2) - variance) < 4 * np.sqrt((fourth - variance**2) / CLASSES) + 1e-4


def test_cutmix_replaces_a_rectangle_and_counts_its_pixels():
    x, images, rows = mixed(cutmix=1.0)
    own, neighbours = of_neighbours(rows), np.roll(x, 1, axis=0)
    replaced = (images == neighbours).all(axis=-1)
    np.testing.assert_array_equal(images, np.where(replaced[..., None], neighbours, x))
    np.testing.assert_allclose(own, 1 - replaced.mean(axis=(1, 2)), atol=1e-6)
    for pixels in replaced:
        rectangle = pixels.any(axis=1)[:, None] & pixels.any(axis=0)[None]
        np.testing.assert_array_equal(pixels, rectangle)
        lines, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        assert (np.diff(lines) == 1).all()
        assert (np.diff(columns) == 1).all()
    # A naive replica: rectangles of a uniform area around uniform centres, cut off at the borders.
    random = np.random.default_rng(1)
    half = np.sqrt(random.uniform(size=100_000)) / 2
    sides = [
        np.minimum(centre + half, 1) - np.maximum(centre - half, 0) for centre in random.uniform(size=(2, 100_000))
    ]
    expected = 1 - sides[0] * sides[1]
    assert abs(own.mean() - expected.mean()) < 4 * expected.std() / np.sqrt(CLASSES)
    middle, corner = replaced[:, 4, 3].mean(), replaced[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert middle > corner + 0.1


def test_with_both_half_of_the_images_undergo_either():
    x, images, _ = mixed(mixup=0.8, cutmix=1.0)
    cut = ((images == x) | (images == np.roll(x, 1, axis=0))).all(axis=(1, 2, 3))
    assert abs(cut.mean() - 0.5) < 0.1  # four standard deviations


def test_epochs_differ_and_seeds_repeat():
    x, y = np.random.default_rng(0).uniform(size=(8, 4, 4, 1)).astype("float32"), np.arange(8)
    stream = data.from_arrays(x, y, batch_size=4)

    def images(mixed):
        return data.take(mixed, 8)[0]

    mixed = data.mix(stream, 8, mixup=0.8, cutmix=1.0, seed=1)
    epoch = images(mixed)
    assert np.any(epoch != images(mixed))
    np.testing.assert_array_equal(epoch, images(data.mix(stream, 8, mixup=0.8, cutmix=1.0, seed=1)))
    assert np.any(epoch != images(data.mix(stream, 8, mixup=0.8, cutmix=1.0, seed=2)))
    assert data.mix(stream, 8) is stream
    twin = data.from_arrays((255 * x).round().astype("uint8"), y, batch_size=4)
    again = images(data.mix(twin, 8, mixup=0.8, cutmix=1.0, seed=1))
    np.testing.assert_allclose(again, epoch, atol=3e-3)


def test_bytes_are_scaled_to_one():
    import tensorflow as tf

    x = np.random.default_rng(0).integers(256, size=(4, 3, 3, 1)).astype("uint8")
    stream = tf.data.Dataset.from_tensor_slices((x, np.arange(4))).batch(4)
    images, _ = data.take(data.mix(stream, 4, mixup=1.0, seed=1), 4)
    scaled = tf.data.Dataset.from_tensor_slices((x.astype("float32") / 255, np.arange(4))).batch(4)
    np.testing.assert_allclose(images, data.take(data.mix(scaled, 4, mixup=1.0, seed=1), 4)[0], atol=1e-6)


def test_labels_that_are_none():
    import tensorflow as tf

    x = np.random.default_rng(0).uniform(size=(4, 3, 3, 1)).astype("float32")

    def stream(images, labels):
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)

    for wrong in (-1, 4, 2**32):
        _, rows = data.take(data.mix(stream(x, np.array([0, 1, wrong, 3])), 4, mixup=0.8), 4)
        assert np.isfinite(rows[:2]).all()
        assert np.isnan(rows[2:]).all()  # also of the image that it is mixed into
    for labels in (np.float32([0, 1, 1.7, 3]), np.eye(4), np.array([True] * 4), np.array(list("abcd"))):
        with pytest.raises(ValueError, match=r"integer class ids of shape \(b,\); received TensorSpec"):
            data.mix(stream(x, labels), 4, mixup=0.8)
    with pytest.raises(ValueError, match="Images to mix must be floats, or uint8; received int32"):
        data.mix(stream(np.int32(x), np.arange(4)), 4, mixup=0.8)
    for wrong in (-0.1, np.nan, "1", True):
        for name in ("mixup", "cutmix"):
            with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, inf\)"):
                data.mix(stream(x, np.arange(4)), 4, **{name: wrong})
    with pytest.raises(ValueError, match="num_classes must be an integer from 2"):
        data.mix(stream(x, np.arange(4)), 1, mixup=0.8)


@pytest.mark.slow
def test_a_recipe_that_mixes_trains_on_mixed_streams_only(streams, small_model):
    recipe = training.Recipe(
        epochs=4, optimizer="adamw", learning_rate=0.01, loss="cross_entropy", label_smoothing=0.1, mixup=0.8, cutmix=1
    )
    train, test = streams
    settings = {"mixup": recipe.mixup, "cutmix": recipe.cutmix}
    model = small_model()
    history = training.fit(model, data.mix(train, 10, **settings), test, recipe, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.3  # chance: 0.1
    with pytest.raises(ValueError, match=r"mixup=0.8 and cutmix=1: expected labels \(b, M\).*data.mix\(stream"):
        training.fit(model, train, test, recipe, verbose=0)
    with pytest.raises(ValueError, match="An attack needs the class of an image; received a recipe that mixes"):
        training.adversarial_fit(model, data.mix(train, 10, **settings), test, recipe, None)
    with pytest.raises(ValueError, match=r"The loss of epoch 1 is nan"):
        training.fit(small_model(num_classes=5), data.mix(train, 5, **settings), None, recipe, verbose=0)


def test_smoothing_is_that_of_mixed_rows():
    logits = np.random.default_rng(0).normal(size=(3, 4))
    rows = np.float32([[1, 0, 0, 0], [0.3, 0.7, 0, 0], [0, 0.5, 0, 0.5]])
    model = GraCapsNet((8, 8, 1), 4, num_heads=1, filters=4)
    loss = training.loss_for(model, "cross_entropy", label_smoothing=0.1)
    assert isinstance(loss, CrossEntropy)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.mean(np.sum((0.9 * rows + 0.025) * log_probabilities, axis=1))
    np.testing.assert_allclose(loss(rows, np.float32(logits)), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing is that of loss='cross_entropy'; received .*'margin'"):
        training.loss_for(model, "margin", label_smoothing=0.1)


class Batches(keras.utils.PyDataset):
    def __init__(self, y):
        super().__init__()
        self.batch = np.random.default_rng(0).uniform(size=(len(y), 12, 12, 1)).astype("float32"), y

    def __len__(self):
        return 1

    def __getitem__(self, k):
        return self.batch


def test_py_datasets_have_to_be_mixed_too(small_model):
    recipe = training.Recipe(epochs=1, loss="cross_entropy", mixup=0.8)
    training.fit(small_model(num_classes=3), Batches(np.float32([[0.3, 0.7, 0], [0, 1, 0]])), None, recipe, verbose=0)
    with pytest.raises(ValueError, match=r"expected labels \(b, M\)"):
        training.fit(small_model(num_classes=3), Batches(np.array([0, 1])), None, recipe, verbose=0)
