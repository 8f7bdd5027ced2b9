import keras
import numpy as np
import pytest
from keras import ops
from sklearn.datasets import load_sample_images

from keras_capsvit import GraCapsNet, MarginLoss, taps


def compiled(model, learning_rate=1e-3):
    model.compile(keras.optimizers.Adam(learning_rate), MarginLoss(), metrics=["accuracy"])
    return model


def test_published_sizes():
    model = GraCapsNet((28, 28, 1), 10)
    assert model.count_params() == 1_182_634
    assert model.taps["attention"].shape == (None, 12, 12, 32, 10)
    sizes = {layer.name: layer.count_params() for layer in model.layers}
    assert sizes["conv"] == 9 * 256 + 256
    assert sizes["primary_capsules"] == 9 * 256 * 256 + 256
    assert sizes["projection"] == 4608 * 8 * 16
    assert sizes["graph_pooling"] == 16 * 10 + 10
    assert GraCapsNet((32, 32, 3), 10).taps["attention"].shape[1:3] == (14, 14)


def test_the_size_for_cifar10_is_that_of_the_authors_code():
    model = GraCapsNet((32, 32, 3), 10, num_heads=64)
    assert model.taps["primary_capsules"].shape == (None, 14, 14, 64, 8)
    convolutions = 9 * 3 * 256 + 256 + 9 * 256 * 512 + 512
    assert model.count_params() == convolutions + 14 * 14 * 64 * 8 * 16 + 16 * 10 + 10
    assert abs(model.count_params() / 2.90e6 - 1) < 0.04  # Table 3.1


def test_taps(small_model):
    model = small_model(reconstruction="conditional")
    names = ["attention", "capsules", "contributions", "lengths", "primary_capsules", "reconstruction"]
    assert taps.names(model) == names
    x = np.random.default_rng(0).uniform(size=(3, 12, 12, 1)).astype("float32")
    shapes = [taps.tap(model, name)(x).shape for name in taps.names(model)]
    assert shapes == [(3, 4, 4, 4, 10), (3, 10, 6), (3, 4, 4, 10), (3, 10), (3, 4, 4, 4, 4), (3, 12, 12, 1)]
    lengths, capsules = taps.tap(model, ["lengths", "capsules"])(x)
    np.testing.assert_array_equal(lengths, model(x))
    np.testing.assert_allclose(np.linalg.norm(capsules, axis=-1), lengths, atol=1e-6)
    with pytest.raises(ValueError, match=r"gracapsnet has no tap 'votes'; it has \['attention'"):
        taps.tap(model, "votes")
    assert taps.names(lambda x: x) == []


PHOTOS = np.stack([np.asarray(photo, "float32") / 255 for photo in load_sample_images().images])


@pytest.mark.samples(6)
@pytest.mark.parametrize("num_heads", [1, 4, 32, 128])
@pytest.mark.parametrize("size", [12, 20, 28, 40])
def test_initial_lengths_leave_the_squash_a_slope(resized, num_heads, size):
    lengths = []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = GraCapsNet((size, size, 1), 10, num_heads=num_heads, primary_dim=256 // num_heads)
        lengths.append(ops.convert_to_numpy(model(resized(32, size))))
    check_lengths(np.concatenate(lengths))


@pytest.mark.parametrize("num_classes", [2, 100])
def test_initial_lengths_on_photographs(num_classes):
    crops = np.concatenate([PHOTOS[:, r : r + 256 : 8, c : c + 256 : 8] for r in (0, 150) for c in (0, 200, 384)])
    check_lengths(ops.convert_to_numpy(GraCapsNet((32, 32, 3), num_classes)(crops)))


@pytest.mark.parametrize("sigma, normalize", [(0, False), (0.5, True), (1, False), (1, True), (2, True), (4, False)])
def test_initial_lengths_for_any_adjacency(resized, sigma, normalize):
    model = GraCapsNet((28, 28, 1), 10, sigma=sigma, normalize=normalize)
    check_lengths(ops.convert_to_numpy(model(resized(32, 28))))


def check_lengths(lengths):
    assert 0.05 < lengths.mean() < 0.7
    low, high = np.quantile(lengths, [0.05, 0.95])
    assert low > 0.02, low
    assert high < 0.7, high


@pytest.mark.parametrize(
    "reconstruction", ["conditional", *(pytest.param(each, marks=pytest.mark.slow) for each in (None, "unconditional"))]
)
def test_learns_within_the_first_epoch(small_model, digits, reconstruction, resized):
    x, y = resized(1000, 12), digits[1][:1000]
    model = compiled(small_model(num_heads=8, filters=32, reconstruction=reconstruction), 3e-3)
    start = model.evaluate(x, y, verbose=0, return_dict=True)
    assert start["loss"] < 0.81
    history = model.fit(x, y, epochs=3, batch_size=25, verbose=0).history
    assert history["loss"][0] < 0.9 * start["loss"]
    assert history["accuracy"][-1] > 0.8
    if reconstruction:
        assert history["reconstruction_error"][-1] < 0.9 * start["reconstruction_error"]
    else:
        assert "reconstruction_error" not in history


def test_reconstruction_enters_the_loss_with_its_weight(small_model, resized, digits):
    x, y = resized(20, 12), digits[1][:20]
    model = compiled(small_model(reconstruction="conditional", reconstruction_weight=0.25))
    metrics = model.evaluate(x, y, verbose=0, return_dict=True)
    decoded = ops.convert_to_numpy(model.reconstruct(x, y))
    error = np.square(decoded - x).sum(axis=(1, 2, 3)).mean()
    np.testing.assert_allclose(metrics["reconstruction_error"], error, rtol=1e-4)
    margin = float(MarginLoss()(y, model(x)))
    np.testing.assert_allclose(metrics["loss"], margin + 0.25 * error, rtol=1e-4)
    assert not np.allclose(decoded, model.reconstruct(x, (y + 1) % 10))
    winners = ops.convert_to_numpy(model(x)).argmax(-1)
    np.testing.assert_array_equal(model.reconstruct(x), model.reconstruct(x, winners))


def test_unconditional_decoder_sees_every_capsule(small_model, resized):
    model = small_model(reconstruction="unconditional")
    capsules = np.zeros((2, 10, 6), "float32")
    capsules[1, 3] = 0.5
    decoded = ops.convert_to_numpy(model.decoder(capsules))
    assert np.abs(decoded[0] - decoded[1]).max() > 0
    with pytest.raises(ValueError, match="takes no labels"):
        model.reconstruct(resized(2, 12), [1, 2])


@pytest.mark.slow
def test_a_model_with_decoder_trains_inside_another(small_model, resized, digits):
    inner = compiled(small_model(reconstruction="conditional"))
    x, y = resized(40, 12), digits[1][:40]
    inner.fit(x, y, verbose=0)
    images = keras.Input((12, 12, 1))
    outer = keras.Model(images, keras.layers.Dense(2)(inner(images)))
    inner.decoder.trainable = False
    outer.compile("adam", "mse")
    outer.fit(x, np.zeros((40, 2)), verbose=0)
    assert outer(x).shape == (40, 2)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(small_model, resized, digits, policy):
    x, y = resized(60, 12), digits[1][:60]
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = compiled(small_model(reconstruction="conditional"))
        history = model.fit(x, y, epochs=2, batch_size=20, verbose=0).history
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model(x).dtype in ("float32", ops.cast(0, "float32").dtype)
    assert np.isfinite(history["loss"]).all()
    assert model.get_layer("projection").compute_dtype == policy.removeprefix("mixed_")


@pytest.mark.samples(2)
@pytest.mark.parametrize("num_classes", [2, 200])
@pytest.mark.parametrize("input_shape", [(5, 5, 1), (9, 14, 3)])
def test_any_size_and_class_count(small_model, input_shape, num_classes):
    model = compiled(small_model(input_shape, num_classes))
    x = np.random.default_rng(0).uniform(size=(8, *input_shape)).astype("float32")
    assert np.isfinite(model.train_on_batch(x, np.arange(8) % num_classes)).all()


def test_multi_hot_labels(small_model, resized):
    model = small_model()
    model.compile("adam", MarginLoss())
    y = np.zeros((4, 10))
    y[:, 2:4] = 1
    model.fit(resized(4, 12), y, verbose=0)
    with pytest.raises(ValueError, match="multi-hot entries between 0 and 1; received"):
        model.fit(resized(4, 12), 2 * y, verbose=0)


def test_says_what_is_wrong_with_the_input(small_model, resized):
    with pytest.raises(ValueError, match=r"4x28 are too small .* smallest legal size is 5x5"):
        GraCapsNet((4, 28, 1), 10)
    with pytest.raises(ValueError, match=r"\(height, width, channels\).*received \(28, 28\)"):
        GraCapsNet((28, 28), 10)
    with pytest.raises(ValueError, match=r"an integer from 2 .*; received 1"):
        GraCapsNet((28, 28, 1), 1)
    with pytest.raises(ValueError, match="received 'conditionnal'"):
        small_model(reconstruction="conditionnal")
    with pytest.raises(ValueError, match="has no decoder"):
        small_model().reconstruct(resized(2, 12))
    model = compiled(small_model(reconstruction="conditional"))
    x = resized(4, 12)
    for bad in (x[0, :, 0], np.repeat(x, 3, -1), resized(4, 14)):
        with pytest.raises(ValueError, match="xpected"):
            model(bad)
    for labels in ([0, 1, 2, 10], [-1, 0, 1, 2]):
        for call in (model.fit, model.evaluate, model.train_on_batch, model.reconstruct):
            with pytest.raises(ValueError, match="class ids between 0 and 9; received values between"):
                call(x, np.array(labels))
    with pytest.raises(ValueError, match=r"received shape \(4, 3\)"):
        model.fit(x, np.zeros((4, 3)))


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_stream_that_does_not_tell_its_size(small_model, resized, digits):
    import tensorflow as tf

    x, y = resized(20, 12), digits[1][:20]
    signature = (tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None,), "int64"))
    stream = tf.data.Dataset.from_generator(lambda: iter([(x, y)]), output_signature=signature)
    model = compiled(small_model())
    model.fit(stream, verbose=0)
    np.testing.assert_allclose(model.predict(stream, verbose=0), model(x), atol=1e-6)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_stream_with_a_label_out_of_range_stops(small_model, resized):
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices((resized(8, 12), np.arange(8) + 3)).batch(4)
    history = compiled(small_model()).fit(stream, epochs=3, callbacks=[keras.callbacks.TerminateOnNaN()], verbose=0)
    assert len(history.epoch) == 1
    assert np.isnan(history.history["loss"]).all()
