"""Explanations that capsule networks have built in: what the nodes of their grid contribute, and their attention."""

import warnings
from typing import ClassVar

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks, taps
from keras_capsvit.explain.base import ModelExplainer, class_rows, in_batches
from keras_capsvit.taps.centres import tiled


class NodeExplainer(ModelExplainer):
    """Base: explainers that read a declared tap with a value for every node and class.

    A node is drawn where it looks: its value is spread linearly over the pixels around the centre of its receptive
    field, up to the centres of the nodes beside it. So a map adds up to what the values of the nodes add up to.

    Args:
        model: live or served model with the taps ``lengths`` and that of the subclass; or one that ends in such a
            model.
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Raises:
        ValueError: if the model has no such taps, or other class scores than the lengths of its class capsules.
    """

    tap: ClassVar[str]
    kind: ClassVar[str]  # of the models that have it, in words

    def __init__(self, model, *, output=None, batch_size=128):
        declared = taps.names(model)
        if not {"lengths", self.tap} <= set(declared):
            raise ValueError(
                f"Expected a {self.kind}, with the taps 'lengths' and {self.tap!r}; received a model that declares "
                f"{declared}. Transformers are explained by AttentionRollout and TransformerAttribution."
            )
        super().__init__(model, batch_size, output)
        self._check_lengths(taps.tap(model, "lengths"))
        self._both, self._values = taps.tap(model, ["lengths", self.tap]), taps.tap(model, self.tap)
        self._functions = {}
        shape = self.scores.input_shape
        if shape is not None and None not in shape:
            self._compiled(tuple(shape))

    def on_nodes(self, values):
        """What nodes have for classes, ``(b, h, w, M)``, of what the tap returns; tensors."""
        return values

    def attributions(self, x, ids):
        function = self._compiled(x.shape[1:])[checks.PREDICTED in ids]
        return in_batches(lambda part: function(x[part], ids[part]), len(x), self.batch_size)

    def on_tensors(self, x, ids):
        return self._compiled(tuple(x.shape[1:]))[False](x, ids)

    def _compiled(self, shape):
        """Functions of images of a shape and ids: of given classes, without lengths, and of predicted ones."""
        if shape not in self._functions:
            rows, columns = self._spread(shape)

            def drawn(values, weights):
                grid = ops.sum(self.on_nodes(ops.cast(values, "float32")) * weights[:, None, None], axis=-1)
                return ops.matmul(ops.matmul(rows, grid), columns)

            def of_classes(x, ids):
                values = self._values(x)
                return drawn(values, ops.one_hot(ids, values.shape[-1], dtype="float32"))

            def of_predicted(x, ids):
                lengths, values = self._both(x)
                return drawn(values, class_rows(ops.cast(lengths, "float32"), ids))

            functions = [autodiff.compiled(function, self.variables) for function in (of_classes, of_predicted)]
            self._functions[shape] = functions
        return self._functions[shape]

    def _spread(self, shape):
        """Arrays ``(H, h)`` and ``(w, W)``: how the values of nodes are spread over the rows and columns of pixels."""
        images = self.scores.noise(shape)[:1]
        centres = taps.centres(self.scores.model, self.tap, images)
        if centres is None:
            warnings.warn(
                f"{self.scores.name} does not tell where its nodes look, because an earlier version exported it; they "
                "are drawn in the middle of equal tiles, up to some pixels off. Export the model again.",
                stacklevel=5,
            )
            centres = tiled(shape[:2], self._values(images).shape[1:3])
        rows, columns = (_spread(*each) for each in zip(centres, shape, strict=False))
        return rows, columns.T

    def _check_lengths(self, lengths):
        """Refuse a head behind the capsules, because nodes speak for capsules, not for the head's classes."""
        shape = self.scores.input_shape
        if self.scores.kind == "lengths" or shape is None or None in shape:
            return
        x = ops.convert_to_tensor(self.scores.noise(shape))
        scores, of_capsules = (ops.convert_to_numpy(function(x)) for function in (self.scores, lengths))
        if scores.shape != of_capsules.shape or not np.allclose(scores, of_capsules, rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"Expected a model whose class scores are the lengths of its class capsules; {self.scores.name} has "
                f"other layers behind these, of whose classes the nodes know nothing. Pass the {self.kind}."
            )


class GraphContribution(NodeExplainer):
    """Built-in explanation of a capsule network: what its nodes contribute to the length of a class capsule.

    Of a graph capsule network, with attention ``a``, the features ``x`` of node ``n`` in head ``l`` of ``L``, and the
    class capsule before the squash, ``s_j = sum a_nlj x_nl / L``::

        c_nj = sum_l a_nlj <x_nl, s_j> / (||s_j|| L)        sum_n c_nj = ||s_j||

    Of a network with routing likewise, with couplings and votes (see ``ops.contributions``); of EM and self routing,
    which squash nothing, contributions add up to the length itself. They are signed: a node that votes against the
    direction of the class capsule has a negative one. Attention alone also is where nodes have short features.

    Args:
        model: see NodeExplainer; any capsule network of this package.
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. A map adds up to ``||s_j||``; on the grid, so does the tap ``contributions (b, h, w, M)``.

    Raises:
        ValueError: see NodeExplainer.

    Example::

        maps = GraphContribution(model)(x)              # for the predicted classes
        maps = GraphContribution(model)(x, target=3)    # for class 3
    """

    tap = "contributions"
    kind = "capsule network"


class GraphAttention(NodeExplainer):
    """Built-in explanation of a graph capsule network: its attention, averaged over heads (thesis Eq. 3.7).

    Args:
        model: see NodeExplainer; with the tap ``attention (b, h, w, l, M)``.
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. A map adds up to 1. With a ``target`` the class capsules are not computed.

    Raises:
        ValueError: see NodeExplainer.

    Example::

        maps = GraphAttention(model)(x)              # for the predicted classes
        maps = GraphAttention(model)(x, target=3)    # for class 3
    """

    tap = "attention"
    kind = "graph capsule network"

    def on_nodes(self, values):
        return ops.mean(values, axis=3)


def _spread(centres, size):
    """Shares ``(size, n)`` of pixels in the values of nodes around their centres; each node's add up to 1."""
    if len(centres) == 1:
        return np.full((size, 1), 1 / size, "float32")
    step = max(centres[1] - centres[0], 1.0)
    centres = np.clip(centres, 0, size - 1)  # of a node that looks at padding only, the pixel nearest to it
    shares = np.maximum(0, 1 - np.abs(np.arange(size)[:, None] - centres) / step)
    return (shares / shares.sum(axis=0)).astype("float32")
