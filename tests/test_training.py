import warnings

import keras
import numpy as np
import pytest
import replicas

from keras_capsvit import GraCapsNet, MarginLoss, data, training
from keras_capsvit.models import CapsNet, ConvNetAvg, ConvNetCR, VisionTransformer
from keras_capsvit.training import recipes

pytestmark = pytest.mark.tensorflow  # the streams are
FEW = training.Recipe(epochs=3, learning_rate=0.003, schedule="cosine")


def convnet(num_classes=10):
    return ConvNetAvg((12, 12, 1), num_classes, kernel_size=3, filters=16)


class Batches(keras.utils.PyDataset):
    """Batches that come in another order after every epoch."""

    def __init__(self, x, y, batches=2):
        super().__init__()
        self.x, self.y, self.batches = x, y, batches
        self.random, self.seen = np.random.default_rng(0), []
        self.on_epoch_end()

    def __len__(self):
        return self.batches

    def __getitem__(self, k):
        part = self.order[k * 8 : k * 8 + 8]
        self.seen.append(tuple(part))
        return self.x[part], self.y[part]

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.x))


ONE = training.Recipe(epochs=1, loss="cross_entropy")


def test_trains_and_writes_its_log(streams, small_model, tmp_path):
    model = small_model()
    history = training.fit(model, *streams, FEW, work=tmp_path, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "checkpoint").exists()
    assert isinstance(model.loss, MarginLoss)
    assert float(model.optimizer.learning_rate) < 1e-6  # the end of the cosine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "loss"),
    [
        (GraCapsNet, "log_lengths"),
        (GraCapsNet, "binary_cross_entropy"),
        (ConvNetCR, "binary_cross_entropy"),
    ],
)
def test_other_losses_train_on_class_ids_from_the_stock_streams(build, loss):
    train, test = data.load("digits", batch_size=64, image_size=12)
    train, test = train.take(8), test.take(1)
    settings = {"num_heads": 4, "primary_dim": 4} if build is GraCapsNet else {"reconstruction_weight": 0.0}
    model = build((12, 12, 1), 10, filters=16, kernel_size=3, **settings)
    recipe = training.Recipe(epochs=3, learning_rate=0.01, loss=loss)
    history = training.fit(model, train, test, recipe, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.3  # chance: 0.1
    x, y = data.take(test, 64)
    scores = np.float64(model.predict(x, verbose=0))
    if loss == "log_lengths":
        expected = replicas.log_lengths(y, scores)
    else:
        probabilities = scores if build is GraCapsNet else 1 / (1 + np.exp(-scores))
        expected = -np.mean(np.log(np.where(np.eye(10)[y] == 1, probabilities, 1 - probabilities)))
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-4)


@pytest.mark.slow
def test_stops_at_the_accuracy(streams):
    recipe = training.Recipe(epochs=50, learning_rate=0.01, loss="cross_entropy", stop_at=0.3)
    history = training.fit(convnet(), *streams, recipe, verbose=0).history["val_accuracy"]
    assert len(history) < 50
    assert history[-1] >= 0.3
    assert all(accuracy < 0.3 for accuracy in history[:-1])


def test_optimizers_and_schedules(streams):
    recipe = training.Recipe(epochs=3, optimizer="sgd", learning_rate=0.1, schedule=(1, 2), loss="cross_entropy")
    model = convnet()
    training.fit(model, *streams, recipe, verbose=0)
    assert model.optimizer.momentum == 0.9
    schedule = model.optimizer._learning_rate
    np.testing.assert_allclose([float(schedule(n)) for n in (0, 3, 4, 7, 8)], [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-5)


@pytest.mark.samples(2)
@pytest.mark.parametrize("name", training.RECIPES)
def test_every_named_recipe_begins_and_ends_as_it_says(name, small_model):
    recipe = training.RECIPES[name]
    model = small_model() if recipe.loss in ("margin", "log_lengths") else convnet()
    recipes.compile_by(model, recipe, 10)
    ends = {"constant": recipe.learning_rate, "cosine": 0.0, (50,): recipe.learning_rate / 10}
    last = recipe.epochs * 10
    for step, expected in ((recipe.warmup * 10, recipe.learning_rate), (last, ends[recipe.schedule])):
        model.optimizer.iterations.assign(step)
        assert float(model.optimizer.learning_rate) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    x, y = np.random.default_rng(0).uniform(size=(2, 12, 12, 1)).astype("float32"), np.array([0, 1])
    model.optimizer.iterations.assign(0)
    assert np.isfinite(model.train_on_batch(x, y)).all()


def test_weights_decay_but_biases_norms_and_tokens():
    size = {"width": 8, "depth": 1, "num_heads": 2, "mlp_units": 8}
    model = VisionTransformer("Ti/4", input_shape=(8, 8, 1), num_classes=3, **size)
    recipe = training.Recipe(epochs=1, optimizer="adamw", learning_rate=0.1, weight_decay=0.5, loss="cross_entropy")
    recipes.compile_by(model, recipe, 1)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    still = [np.zeros(each.shape, "float32") for each in model.trainable_variables]
    model.optimizer.apply(still, model.trainable_variables)
    ends = {each.path: float(np.mean(each)) for each in model.trainable_variables}
    assert {path.split("/")[-1] for path, end in ends.items() if end == 1} == {
        *("bias", "gamma", "beta", "class_token", "positions")
    }
    assert {path.split("/")[-1] for path, end in ends.items() if abs(end - 0.95) < 1e-6} == {"kernel"}
    assert not [path for path, end in ends.items() if path.endswith("kernel") and end == 1]


def test_losses_by_name():
    lengths, logits = CapsNet((12, 12, 1), 3, kernel_size=5, filters=4, num_types=1), convnet(3)
    scores, ids = np.array([[0.2, 0.7, 0.1]], "float32"), np.array([1])
    softmax = np.exp(scores) / np.exp(scores).sum()
    for model in (lengths, logits):
        np.testing.assert_allclose(
            training.loss_for(model, "cross_entropy")(ids, scores), -np.log(softmax[0, 1]), rtol=1e-5
        )
    both = np.array([[1.0, 1.0, 0.0]], "float32")
    expected = -np.mean(np.log([0.2, 0.7, 0.9]))
    np.testing.assert_allclose(training.loss_for(lengths, "binary_cross_entropy")(both, scores), expected, rtol=1e-4)
    sigmoid = 1 / (1 + np.exp(-scores[0]))
    expected = -np.mean(np.log([sigmoid[0], sigmoid[1], 1 - sigmoid[2]]))
    np.testing.assert_allclose(training.loss_for(logits, "binary_cross_entropy")(both, scores), expected, rtol=1e-4)
    assert isinstance(training.loss_for(lengths, "margin"), MarginLoss)
    np.testing.assert_allclose(training.loss_for(lengths, "log_lengths")(ids, scores), -np.log(0.7), rtol=1e-5)
    for model, name, message in (
        (logits, "margin", "The loss 'margin' is one of lengths; convnet_avg returns logits"),
        (logits, "log_lengths", "The loss 'log_lengths' is one of lengths; convnet_avg returns logits"),
        (logits, "hinge", r"a loss among .*; received 'hinge'"),
        (keras.Sequential([keras.Input((3,))]), "margin", r"a tap 'lengths' or 'logits'.*taps \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            training.loss_for(model, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lion"}, r"optimizer must be one of \('adam', 'adamw', 'sgd'\); received 'lion'"),
        ({"warmup": 1}, "warmup must be an integer from 0 to 0; received 1"),
        ({"epochs": 9, "warmup": 5, "schedule": (5,)}, "warmup must be an integer from 0 to 4; received 5"),
        ({"warmup": -1}, "warmup must be an integer from 0 to 0; received -1"),
        ({"weight_decay": 0.05}, "weight_decay is AdamW's; received weight_decay=0.05 with optimizer='adam'"),
        ({"weight_decay": -0.1, "optimizer": "adamw"}, r"weight_decay must be a number in \[0, inf\); received -0.1"),
        ({"label_smoothing": 0.1}, "label_smoothing is that of loss='cross_entropy'; received .* loss='margin'"),
        ({"label_smoothing": 1, "loss": "cross_entropy"}, r"label_smoothing must be a number in \[0, 1\); received 1"),
        ({"mixup": -1}, r"mixup must be a number in \[0, inf\); received -1"),
        ({"cutmix": True}, r"cutmix must be a number in \[0, inf\); received True"),
        ({"schedule": "linear"}, "tuple of epochs; received 'linear'"),
        ({"schedule": [5]}, r"tuple of epochs; received \[5\]"),
        ({"schedule": (5, 2)}, r"each later than the one before, such as \(50, 75\); received \(5, 2\)"),
        ({"schedule": (2, 2)}, "each later than the one before"),
        ({"schedule": ()}, "A rate that stays is schedule='constant'"),
        ({"schedule": (0, 2)}, "Each epoch of schedule must be an integer from 1; received 0"),
        ({"schedule": (1.5,)}, "Each epoch of schedule must be an integer from 1; received 1.5"),
        ({"loss": "hinge"}, "received 'hinge'"),
        ({"epochs": -3}, "epochs must be an integer from 1; received -3"),
        ({"epochs": 2.0}, "epochs must be an integer from 1; received 2.0"),
        ({"epochs": True}, "epochs must be an integer from 1; received True"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 to 2147483647; received 0"),
        ({"learning_rate": -0.5}, r"learning_rate must be a number in \[0, inf\); received -0.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number in .*; received nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number in .*; received inf"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number in .*; received '0.1'"),
        ({"shift": -1}, "shift must be an integer from 0; received -1"),
        ({"flip": "no"}, "flip must be True or False; received 'no'"),
        ({"stop_at": 95}, r"stop_at, an accuracy such as 0.95 for 95 %, must be a number in \(0, 1\]; received 95"),
        ({"stop_at": 0}, "stop_at, .*; received 0"),
        ({"stop_at": float("nan")}, "stop_at, .*; received nan"),
    ],
)
def test_what_a_recipe_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        training.Recipe(**{"epochs": 1, **arguments})


def test_an_unknown_recipe_is_refused(streams):
    for recipe in ("long", None, {"epochs": 3}):
        with pytest.raises(ValueError, match=f"Unknown recipe {recipe!r}; expected a Recipe or one of capsnet, affine"):
            training.fit(convnet(), *streams, recipe)


def test_augmented_images_are_moved_and_mirrored(digits):
    x = np.zeros((200, 9, 9, 1), "float32")
    x[:, 4, 4] = 1.0
    x[:, 4, 5] = 0.5
    stream = data.from_arrays(x, np.arange(200), batch_size=64)
    moved, labels = data.take(data.augment(stream, shift=2, flip=True, seed=1), 200)
    np.testing.assert_array_equal(labels, np.arange(200))
    spots = [np.argwhere(image[..., 0] == 1.0)[0] for image in moved]
    mirrored = [image[tuple(spot - (0, 1))][0] == 0.5 for image, spot in zip(moved, spots, strict=True)]
    assert 0.3 < np.mean(mirrored) < 0.7
    rows, columns = np.array(spots).T
    assert set(rows) == {2, 3, 4, 5, 6}
    assert set(columns) == {2, 3, 4, 5, 6}
    np.testing.assert_allclose(moved.sum(axis=(1, 2, 3)), 1.5)  # nothing lost, nothing blurred
    again, _ = data.take(data.augment(stream, shift=2, flip=True, seed=1), 200)
    np.testing.assert_array_equal(moved, again)
    augmented = data.augment(stream, shift=2, seed=1)
    first_epoch, second_epoch = (data.take(augmented, 200)[0] for _ in range(2))
    assert np.any(first_epoch != second_epoch)  # anew in every epoch
    with pytest.raises(ValueError, match="shift must be an integer from 0; received -1"):
        data.augment(stream, shift=-1)


def test_a_shift_is_padding_and_a_random_crop():
    x = np.random.default_rng(0).uniform(size=(500, 32, 32, 3)).astype("float32")
    moved, _ = data.take(data.augment(data.from_arrays(x, np.arange(500)), shift=4, seed=3), 500)
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
    corners = np.full((500, 2), -1)
    for row in range(9):
        for column in range(9):
            crops = padded[:, row : row + 32, column : column + 32]
            corners[(crops == moved).all(axis=(1, 2, 3))] = row, column
    counts = np.zeros((9, 9), int)
    np.add.at(counts, tuple(corners.T), 1)
    assert corners.min() == 0  # every image is a crop, to the bit
    for axis in range(2):
        assert counts.sum(axis=axis).min() > 30  # of about 55.6, with a standard deviation of 7
    assert (counts > 0).mean() > 0.95


@pytest.mark.slow
def test_streams_of_unknown_length_are_counted(streams):
    unknown = tuple(stream.filter(lambda x, y: True) for stream in streams)
    ends = []
    for pair in (unknown, streams):
        keras.utils.set_random_seed(0)
        model = convnet()
        recipe = training.Recipe(2, loss="cross_entropy", schedule="cosine")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras's of data that ran out
            ends.append((training.fit(model, *pair, recipe, verbose=0).history, int(model.optimizer.iterations)))
    assert ends[0] == ends[1]
    assert ends[0][1] == 8


def test_what_is_no_stream_to_train_on_is_refused(streams, resized, digits):
    x, y = resized(16, 12), digits[1][:16]
    never = streams[0].filter(lambda x, y: False)
    for train, validation, message in (
        (streams[0].take(0), None, "at least one batch in the training stream; received an empty stream"),
        (streams[0], streams[1].take(0), "at least one batch in the validation stream; received an empty stream"),
        (streams[0].repeat(), None, "the training stream to have an end; received a stream that has none. Cut it"),
        ((x, y), None, "the training stream as a stream that can be read again.*received tuple. Arrays become one by"),
        (iter([(x, y)]), None, "received list_iterator.*from_generator, given the function that makes it"),
        (never, None, "at least one batch in the training stream; received an empty stream"),
    ):
        with pytest.raises(ValueError, match=message):
            training.fit(convnet(), train, validation, ONE, verbose=0)
    with pytest.raises(ValueError, match=r"Expected a validation stream, .* stops at an accuracy of 0.5"):
        training.fit(convnet(), streams[0], None, training.Recipe(epochs=1, loss="cross_entropy", stop_at=0.5))


def test_py_datasets_train(resized, digits):
    x, y = resized(16, 12), digits[1][:16]
    train = Batches(x, y)
    history = training.fit(convnet(), train, Batches(x, y), training.Recipe(3, loss="cross_entropy"), verbose=0)
    assert len(history.history["val_loss"]) == 3


def test_a_loss_that_is_not_finite_ends_the_training(streams, tmp_path):
    recipe = training.Recipe(epochs=3, learning_rate=1e30, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"The loss of epoch . is nan, and the weights are.*a lower learning rate"):
        training.fit(convnet(), *streams, recipe, work=tmp_path, verbose=0)


def test_stop_at_names_the_metrics_there_are(streams):
    model = convnet()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"Expected monitor among .*loss; received 'val_accuracy'"):
        model.fit(streams[0], callbacks=[training.StopAt(0.5)], verbose=0)
