"""Taps: named intermediates of a model, as callables that share its weights.

Anything with a mapping ``taps`` has them. Its values are the symbolic tensors of a live functional model, or, where
there is no live model (a SavedModel), callables from images to the intermediate; then ``together(names)`` may say how
to compute several in one pass.
"""

import keras


def names(model):
    """Names of the taps of ``model``.

    Args:
        model: live model, served model, or any callable.

    Returns:
        Sorted list of str; empty for a plain callable.
    """
    return sorted(getattr(model, "taps", {}))


def tap(model, name):
    """Callable from images to a named intermediate.

    Args:
        model: live or served model that has taps.
        name: str, one of ``names(model)``; or a list of such, for one pass that returns the list of intermediates.

    Returns:
        Callable ``x`` → tensor. For a live model it is a ``keras.Model``, so it has ``predict`` as well.

    Raises:
        ValueError: if the model has no such tap; the message lists those it has.
    """
    wanted = [name] if isinstance(name, str) else list(name)
    for one in wanted:
        if one not in names(model):
            raise ValueError(
                f"{getattr(model, 'name', type(model).__name__)} has no tap {one!r}; it has {names(model)}."
            )
    found = [model.taps[one] for one in wanted]
    if all(callable(one) for one in found):
        if isinstance(name, str):
            return found[0]
        return model.together(wanted) if hasattr(model, "together") else lambda x: [one(x) for one in found]
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    return keras.Model(inputs, found[0] if isinstance(name, str) else found, name=f"{model.name}_tap")


class Scores:
    """Class scores of images, as a function ``x (b, H, W, C) → (b, M)``; see ``scores``.

    Attributes:
        variables: list of keras.Variable, what the scores depend on besides the images.
        kind: ``"lengths"`` of capsules, or ``"logits"``.
        input_shape: tuple ``(H, W, C)``, None where the model leaves it open; None for a callable that tells none.
    """

    def __init__(self, model):
        name = next((known for known in ("lengths", "logits") if known in names(model)), None)
        self.kind = name or "logits"
        self.variables = list(getattr(model, "variables", ()))
        shape = getattr(model, "input_shape", None)
        self.input_shape = tuple(shape[1:]) if shape else None
        self._function = model if name is None else tap(model, name)
        self._arguments = {"training": False} if isinstance(self._function, keras.Layer) else {}

    def __call__(self, x):
        return keras.ops.cast(self._function(x, **self._arguments), "float32")


def scores(model, output=None):
    """Class scores of a model before any softmax or sigmoid (stand-in)."""
    return model if isinstance(model, Scores) else Scores(model)


def predictions(model, x):
    """Class ids ``(b,)`` of the highest scores of images."""
    return keras.ops.convert_to_numpy(scores(model)(keras.ops.convert_to_tensor(x))).argmax(axis=-1)
