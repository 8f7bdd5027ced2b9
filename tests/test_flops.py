"""Multiply-accumulate operations, against published numbers, loops that count, formulas and TensorFlow's profiler."""

import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

from keras_capsvit import CapsNet, GraCapsNet, ResNet18, ResNet20, ResNet50, VisionTransformer
from keras_capsvit.models import flops


def of_convolution(sizes, kernel_size, strides, padding, inputs, outputs):
    """Multiplications of the loops of a convolution, those with padding included."""
    pads = kernel_size - 1 if padding == "same" else 0
    starts = [range(0, size + pads - kernel_size + 1, strides) for size in sizes]
    pixels = len(list(itertools.product(*starts)))
    return sum(kernel_size**2 * inputs for _ in range(pixels) for _ in range(outputs)), tuple(map(len, starts))


def test_resnet20_of_the_thesis():
    model = ResNet20((32, 32, 3), 10)
    assert flops(model) == 40_551_040
    # Table 3.2 has 41.3 M: four operations more for every element of a batch normalisation.
    elements = 7 * 32 * 32 * 16 + 6 * 16 * 16 * 32 + 6 * 8 * 8 * 64
    assert round((flops(model) + 4 * elements) / 1e6, 1) == 41.3


@pytest.mark.slow
def test_resnets_of_imagenet():
    assert flops(ResNet50()) == 4_089_184_256  # 4.09 G, with the strides in the 3x3 convolutions
    assert flops(ResNet18((224, 224, 3), 1000, stem="7x7")) == 1_814_073_344  # 1.8 G; He et al. 2016, Table 1


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions(padding, strides):
    images = keras.Input((9, 8, 3))
    settings = {"strides": strides, "padding": padding, "data_format": "channels_last"}
    x = layers.Conv2D(6, 3, **settings)(images)
    expected, sizes = of_convolution((9, 8), 3, strides, padding, 3, 6)
    assert x.shape[1:] == (*sizes, 6)
    grouped = layers.Conv2D(4, 2, groups=2, data_format="channels_last")(x)
    count, sizes = of_convolution(sizes, 2, 1, "valid", 3, 4)
    expected += count
    deep = layers.DepthwiseConv2D(2, depth_multiplier=3, data_format="channels_last")(grouped)
    count, sizes = of_convolution(sizes, 2, 1, "valid", 1, 12)
    expected += count
    separable = layers.SeparableConv2D(5, 2, padding="same", depth_multiplier=2, data_format="channels_last")(deep)
    expected += math.prod(sizes) * (2 * 2 * 12 * 2 + 24 * 5)
    transposed = layers.Conv2DTranspose(2, 3, strides=2, data_format="channels_last")(separable)
    expected += math.prod(sizes) * 5 * 3 * 3 * 2
    flat = layers.Flatten()(layers.BatchNormalization()(transposed))
    expected += flat.shape[-1] * 7
    assert flops(keras.Model(images, layers.Dense(7, activation="softmax")(flat))) == expected


@pytest.mark.slow
def test_vision_transformer():
    model = VisionTransformer("S/4", input_shape=(12, 8, 3), num_classes=5, width=6, depth=2, num_heads=3, mlp_units=7)
    tokens = 3 * 2 + 1
    block = tokens * (6 * 18 + 6 * 6 + 2 * 6 * 7) + 2 * 3 * tokens * tokens * 2
    assert flops(model) == 6 * (4 * 4 * 3) * 6 + 2 * block + 6 * 5


@pytest.mark.parametrize(("shared", "sigma"), [(False, 2), (True, 0)])
def test_graph_capsules(shared, sigma):
    settings = {"num_heads": 2, "primary_dim": 3, "capsule_dim": 5, "filters": 6, "kernel_size": 3}
    model = GraCapsNet((8, 9, 1), 4, shared_transform=shared, sigma=sigma, **settings)
    conv1, grid = of_convolution((8, 9), 3, 1, "valid", 1, 6)
    conv2, (height, width) = of_convolution(grid, 3, 2, "valid", 6, 2 * 3)
    nodes = height * width * 2
    spread = nodes * 4 * (height + width) if sigma else 0  # a Gaussian along the rows, then one along the columns
    assert flops(model) == conv1 + conv2 + nodes * 3 * 5 + nodes * 5 * 4 + spread + nodes * 4 * 5


@pytest.mark.parametrize(("routing", "passes"), [("uniform", 0), ("trainable", 1), ("dynamic", 5)])
def test_capsules(routing, passes):
    model = CapsNet(
        (8, 9, 1),
        4,
        routing=routing,
        num_types=2,
        primary_dim=3,
        capsule_dim=5,
        filters=6,
        kernel_size=3,
        reconstruction="conditional",
        reconstruction_units=(8,),
    )
    conv1, grid = of_convolution((8, 9), 3, 1, "valid", 1, 6)
    conv2, grid = of_convolution(grid, 3, 2, "valid", 6, 2 * 3)
    inputs = math.prod(grid) * 2
    # Votes; then three weighted sums of votes and two agreements with them.
    assert flops(model) == conv1 + conv2 + inputs * 3 * 4 * 5 + passes * inputs * 4 * 5


class Subclass(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.dense = layers.Conv2D(4, 3, data_format="channels_last"), layers.Dense(3)
        self.unused = layers.Dense(100)

    def call(self, x):
        return self.dense(ops.max(self.conv(x), axis=(1, 2)))


def test_models_of_all_kinds():
    flat = keras.Sequential(
        [
            keras.Input((6, 7, 2)),
            layers.Conv2D(4, 3, data_format="channels_last"),
            layers.GlobalMaxPooling2D(data_format="channels_last"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    expected = 4 * 5 * 9 * 2 * 4 + 4 * 3
    assert flops(flat) == expected
    assert flops(keras.Sequential([keras.Input((6, 7, 2)), layers.Rescaling(2.0), flat])) == expected
    assert flops(Subclass(), (6, 7, 2)) == expected
    called = Subclass()
    called(np.zeros((3, 6, 7, 2), "float32"))
    assert flops(called) == expected
    images = keras.Input((None, None, 2))
    pooled = layers.GlobalMaxPooling2D(data_format="channels_last")(flat.layers[0](images))
    assert flops(keras.Model(images, layers.Dense(3)(pooled)), input_shape=(6, 7, 2)) == expected
    twice = layers.Dense(2)
    x = keras.Input((1, 1, 2))
    assert flops(keras.Model(x, twice(twice(x)))) == 8


@pytest.mark.parametrize("flash_attention", [False, None])
def test_attention_of_keras(flash_attention):
    tokens = keras.Input((2, 3, 4))
    x = layers.Reshape((6, 4))(tokens)
    attention = layers.MultiHeadAttention(2, 3, value_dim=5, flash_attention=flash_attention)
    x = attention(x, x)
    expected = 6 * 4 * 2 * (3 + 3 + 5) + 2 * 6 * 6 * (3 + 5) + 6 * 2 * 5 * 4
    assert flops(keras.Model(tokens, x)) == expected
    x = layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 5))(layers.Reshape((6, 4))(tokens))
    assert flops(keras.Model(tokens, x)) == 6 * 4 * 2 * 5


class Product(keras.layers.Layer):
    """Any function of the images and a constant."""

    def __init__(self, function, shape, **kwargs):
        super().__init__(**kwargs)
        self.function, self.constant = function, np.ones(shape, "float32")

    def call(self, x):
        return ops.reshape(self.function(x, ops.convert_to_tensor(self.constant)), (1, -1))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, None))


def of(function, shape, image=(2, 3, 4)):
    images = keras.Input(image)
    return flops(keras.Sequential([images, Product(function, shape)]))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (ops.matmul, (4, 5), 2 * 3 * 4 * 5),
        (ops.matmul, (2, 4, 5), 2 * 3 * 4 * 5),
        (ops.matmul, (7, 1, 4, 5), 7 * 2 * 3 * 4 * 5),
        (ops.matmul, (4,), 2 * 3 * 4),
        (ops.dot, (4, 5), 2 * 3 * 4 * 5),
        (lambda x, y: ops.inner(ops.reshape(x, (-1,)), y), (24,), 24),
        (lambda x, y: ops.vdot(ops.reshape(x, (-1,)), y), (24,), 24),
        (lambda x, y: ops.tensordot(x, y, axes=((1, 3), (2, 0))), (4, 5, 2), 2 * 3 * 4 * 5),
        (lambda x, y: ops.tensordot(x, y, axes=0), (5,), 24 * 5),
        (lambda x, y: ops.einsum("bhwc,cd->bhwd", x, y), (4, 5), 2 * 3 * 4 * 5),
        (lambda x, y: ops.einsum("... c, c d -> ... d", x, y), (4, 5), 2 * 3 * 4 * 5),
        (lambda x, y: ops.einsum("a...c,...cd->a...d", x, y), (3, 4, 5), 2 * 3 * 4 * 5),
        (lambda x, y: ops.einsum("bhwc->bc", x) + y, (4,), 0),
        (lambda x, y: x * y, (4,), 0),
    ],
)
def test_products(function, shape, expected):
    assert of(function, shape) == expected


@settings(max_examples=10)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True), st.data())
def test_einsum_is_its_loops(right, data):
    sizes = {"i": 1, "j": 2, "k": 3, "l": 2, "a": 2, "b": 3, "c": 1, "d": 4}
    left = "ij" + data.draw(st.sampled_from(["kl", f"k{right[0]}", f"{right[-1]}l"]))
    left = left if len(set(left)) == 4 else "ijkl"
    kept = [label for label in {*left, *right} if data.draw(st.booleans()) or label == "i"]
    subscripts = f"{left},{''.join(right)}->{''.join(kept)}"
    loops = itertools.product(*(range(sizes[label]) for label in {*left, *right}))
    counted = of(
        lambda x, y: ops.einsum(subscripts, x, y),
        [sizes[label] for label in right],
        [sizes[label] for label in left[1:]],
    )
    assert counted == len(list(loops))


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet20((16, 12, 3), 5, filters=4),
        lambda: VisionTransformer("S/4", input_shape=(12, 8, 3), num_classes=5, width=6, depth=2, num_heads=3),
        lambda: CapsNet((12, 12, 1), 3, num_types=2, filters=4, kernel_size=3),
        lambda: CapsNet((12, 12, 1), 3, routing="em", num_types=2, filters=4, kernel_size=3),
        lambda: GraCapsNet((12, 12, 1), 3, num_heads=2, filters=4),
    ],
    ids=["resnet", "vit", "dynamic", "em", "graph"],
)
def test_half_of_what_the_profiler_of_tensorflow_counts(make):
    import tensorflow as tf

    model = make()
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, *model.input_shape[1:]))
    )
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().order_by("float_ops")
    options = options.with_accounted_types(["MatMul", "BatchMatMul.*", "Conv2D"]).build()
    profile = tf.compat.v1.profiler.profile(graph.graph, cmd="op", options=options)
    products = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Conv2D"}
    counted, node = 0, profile
    while node.children:  # each has what is below it in its total
        (child,) = node.children
        if child.name in products:
            counted += child.total_float_ops - sum(each.total_float_ops for each in child.children)
        node = child
    assert flops(model) == counted / 2 > 0


class Foreign(keras.layers.Layer):
    """A layer whose product is not one of Keras."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 3))

    def call(self, x):
        return ops.sum(x[..., None] * self.kernel, axis=-2)


def test_nothing_is_left_out_in_silence():
    model = keras.Sequential([keras.Input((1, 2, 4)), Foreign(name="foreign"), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"no product was seen in foreign\. Pass skip= with the names"):
        flops(model)
    assert flops(model, skip="foreign") == flops(model, skip=["other", "for*"]) == 2 * 3 * 2
    with pytest.raises(ValueError, match=r"no product was seen in inner, outer\. Pass skip="):
        flops(keras.Sequential([keras.Input((1, 2, 4)), Foreign(name="inner")], name="outer"))


def test_weights_that_no_product_has():
    x = keras.Input((2, 3, 4))
    y = layers.PReLU()(layers.LayerNormalization(axis=(1, 2, 3))(x))
    assert flops(keras.Model(x, layers.Dense(2)(y))) == 2 * 3 * 4 * 2
    assert flops(keras.Model(x, y)) == 0
    x = keras.Input((2, 3, 1), dtype="int32")
    assert flops(keras.Model(x, layers.Dense(2)(layers.Embedding(4, 5)(x)))) == 2 * 3 * 5 * 2


class Compiled(Subclass):
    """A model that makes a program of itself."""

    def call(self, x):
        if keras.backend.backend() == "jax":
            import jax

            return jax.jit(super().call)(x)
        import tensorflow as tf

        if not hasattr(self, "program"):
            self.program = tf.function(super().call)
        return self.program(x)


class Loop(keras.layers.Layer):
    """The images times a matrix, five times."""

    def call(self, x):
        return ops.fori_loop(0, 5, lambda _, x: ops.matmul(x, ops.eye(4)), x)


def test_programs_and_loops():
    model = Compiled(name="compiled")
    model(np.zeros((1, 6, 7, 2), "float32"))
    with pytest.raises(ValueError, match=r"compiles a part of itself, or loops over|no product was seen in compiled"):
        flops(model, (6, 7, 2))
    loop = keras.Sequential([keras.Input((2, 3, 4)), Loop()])
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="products run one by one; received one that compiles"):
            flops(loop)
    else:
        assert flops(loop) == 5 * 2 * 3 * 4 * 4


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="Expected a Keras model, whose products can be seen; received function"):
        flops(lambda x: x)
    with pytest.raises(ValueError, match=r"skip must be a str; received 3"):
        flops(Subclass(), (6, 7, 2), skip=3)
    with pytest.raises(ValueError, match=r"leaves the size of its images open \(None\); pass input_shape="):
        flops(Subclass())
    model = keras.Sequential([keras.Input((None, 4, 3)), layers.Dense(2)], name="wide")
    with pytest.raises(ValueError, match=r"wide leaves the size of its images open \(\(None, 4, 3\)\)"):
        flops(model)
    with pytest.raises(ValueError, match=r"Expected images of shape \(None, None, 4, 3\), as wide takes them"):
        flops(model, (4, 5, 3))
    with pytest.raises(
        ValueError, match=r"input_shape must be .height, width, channels., positive ints; received .4, 4."
    ):
        flops(model, (4, 4))
    with pytest.raises(ValueError, match=r"Expected einsum of one or two tensors, .* received 'bhwc,c,c->bc'"):
        of(lambda x, y: ops.einsum("bhwc,c,c->bc", x, y, y), (4,))


def test_nothing_is_left_on_the_model_or_on_keras():
    model = ResNet20((8, 8, 1), 3, filters=2)
    before, calls = model.get_weights(), (keras.Layer.__call__, keras.Operation.__call__)
    assert flops(model) == flops(model)
    assert calls == (keras.Layer.__call__, keras.Operation.__call__)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
