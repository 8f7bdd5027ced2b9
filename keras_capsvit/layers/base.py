"""What the layers share: inputs that are looked at before anything is computed."""

from typing import ClassVar

import keras

from keras_capsvit import checks


def initializer(value, default):
    """The initialiser for what was given as ``kernel_initializer``, ``default`` for None.

    Raises:
        ValueError: for what is no name, configuration or object of one.
    """
    if value is None:
        return default
    try:
        result = keras.initializers.get(value or None)
    except (ValueError, TypeError):
        result = None
    if not callable(result):
        raise ValueError(
            f"kernel_initializer must be an initialiser of keras.initializers, or its name; received {value!r:.60}."
        )
    return result


class OfFloats:
    """Layers that refuse what is no tensor of floats of their rank, in words that name it; lists become arrays.

    Subclasses, which have a Keras layer behind this one in the order of their bases, name the tensors of their call in
    ``axes``, in its order: dict from arguments to axes such as ``"(b, i, d)"``; see ``checks.tensor``. Those in
    ``optional`` may be None.
    """

    axes: ClassVar = {}
    optional: ClassVar = ()

    def __call__(self, *args, **kwargs):
        args = list(args)
        for position, (name, axes) in enumerate(self.axes.items()):
            container, place = (args, position) if position < len(args) else (kwargs, name)
            if place in kwargs or position < len(args):
                left_out = container[place] is None and name in self.optional
                container[place] = None if left_out else checks.tensor(name, container[place], axes)
        checks.of_one_batch(type(self).__name__, [each for each in (*args, *kwargs.values()) if hasattr(each, "shape")])
        return super().__call__(*args, **kwargs)
