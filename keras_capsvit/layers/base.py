"""What the layers share: arguments that are written once, and inputs that are looked at before anything is computed."""

import contextlib
import inspect
import operator
from typing import ClassVar

import keras

from keras_capsvit import checks

_OF_OLD = ("input_dim", "input_shape")  # which Keras still takes, with a warning


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


class ConfiguredLayer:
    """Layers whose configuration is the arguments of their constructors, written once, in the signatures.

    Each argument is read from the attribute of its name, so the configuration follows what is set later. Subclasses
    have a Keras layer behind this one in the order of their bases.

    Attributes:
        kept_in: dict from arguments to the attributes that they are kept in, such as ``"attn.num_heads"``; those that
            are not in it are kept in attributes of their names.

    Raises:
        ValueError: for an unknown keyword, with the nearest known one.
    """

    kept_in: ClassVar[dict] = {}

    def __init__(self, *args, **kwargs):
        constructors = [vars(kind)["__init__"] for kind in type(self).__mro__ if "__init__" in vars(kind)]
        known = dict.fromkeys(name for constructor in constructors for name in _named(constructor))
        for name in kwargs:
            checks.keyword(type(self), name, [*known, *_OF_OLD])
        super().__init__(*args, **kwargs)

    def get_config(self):
        config = super().get_config()
        for kind in reversed(type(self).__mro__):
            if issubclass(kind, ConfiguredLayer) and "__init__" in vars(kind):
                for name in _named(kind.__init__):
                    if name in config:  # Keras's own, such as the policy of dtype
                        continue
                    with contextlib.suppress(AttributeError):  # of a user's class, which then says itself what it keeps
                        value = operator.attrgetter(self.kept_in.get(name, name))(self)
                        config[name] = keras.saving.serialize_keras_object(value) if callable(value) else value
        return config


def _named(constructor):
    """Names of the arguments of a constructor, without those that it hands on."""
    _, *parameters = inspect.signature(constructor).parameters.values()
    return [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


class OfFloats(ConfiguredLayer):
    """Layers that refuse what is no tensor of floats of their rank, in words that name it; lists become arrays.

    Subclasses, which have a Keras layer behind this one in the order of their bases, name the tensors of their call in
    ``axes``, in its order: dict from arguments to axes such as ``"(b, i, d)"``; see ``checks.tensor``. Those in
    ``optional`` may be None.
    """

    axes: ClassVar[dict[str, str]] = {}
    optional: ClassVar[tuple[str, ...]] = ()

    def __call__(self, *args, **kwargs):
        args = list(args)
        for position, (name, axes) in enumerate(self.axes.items()):
            container, place = (args, position) if position < len(args) else (kwargs, name)
            if place in kwargs or position < len(args):
                left_out = container[place] is None and name in self.optional
                container[place] = None if left_out else checks.tensor(name, container[place], axes)
        checks.of_one_batch(type(self).__name__, [each for each in (*args, *kwargs.values()) if hasattr(each, "shape")])
        return super().__call__(*args, **kwargs)
