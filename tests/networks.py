"""Networks of other families than the package's own, for the tests of relevance."""

import keras
import numpy as np

layers = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Tokens(layers.Layer):
    """Puts a class token before patch tokens ``(b, n, d)`` and adds positions."""

    def build(self, shape):
        self.token = self.add_weight(name="token", shape=(1, 1, shape[2]), initializer="random_normal")
        self.position = self.add_weight(name="position", shape=(1, shape[1] + 1, shape[2]), initializer="random_normal")

    def call(self, x):
        token = keras.ops.broadcast_to(self.token, (keras.ops.shape(x)[0], 1, x.shape[2]))
        return keras.ops.concatenate([token, x], axis=1) + self.position


def vit(size=12, patch=4, dim=8, heads=2, blocks=2, classes=5):
    """Pre-norm vision transformer whose class token is classified."""
    images = keras.Input((size, size, 3))
    x = layers.Conv2D(dim, patch, strides=patch, name="patches")(images)
    x = Tokens(name="tokens")(layers.Reshape((-1, dim))(x))
    for i in range(blocks):
        normal = layers.LayerNormalization(name=f"norm{i}a")(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, dim // heads, name=f"attention{i}")(normal, normal)])
        hidden = layers.Dense(2 * dim, activation="gelu", name=f"mlp{i}a")(
            layers.LayerNormalization(name=f"norm{i}b")(x)
        )
        x = layers.Add()([x, layers.Dense(dim, name=f"mlp{i}b")(hidden)])
    return keras.Model(images, layers.Dense(classes, name="head")(layers.LayerNormalization(name="norm")(x)[:, 0]))


def alexnet(size=64, classes=10):
    """Grouped convolutions, overlapping pooling, fully connected layers."""
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.Conv2D(16, 11, strides=4, padding="same", activation="relu"),
            layers.MaxPooling2D(3, 2),
            layers.Conv2D(32, 5, padding="same", groups=2, activation="relu"),
            layers.MaxPooling2D(3, 2),
            layers.Conv2D(32, 3, padding="same", groups=2, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(32, activation="relu"),
            layers.Dense(classes),
        ]
    )


def googlenet(size=32, classes=10):
    """Two inception modules."""
    images = x = keras.Input((size, size, 3))
    x = layers.MaxPooling2D(3, 2, padding="same")(layers.Conv2D(16, 7, 2, padding="same", activation="relu")(x))
    for _ in range(2):
        branches = [layers.Conv2D(8, 1, activation="relu")(x)]
        for kernel in (3, 5):
            reduced = layers.Conv2D(4, 1, activation="relu")(x)
            branches.append(layers.Conv2D(8, kernel, padding="same", activation="relu")(reduced))
        pooled = layers.MaxPooling2D(3, 1, padding="same")(x)
        branches.append(layers.Conv2D(8, 1, activation="relu")(pooled))
        x = layers.Concatenate()(branches)
    return keras.Model(images, layers.Dense(classes)(layers.Dropout(0.4)(layers.GlobalAveragePooling2D()(x))))


def as_if_trained(model, biases=True):
    """Give a model random batch-norm statistics and scales, and random biases or none."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name in ("bias", "beta") or variable.name == "moving_mean":
            variable.assign(random.normal(size=variable.shape) * (0.1 if biases else 0))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 2, size=variable.shape))
    return model
