"""How much a model computes for one image."""

import fnmatch

import keras
import numpy as np

from keras_capsvit import checks
from keras_capsvit.models.checks import check_images
from keras_capsvit.taps import eagerly, scores
from keras_capsvit.taps.products import ProductRecorder
from keras_capsvit.taps.recording import run

# Their weights are added, looked up or multiplied element by element, whatever their shape.
_WITHOUT_PRODUCTS = (
    keras.layers.Embedding,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)


def flops(model, input_shape=None, *, skip=()) -> int:
    """Multiply-accumulate operations of one image, what tables of networks call FLOPs (He et al. 2016, Table 1).

    Counted are the products that run in inference for an image of zeros: convolutions, dense and einsum-dense layers,
    both products of attention, the transformation, routing and graph pooling of capsules, and any other of
    ``keras.ops`` (``conv``, ``matmul``, ``einsum``, ``tensordot``, ...), wherever it is called. One multiplication and
    the addition that follows it are one operation; a profiler that counts both says twice as much. Padding counts as
    pixels do. Not counted are biases, normalisations, activations, pooling, softmax and squash, interpolation, and
    what does not run for the class scores, such as a decoder.

    ResNet20 has 40.55 M for 32x32 images. The 41.3 M of thesis Table 3.2 are these and four operations for every
    element that is batch-normalised.

    Args:
        model: Keras model of images, of any kind; its size is read where it runs, no layer has to be known.
        input_shape: ints ``(H, W, C)``, of a model that leaves the size of its images open; else None.
        skip: str or strs, patterns such as ``"positions*"`` of the names of layers whose weights are in no product.

    Returns:
        int.

    Raises:
        ValueError: for what is no Keras model, several inputs, images of an unknown or of another size; and for what
            would be left out: layers with matrices of weights in which no product of ``keras.ops`` runs (skip those
            that only add them or look them up), and products in a part that the model itself compiles or loops over.

    Example::

        flops(ResNet50())  # 4089184256
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a Keras model, whose products can be seen; received {type(model).__name__}.")
    skip = [checks.text("skip", each) for each in (skip if isinstance(skip, list | tuple) else [skip])]
    subject = scores(model)
    shape = subject.sample_shape if input_shape is None else check_images(input_shape, num_classes=2)[0]
    if shape is None or None in shape:
        raise ValueError(f"{model.name} leaves the size of its images open ({shape}); pass input_shape=(H, W, C).")
    image = np.zeros((1, *shape), subject.dtype)
    checks.of_size(image, subject.input_shape, model.name)
    recorder = ProductRecorder()

    def count():
        x = keras.ops.convert_to_tensor(image)
        if not model.built:
            model(x, training=False)  # building is not running
        run(model, x, recorder)

    eagerly(count)
    _check_all_seen(recorder.layers_run, skip)
    return recorder.count


def _check_all_seen(layers_run, skip):
    def is_free(layer):
        return isinstance(layer, _WITHOUT_PRODUCTS) or any(fnmatch.fnmatchcase(layer.name, each) for each in skip)

    free = {id(variable) for layer, _ in layers_run if is_free(layer) for variable in layer.weights}
    unseen = [
        layer.name
        for layer, operations in layers_run
        if not operations and any(_is_matrix(each) and id(each) not in free for each in layer.weights)
    ]
    if unseen:
        raise ValueError(
            "Expected layers that multiply their weights by keras.ops, which can be counted; no product was seen in "
            f"{', '.join(unseen[:10])}{', ...' if len(unseen) > 10 else ''}. Pass skip= with the names of those whose "
            "weights are in none."
        )


def _is_matrix(variable):
    return sum(size > 1 for size in variable.shape) > 1
