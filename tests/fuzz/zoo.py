"""Tiny models and arrays that everything is called with."""

import functools

import keras
import numpy as np
from keras import layers, ops

from keras_capsvit import CapsNet, GraCapsNet, VisionTransformer, attacks, explain, patches

SIZE, CLASSES, BATCH = 6, 3, 4
SHAPE = (SIZE, SIZE, 1)


class Deliberate(Exception):
    """What a user's own callable raises."""


def random(seed=0):
    return np.random.default_rng(seed)


def images(count=BATCH):
    return random(0).uniform(0.05, 0.95, size=(count, *SHAPE)).astype("float32")


def ids(count=BATCH):
    return np.arange(count) % CLASSES


def maps(count=BATCH):
    return random(1).uniform(size=(count, SIZE, SIZE)).astype("float32")


@functools.cache
def cnn():
    keras.utils.set_random_seed(0)
    inside = [layers.Conv2D(4, 3, activation="relu", name="conv"), layers.Flatten(), layers.Dense(CLASSES, name="head")]
    model = keras.Sequential([keras.Input(SHAPE), *inside], name="cnn")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss)
    model.fit(images(6), ids(6), epochs=80, batch_size=6, verbose=0)  # so that there is something to attack
    return model


@functools.cache
def softmax_cnn():
    return keras.Sequential([keras.Input(SHAPE), cnn(), layers.Softmax()], name="softmax_cnn")


@functools.cache
def graph_capsules():
    keras.utils.set_random_seed(0)
    settings = {"num_heads": 2, "primary_dim": 2, "capsule_dim": 3, "filters": 4, "strides": (1, 1)}
    return GraCapsNet(SHAPE, CLASSES, **settings)


@functools.cache
def capsules():
    keras.utils.set_random_seed(0)
    settings = {"num_types": 2, "primary_dim": 2, "capsule_dim": 3, "filters": 4, "kernel_size": 2, "strides": (1, 2)}
    return CapsNet(SHAPE, CLASSES, reconstruction="conditional", reconstruction_units=(8,), **settings)


@functools.cache
def transformer():
    keras.utils.set_random_seed(0)
    return VisionTransformer("S/3", input_shape=SHAPE, num_classes=CLASSES, width=4, depth=2, num_heads=2, mlp_units=4)


@functools.cache
def _kernel():
    return random(2).normal(size=(SIZE * SIZE, CLASSES)).astype("float32")


def linear(x):
    """Scores of a plain callable."""
    return ops.matmul(ops.reshape(ops.cast(x, "float32"), (-1, SIZE * SIZE)), _kernel())


@functools.cache
def broken():
    """A model whose weights are NaN."""
    model = keras.models.clone_model(cnn())
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


@functools.cache
def two_inputs():
    left, right = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([left, right], cnn()(layers.Add()([left, right])))


@functools.cache
def without_scores():
    return keras.Sequential([keras.Input(SHAPE), layers.Conv2D(2, 3, name="conv")], name="without_scores")


def raises(*args, **kwargs):
    raise Deliberate("what a user's own callable raises")


def nothing(*args, **kwargs):
    return None


def words(*args, **kwargs):
    return "some words"


def scalar(*args, **kwargs):
    return np.float32(0.5)


def strings(*args, **kwargs):
    return [["a"] * CLASSES] * _count(args)


def not_finite(*args, **kwargs):
    return np.full((_count(args), CLASSES), np.nan, "float32")


def one_too_few(*args, **kwargs):
    return np.zeros((max(_count(args) - 1, 0), CLASSES), "float32")


def _count(args):
    """Number of images among arguments."""
    shapes = (tuple(each.shape) for each in args if len(getattr(each, "shape", ())))
    return next(shapes, (BATCH,))[0] or BATCH


NONSENSE = (nothing, words, scalar, strings, one_too_few)


def error(x):
    """Reconstruction error of images, ``(b,)``."""
    return ops.mean(ops.square(ops.cast(x, "float32") - 0.5), axis=(1, 2, 3))


def explainer(x, target=None):
    return np.asarray(x, "float32").mean(axis=-1)


def metric(model, x, y, maps):
    return maps.mean(axis=(1, 2))


@functools.cache
def saliency():
    return explain.Saliency(cnn(), batch_size=8)


def fgsm():
    return attacks.FGSM(0.1)


def bim():
    return attacks.BIM(0.1, steps=2)


def grid():
    return patches.PatchGrid((SIZE, SIZE), 2)


@functools.cache
def patched():
    """Result of a patch attack."""
    return attacks.PatchAttack(2, steps=2).run(cnn(), images(), ids())


def votes():
    return random(3).normal(size=(BATCH, 5, CLASSES, 2)).astype("float32")


def class_capsules():
    return random(4).normal(size=(BATCH, CLASSES, 2)).astype("float32")


def input_capsules():
    return random(1).normal(size=(BATCH, 5, 4)).astype("float32")


def lengths():
    return random(3).uniform(size=(BATCH, CLASSES)).astype("float32")


def coupling():
    return random(5).uniform(size=(BATCH, 5, CLASSES)).astype("float32")


def tokens():
    return random(6).normal(size=(BATCH, 5, 4)).astype("float32")


def primary():
    return random(7).normal(size=(BATCH, 2, 2, 3, 2)).astype("float32")


def coupled_grid():
    return coupling().reshape(BATCH, 1, 5, 1, CLASSES)


def attention():
    scores = random(8).uniform(size=(BATCH, 5, 5)).astype("float32")
    return [scores / scores.sum(axis=-1, keepdims=True)] * 2


def stream(labelled=True, size=28, count=6):
    """Unbatched ``tf.data.Dataset`` of digits."""
    import tensorflow as tf

    x = random(9).uniform(size=(count, size, size, 1)).astype("float32")
    x = np.where(x > 0.7, x, 0).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, np.arange(count, dtype="int64") % CLASSES))


def batched(count=6):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images(count), ids(count))).batch(4)
