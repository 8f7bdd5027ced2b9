"""Running a live model while its layers, its attention and its last activation are recorded (TensorFlow and JAX)."""

import collections
import threading

import keras
from keras import ops

from keras_capsvit import private


class Recorder:
    """What is seen, and changed, of the layers and activations that run meanwhile; see ``run``.

    Args:
        layers: names of the layers whose outputs are recorded (see ``layers`` of this package); None for all.
        attention: bool, record the softmax of every self-attention, and compute fused attention such that it has one.
        offsets: dict from names of layers, or positions of attentions, to tensors that are added to what they return.
        keeps_floats: bool, let models of integers take floats as they are.

    Attributes:
        outputs: dict from names of layers to tensors, in the order in which the layers ran.
        operations: dict from the same names to layers.
        attention: list of tensors ``(b, heads, t, t)``; ``before``, how many layers had run before each.
        tapped: list of ``(model, x, output)``, calls of models that declare taps.
    """

    def __init__(self, layers=(), *, attention=False, offsets=None, keeps_floats=False):
        self._layers = None if layers is None else set(layers)
        self._with_attention, self._offsets, self.keeps_floats = attention, offsets or {}, keeps_floats
        self._path, self._calls, self._activations = [], collections.Counter(), []
        self.outputs, self.operations, self.tapped, self.attention, self.before = {}, {}, [], [], []
        self._depth = 0

    def layer(self, call, operation, args, kwargs):
        outermost = self._depth == 0 and isinstance(operation, keras.Model)
        self._path += [] if outermost else [operation.name]
        self._depth += 1
        try:
            output = call(*args, **kwargs)
        finally:
            self._depth -= 1
            name = "/".join(self._path)
            self._path = self._path[: len(self._path) - (not outermost)]
        if isinstance(output, keras.KerasTensor) or not ops.is_tensor(output):
            return output
        if getattr(operation, "taps", None):
            self.tapped.append((operation, args[0] if args else next(iter(kwargs.values())), output))
        if outermost:
            return output
        self._calls[name] += 1
        if self._calls[name] > 1:
            name = f"{name}:{self._calls[name] - 1}"
        if name in self._offsets:
            output = output + ops.cast(self._offsets[name], output.dtype)
        if self._layers is None or name in self._layers:
            self.outputs[name], self.operations[name] = output, operation
        return output

    def function(self, call, name, args, kwargs):
        if name == "dot_product_attention":
            return _attention(self, *args, **kwargs) if self._with_attention else call(*args, **kwargs)
        output = call(*args, **kwargs)
        if name not in private.ACTIVATIONS:
            return output
        x = args[0] if args else kwargs["x"]
        axis = kwargs.get("axis", args[1] if len(args) > 1 else -1)
        over_last = name == "sigmoid" or axis in (-1, len(output.shape) - 1)
        if name == "softmax" and over_last and _is_self_attention(output):
            return self._attended(output)
        if over_last:
            self._activations.append((output, x, name))
        return output

    def _attended(self, attention):
        if not self._with_attention:
            return attention
        index = len(self.attention)
        if index in self._offsets:
            attention = attention + ops.cast(self._offsets[index], attention.dtype)
        self.attention.append(attention)
        self.before.append(len(self.outputs))
        return attention

    def before_activation(self, output):
        """``(x, name)``, if ``output`` is what an activation made of ``x`` at the end of the model; or None."""
        return next(((x, name) for result, x, name in reversed(self._activations) if result is output), None)


def run(function, x, recorder):
    """``function(x)``, as a layer in inference mode, while ``recorder`` watches.

    Args:
        function: model, layer or callable.
        x: tensor, or structure of tensors.
        recorder: Recorder.

    Returns:
        What the function returns.
    """
    arguments = {"training": False} if isinstance(function, keras.Layer) else {}
    with private.watching(recorder):
        return function(x, **arguments)


def eagerly(function):
    """Result of ``function()`` outside of whatever is being traced here, with the present values of variables."""
    results, errors = [], []

    def work():
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # What traces, and what variables stand for meanwhile, belongs to a thread.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _is_self_attention(scores):
    shape = scores.shape
    return len(shape) == 4 and shape[-1] == shape[-2] and shape[-1] is not None and shape[-1] > 1


def _attention(recorder, query, key, value, bias=None, mask=None, scale=None, is_causal=False, **_):
    """Dot-product attention of queries, keys and values ``(b, t, heads, d)``, with a softmax that can be recorded."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = ops.einsum("btnd,bsnd->bnts", query, key) * ops.cast(scale, query.dtype)
    scores = scores if bias is None else scores + ops.cast(bias, scores.dtype)
    if is_causal:
        causal = ops.tril(ops.ones(scores.shape[-2:], dtype="bool"))
        mask = causal if mask is None else ops.logical_and(mask, causal)
    if mask is not None:
        scores = ops.where(mask, scores, ops.cast(-1e9 if scores.dtype == "float32" else -3e4, scores.dtype))
    weights = ops.softmax(ops.cast(scores, "float32"), axis=-1)  # seen by ``function``, as any other
    return ops.einsum("bnts,bsnd->btnd", ops.cast(weights, value.dtype), value)
