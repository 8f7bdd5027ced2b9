"""Explanations that a model computes anyway: its attention, its features."""

import keras
from keras import ops

from keras_capsvit import autodiff
from keras_capsvit.explain.base import PREDICTED, ModelExplainer, enlarged, in_batches, without_training
from keras_capsvit.taps import names, tap


class GraphAttention(ModelExplainer):
    """Built-in explanation of a graph capsule network: its attention, averaged over heads (thesis Eq. 3.7).

    Args:
        model: live or served model with the taps ``attention (b, h, w, l, M)`` and ``lengths``.
        batch_size: int, images per pass.

    Call: see Explainer. A map is the attention of the ``h w`` nodes, enlarged bilinearly; on the node grid it sums to
    1. With a ``target`` the class capsules are not computed.

    Raises:
        ValueError: if the model has no attention tap.

    Example::

        maps = GraphAttention(model)(x)              # for the predicted classes
        maps = GraphAttention(model)(x, target=3)    # for class 3
    """

    def __init__(self, model, *, batch_size=128):
        both, attention = tap(model, ["lengths", "attention"]), tap(model, "attention")
        super().__init__(model, batch_size)

        def of_predicted(x):
            lengths, found = both(x)
            return _attention_map(found, ops.argmax(lengths, axis=-1), ops.shape(x)[1:3])

        def of_target(x, ids):
            return _attention_map(attention(x), ids, ops.shape(x)[1:3])

        self._of_predicted = autodiff.compile(of_predicted, self.variables)
        self._of_target = autodiff.compile(of_target, self.variables)

    def attributions(self, x, ids):
        def maps(part):
            return self._of_predicted(x[part]) if PREDICTED in ids else self._of_target(x[part], ids[part])

        return in_batches(maps, len(x), self.batch_size)

    def on_tensors(self, x, ids):
        return self._of_target(x, ids)


def _attention_map(attention, ids, size):
    mean = ops.mean(ops.cast(attention, "float32"), axis=3)
    chosen = ops.one_hot(ids, mean.shape[-1], dtype="float32")[:, None, None]
    return enlarged(ops.sum(mean * chosen, axis=-1), size)


class FeatureMapAttention(ModelExplainer):
    """Feature map attention: the mean over channels of the last feature map, enlarged bilinearly (thesis 7.4).

    Args:
        model: live model or served model; of one without the tap ``features``, the last layer with an output
            ``(b, h, w, c)`` is taken.
        layer: str, another tap or layer with such an output.
        batch_size: int, images per pass.

    Call: see Explainer. All classes have the same map.

    Raises:
        ValueError: if there is no such tap or layer; lists those that there are.
    """

    def __init__(self, model, layer=None, *, batch_size=128):
        super().__init__(model, batch_size)
        features = without_training(_features(model, layer))
        self._maps = autodiff.compile(
            lambda x: enlarged(ops.mean(features(x), axis=-1), ops.shape(x)[1:3]), self.variables
        )

    def attributions(self, x, ids):
        return in_batches(lambda part: self._maps(x[part]), len(x), self.batch_size)

    def on_tensors(self, x, ids):
        return self._maps(x)


def _features(model, layer):
    """Callable from images to a feature map."""
    if layer is None and "features" in names(model):
        layer = "features"
    if layer in names(model):
        return tap(model, layer)
    functional = model if isinstance(model, keras.Model) and getattr(model, "inputs", None) else None
    layers = {one.name: one for one in functional.layers} if functional else {}
    maps = [
        name
        for name, one in layers.items()
        if not isinstance(one, keras.layers.InputLayer) and len(getattr(one.output, "shape", ())) == 4
    ]
    if not maps or layer not in (None, *maps):
        raise ValueError(
            f"Expected a tap or layer with an output (b, h, w, c); received layer={layer!r} of a model with the taps "
            f"{names(model)} and the layers {maps}."
        )
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    return keras.Model(inputs, layers[layer or maps[-1]].output)
