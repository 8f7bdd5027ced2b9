"""What may come in: every form of labels and data sets, and what is refused by name."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_capsvit import attacks, checks, evaluate, explain


def data(n=11):
    random = np.random.default_rng(0)
    x = random.uniform(0.2, 0.8, size=(n, 4, 4, 2)).astype("float32")
    return x, ((x.reshape(n, -1) @ kernel()).argmax(1) + (np.arange(n) % 4 == 0)) % 3


def kernel():
    return np.random.default_rng(1).normal(size=(32, 3)).astype("float32")


def linear(x):
    return ops.matmul(ops.reshape(x, (-1, 32)), kernel())


class Pairs(keras.utils.PyDataset):
    """Batches of three, as Keras's loaders give them."""

    def __len__(self):
        return 4

    def __getitem__(self, k):
        x, y = data()
        return x[3 * k : 3 * k + 3], y[3 * k : 3 * k + 3]


def forms():
    x, y = data()
    return {
        "tuple": (x, y),
        "list": [x, y],
        "column": (x, y[:, None]),
        "one-hot": (x, np.eye(3)[y]),
        "floats": (x, y.astype("float32")),
        "nested lists": (x.tolist(), y.tolist()),
        "tensors": (ops.convert_to_tensor(x), ops.convert_to_tensor(y)),
        "batches": [(x[:5], y[:5]), (x[5:], y[5:])],
        "batches as lists": [[x[:5], y[:5]], [x[5:], y[5:]]],
        "one batch": [(x, y)],
        "examples": list(zip(x, y, strict=True)),
        "two examples and more": iter(zip(x, np.eye(3)[y], strict=True)),
        "generator": ((x[k : k + 4], y[k : k + 4]) for k in range(0, 11, 4)),
        "PyDataset": Pairs(),
    }


@pytest.mark.parametrize("form", list(forms()))
@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_every_form_of_a_data_set_is_the_same_images_and_ids(form, batch_size):
    batches = list(checks.batches_of(forms()[form], batch_size))
    x, y = data()
    np.testing.assert_array_equal(np.concatenate([part for part, _ in batches]), x)
    np.testing.assert_array_equal(np.concatenate([part for _, part in batches]), y)
    assert {(part.dtype.name, ids.dtype.name) for part, ids in batches} == {("float32", "int32")}
    if "batch" not in form and form not in ("generator", "PyDataset"):
        assert max(len(part) for part, _ in batches) == min(batch_size, 11)


class Shuffled:
    """Examples in another order every time."""

    def __init__(self):
        self._random = np.random.default_rng(0)

    def __iter__(self):
        x, y = data()
        for number in self._random.permutation(len(y)):
            yield x[number], y[number]


def test_what_is_read_several_times_has_to_stay_the_same():
    x, y = data()
    for dataset in ((x, y), [x, y], [(x[:4], y[:4]), (x[4:], y[4:])], list(zip(x, y, strict=True))):
        repeatable = checks.Repeatable(dataset, 4)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate([part for part, _ in repeatable]), x)
            np.testing.assert_array_equal(np.concatenate([ids for _, ids in repeatable]), y)
        assert checks.batches_in(repeatable, 4) == checks.batches_in(dataset, 4)
    for generator in (iter(zip(x, y, strict=True)), (pair for pair in [(x, y)])):
        with pytest.raises(ValueError, match=r"read several times; received .*, which gives its images once"):
            checks.Repeatable(generator)
    repeatable = checks.Repeatable(Shuffled(), 4)
    next(iter(repeatable))
    with pytest.raises(ValueError, match=r"batch 0 is not the one of before.*reshuffle_each_iteration=False"):
        list(repeatable)
    labels = y.copy()
    repeatable = checks.Repeatable((x, labels), 4)
    list(repeatable)
    labels[-1] += 1
    with pytest.raises(ValueError, match="batch 2 is not the one of before"):
        list(repeatable)


@pytest.mark.tensorflow
@pytest.mark.parametrize("batched", [False, True])
def test_streams_of_tensorflow(batched):
    import tensorflow as tf

    x, y = data()
    stream = tf.data.Dataset.from_tensor_slices((x, y))
    batches = list(checks.batches_of(stream.batch(4) if batched else stream, 4))
    assert [len(ids) for _, ids in batches] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in batches]), x)
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in batches]), y)


def rates(dataset, **settings):
    """What all measurements of data sets find."""
    pgd = attacks.PGD(0.02, step_size=0.004, steps=7, restarts=2)
    models = {"a": linear, "b": lambda x: linear(x[:, ::-1])}
    error = lambda x: ops.mean(x, axis=(1, 2, 3))  # noqa: E731
    result = evaluate.robustness(linear, pgd, dataset, **settings)
    targeted = evaluate.robustness(linear, pgd, dataset, targets=evaluate.random_targets(3), **settings)
    patches = attacks.PatchAttack(2, steps=5, step_size=0.05)
    maps = {"pixels": lambda x, target: x[..., 0]}
    measures = {"first": lambda model, x, y, maps: maps[:, 0, 0] + y}
    detected = evaluate.detection(linear, pgd, dataset, error=error, threshold=0.5, **settings)
    return [
        *(result.accuracy, result.robust_accuracy, result.norms["l2"], targeted.success_rate, targeted.norms["l1"]),
        evaluate.detection_threshold(error, dataset, **settings),
        *(detected.success_rate, detected.undetected_rate, detected.flagged_clean),
        *evaluate.transfer_matrix(models, pgd, dataset, **settings)["a"],
        *evaluate.fooling_rate(models, patches, dataset, **settings)["fooling_rate"],
        evaluate.success_rate(linear, patches, dataset, **settings),
        *evaluate.attack_table(linear, {"PGD": pgd}, dataset, **settings)["robust_accuracy"],
        *evaluate.compare(linear, maps, dataset, measures, target="label", **settings)["first"],
    ]


@pytest.mark.long
def test_measurements_depend_neither_on_the_form_nor_on_the_batches():
    expected = rates(data())
    assert 0 < expected[1] < expected[0] < 1
    for form in ("list", "column", "one-hot", "batches", "examples"):
        for batch_size in (3, 128):
            np.testing.assert_allclose(
                rates(list(forms()[form]), batch_size=batch_size), expected, atol=1e-5, err_msg=form
            )


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "received None"),
        ("mnist", "received 'mnist'"),
        ({"x": 1}, "received dict"),
        (np.zeros((3, 4, 4, 1)), r"received ndarray of shape \(3, 4, 4, 1\)"),
        ([np.zeros((3, 4, 4, 1))] * 3, r"received elements that are ndarray of shape \(3, 4, 4, 1\)"),
        ([(np.zeros((3, 4, 4, 1)), np.zeros(3), np.ones(3))], "received elements that are a tuple of 3"),
        (
            [(np.zeros((3, 4)), np.zeros(3))],
            r"received elements \(ndarray of shape \(3, 4\), ndarray",
        ),
        ((np.zeros((3, 4, 4)), np.zeros(3)), r"Expected images of shape \(batch, .*received \(3, 4, 4\)"),
        (3.5, "received 3.5"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        list(checks.batches_of(dataset))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog", "cat"], "labels as an array of numbers; received strings"),
        ([True, False, True], "received bool. Cast them to int"),
        (np.array([1j, 0, 0]), "received complex numbers"),
        ([0.5, 1, 1], "of float64, not all of them integers"),
        ([np.nan, 1, 1], "not all of them integers"),
        ([0, 1, -1], "Expected class ids between 0 and 2; received values between -1 and 1"),
        ([0, 1, 3], "received values between 0 and 3"),
        ([0, 1, 2**32], "received values between 0 and 4294967296"),
        (np.array([0, 1, 1e20]), r"received values between 0.0 and 1e\+20"),
        ([[1, 0, 0], [1, 1, 0], [0, 0, 1]], "whose rows are not one-hot"),
        ([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]], "whose rows are not one-hot"),
        (np.eye(4)[:3], "One-hot rows would have 3 columns"),
        ([0, 1], r"shape \(3,\); received shape \(2,\)"),
        ([[0], [1, 2], [0]], "labels as an array of numbers; received a list of 3"),
        (None, "received None"),
    ],
)
def test_labels_that_are_none_are_refused_in_our_words(labels, message):
    with pytest.raises(ValueError, match=message):
        checks.class_ids(labels, 3, 3)
    x = data(3)[0]
    with pytest.raises(ValueError, match=r"Expected|must be"):
        attacks.FGSM(0.1)(linear, x, labels)
    if message != "One-hot rows would have 3 columns":  # there, ids alone count
        with pytest.raises(ValueError, match=r"Expected|must be"):
            evaluate.robust_accuracy(linear, attacks.FGSM(0.1), (x, labels))


def test_targets_are_ids_of_all_or_of_each():
    np.testing.assert_array_equal(checks.targets(2, 3), [2, 2, 2])
    np.testing.assert_array_equal(checks.targets(np.eye(3)[[1, 0, 2]], 3), [1, 0, 2])
    for wrong, message in [(3, "between 0 and 2"), ("cat", "targets as an array of numbers"), (1.5, "not all of them")]:
        with pytest.raises(ValueError, match=message):
            checks.targets(wrong, 3, 3)


def test_bounds_are_pairs_of_numbers_or_of_channels():
    assert checks.bounds([0, 1]) == (0.0, 1.0)
    assert checks.bounds(np.array([[0, 1, 2], [3, 4, 5]])) == ((0.0, 1.0, 2.0), (3.0, 4.0, 5.0))
    low, high = checks.limits(((0, -1), (1, 2)), 2)
    np.testing.assert_array_equal([low, high], [[0, -1], [1, 2]])
    np.testing.assert_array_equal(checks.limits((0, 255), 3), [0, 255])  # numbers, for all channels
    with pytest.raises(ValueError, match=r"bounds of 3 channels, those of the images; received bounds=\(\(0, -1\)"):
        checks.limits(((0, -1), (1, 2)), 3)
    for wrong in (None, 1, (1, 0), (0, 0), (0, 1, 2), (0, np.inf), ("a", "b"), ((0, 1), (1, 1)), ((0,), (1, 2)), "01"):
        with pytest.raises(ValueError, match=r"Expected bounds .*received bounds="):
            checks.bounds(wrong)
        with pytest.raises(ValueError, match=r"Expected bounds .*received bounds="):
            attacks.DeepFool(bounds=wrong)


def test_images_within_bounds_but_for_rounding():
    x = np.full((1, 2, 2, 1), 255.0002, "float32")
    assert checks.images(x, bounds=(0, 255)).max() == 255
    for wrong in (x + 0.01, -x):
        with pytest.raises(ValueError, match=r"within the bounds \[0, 255\]; received values in"):
            checks.images(wrong, bounds=(0, 255))
    huge = x.astype("float64") * 1e300
    for wrong, message in [("image", "received strings"), (x * 1j, "complex numbers"), (huge, "infinite")]:
        with pytest.raises(ValueError, match=message):
            checks.images(wrong)
    channels = np.stack([np.zeros((1, 2, 2)), np.full((1, 2, 2), 5)], axis=-1)
    checks.images(channels, bounds=((0, 4), (1, 6)))
    with pytest.raises(ValueError, match="within the bounds"):
        checks.images(channels, bounds=((0, 4), (1, 4.5)))


def test_a_model_in_the_place_of_an_explainer_or_an_attack_is_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    x, y = np.zeros((2, 6, 6, 1), "float32"), np.zeros(2, int)
    explainers = (
        lambda: explain.SmoothGrad(model),
        lambda: evaluate.compare(model, {"a model": model}, (x, y), {"size": lambda model, x, y, maps: maps[:, 0, 0]}),
        lambda: evaluate.max_sensitivity(model, x, 0),
        lambda: evaluate.parameter_randomization(lambda each: each, model, x),
    )
    for call in explainers:
        with pytest.raises(ValueError, match=r"a model, Sequential\. Give an explainer of it, such as explain"):
            call()
    attacked = (
        lambda: evaluate.robust_accuracy(model, model, (x, y)),
        lambda: evaluate.attack_table(model, {"a model": model}, (x, y)),
        lambda: evaluate.transfer_matrix({"a model": model}, model, (x, y)),
    )
    for call in attacked:
        with pytest.raises(ValueError, match=r"a model, Sequential\. Give an attack, such as attacks\.PGD"):
            call()
    with pytest.raises(ValueError, match=r"a model, Sequential\. Give an attack, such as attacks\.PatchAttack"):
        evaluate.fooling_rate({"a model": model}, model, (x, y))


def test_a_data_set_that_never_ends_is_refused():
    tf = pytest.importorskip("tensorflow")

    class Endless(Pairs):
        num_batches = None

    for dataset in (tf.data.Dataset.from_tensor_slices(data()).batch(4).repeat(), Endless()):
        with pytest.raises(ValueError, match=r"Expected a data set that ends; .* Give dataset\.take\(n\), n batches"):
            evaluate.robust_accuracy(linear, attacks.FGSM(0.1), dataset)


def test_elements_by_name_are_refused():
    tf = pytest.importorskip("tensorflow")
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices({"image": x, "label": y}).batch(4)
    with pytest.raises(ValueError, match="received elements that are dict"):
        evaluate.robust_accuracy(linear, attacks.FGSM(0.1), dataset)
