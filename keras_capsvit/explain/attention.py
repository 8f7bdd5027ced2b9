"""Explanations that a model computes anyway: its attention, its features."""

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks, taps
from keras_capsvit.explain.base import PREDICTED, GridExplainer, ModelExplainer, class_rows, enlarged, in_batches


class GraphAttention(ModelExplainer):
    """Built-in explanation of a graph capsule network: its attention, averaged over heads (thesis Eq. 3.7).

    Args:
        model: live or served model with the taps ``attention (b, h, w, l, M)`` and ``lengths``; or one that ends in
            such a model.
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. A map is the attention of the ``h w`` nodes, enlarged bilinearly; on the node grid it sums to
    1. With a ``target`` the class capsules are not computed.

    Raises:
        ValueError: if the model has no attention tap, or other class scores than the lengths of its class capsules.

    Example::

        maps = GraphAttention(model)(x)              # for the predicted classes
        maps = GraphAttention(model)(x, target=3)    # for class 3
    """

    def __init__(self, model, *, output=None, batch_size=128):
        declared = taps.names(model)
        if not {"lengths", "attention"} <= set(declared):
            raise ValueError(
                "Expected a graph capsule network, with the taps 'lengths' and 'attention'; received a model that "
                f"declares {declared}. Transformers are explained by AttentionRollout and TransformerAttribution."
            )
        both, attention = taps.tap(model, ["lengths", "attention"]), taps.tap(model, "attention")
        super().__init__(model, batch_size, output)
        self._check_lengths(taps.tap(model, "lengths"))

        def of_predicted(x):
            lengths, weights = both(x)
            predicted = ops.full_like(lengths[:, 0], PREDICTED, dtype="int32")
            return _attention_map(weights, class_rows(lengths, predicted), ops.shape(x)[1:3])

        def of_target(x, ids):
            weights = attention(x)
            return _attention_map(weights, ops.one_hot(ids, weights.shape[-1], dtype="float32"), ops.shape(x)[1:3])

        self._of_predicted = autodiff.compile(of_predicted, self.variables)
        self._of_target = autodiff.compile(of_target, self.variables)

    def attributions(self, x, ids):
        def maps(part):
            return self._of_predicted(x[part]) if PREDICTED in ids else self._of_target(x[part], ids[part])

        return in_batches(maps, len(x), self.batch_size)

    def on_tensors(self, x, ids):
        return self._of_target(x, ids)

    def _check_lengths(self, lengths):
        """Refuse a head behind the capsules, because attention is that of capsules, not of the head's classes."""
        shape = self.scores.input_shape
        if self.scores.kind == "lengths" or shape is None or None in shape:
            return
        x = ops.convert_to_tensor(self.scores.noise(shape))
        scores, of_capsules = (ops.convert_to_numpy(function(x)) for function in (self.scores, lengths))
        if scores.shape != of_capsules.shape or not np.allclose(scores, of_capsules, rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"Expected a model whose class scores are the lengths of its class capsules; {self.scores.name} has "
                "other layers behind these, of whose classes there is no attention. Pass the graph capsule network."
            )


def _attention_map(attention, rows, size):
    mean = ops.mean(ops.cast(attention, "float32"), axis=3)
    return enlarged(ops.sum(mean * rows[:, None, None], axis=-1), size)


class FeatureMapAttention(GridExplainer):
    """Feature map attention: the mean over channels of the last feature map, enlarged bilinearly (thesis 7.4).

    Args:
        model: see ModelExplainer; with the tap ``features``, or else the last feature map ``(b, h, w, c)`` larger than
            1x1, or the last tokens, is taken.
        layer: str, another tap or layer with such an output (see ``taps.layers``).
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. All classes have the same map.

    Raises:
        ValueError: if there is no such tap or layer; lists those that there are.
    """

    def __init__(self, model, layer=None, *, output=None, batch_size=128):
        declared = "features" if layer is None else checks.text("layer", layer)
        self._declared = taps.tap(model, declared) if declared in taps.names(model) else None
        self._layer = layer
        super().__init__(model, batch_size, output)

    def on_grid(self, x):
        if self._declared is not None:
            return lambda x, _: ops.mean(self._checked(self._declared(x)), axis=-1)
        place = taps.feature_map(self.scores, x, self._layer)

        def maps(x, _):
            ((values,), _) = self.scores.intermediates(x, [place.layer])
            return ops.mean(place.on_grid(values), axis=-1)

        return maps

    def _checked(self, values):
        if len(values.shape) != 4:
            raise ValueError(
                f"Expected a tap or layer with an output (b, h, w, c); {self._layer!r} of {self.scores.name} returns "
                f"{tuple(values.shape)}."
            )
        return values
