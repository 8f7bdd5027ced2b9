"""What all models share: a constructor whose arguments are written once, and are the model's configuration."""

import inspect
from typing import ClassVar

import keras
import numpy as np

from keras_capsvit import checks


class ConfiguredModel(keras.Model):
    """Functional model that records what its constructor was given; base of every model of this package.

    A subclass writes its arguments once, in the signature of ``__init__``, and hands ``**kwargs`` on to ``super()``.
    What users may give are the arguments of its own constructor and the keyword-only ones of those that ``**kwargs``
    reaches (positional ones are what a subclass hands on to its base). ``inspect.signature`` and ``help`` show all of
    them. A subclass with ``fixed`` arguments and without a constructor has that of its base with these arguments set.

    Args:
        inputs: KerasTensor ``(b, H, W, C)``.
        scores: KerasTensor ``(b, M)``.
        name: str; None for the name of the class in lower case.
        trainable: bool.

    Raises:
        ValueError: for an unknown keyword, with the nearest known one, for one that the class sets itself, and for
            flags that are neither True nor False.
    """

    fixed: ClassVar[dict] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "fixed" in vars(cls) and "__init__" not in vars(cls):
            cls.__init__ = _with_fixed(cls)
        cls.__signature__ = _signature(cls)

    def __new__(cls, *args, **kwargs):
        _check_keywords(cls, kwargs)
        model = super().__new__(cls, *args, **kwargs)
        # What is missing, `__init__` says. Past Keras's `__setattr__`, which would track a backbone among the arguments
        # as a layer.
        bound = inspect.signature(cls).bind_partial(*args, **kwargs)
        bound.apply_defaults()
        parameters = inspect.signature(cls).parameters.values()
        flags = [each.name for each in parameters if isinstance(each.default, bool) and each.name in bound.arguments]
        checks.booleans(**{name: bound.arguments[name] for name in flags})
        vars(model)["_arguments"] = {name: _plain(value) for name, value in bound.arguments.items()}
        return model

    def __init__(self, inputs, scores, *, name=None, trainable=True):
        super().__init__(inputs=inputs, outputs=scores, name=name or type(self).__name__.lower())
        if not trainable:  # True, set here, would thaw a frozen backbone
            self.trainable = False

    def adopt(self, *layers):
        """Make built layers that are not on the way from images to scores part of what is trained, saved and counted.

        Keras before 3.15 does not track layers that a functional model gets as attributes after its construction; their
        variables, as attributes, it does.
        """
        known = {id(variable) for variable in self.variables}
        self._adopted = [variable for layer in layers for variable in layer.variables if id(variable) not in known]

    # The model itself has no variables but adopted ones, which their layers save: one file for all versions of Keras.

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass

    def resolve(self, **arguments):
        """Record what arguments stand for that were left open, such as the width of a variant."""
        self._arguments.update({name: _plain(value) for name, value in arguments.items()})

    def get_config(self):
        return {**self._arguments, "name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def live(value):
            is_object = isinstance(value, dict) and "class_name" in value
            return keras.saving.deserialize_keras_object(value, custom_objects) if is_object else value

        return cls(**{name: live(value) for name, value in config.items()})


def _with_fixed(cls):
    """Constructor of the base of a class, with the class's ``fixed`` arguments."""

    def __init__(self, *args, **kwargs):
        super(cls, self).__init__(*args, **cls.fixed, **kwargs)

    # Keras takes a constructor of *args and **kwargs for that of keras.Model when it clones a model.
    signature = inspect.signature(super(cls, cls).__init__)
    parameters = [parameter for name, parameter in signature.parameters.items() if name not in cls.fixed]
    __init__.__signature__ = signature.replace(parameters=parameters)
    return __init__


def _signature(cls):
    """Arguments that users may give to the constructor of a class: see ``ConfiguredModel``."""
    positional, keywords = None, {}
    for kind in cls.__mro__:
        if "__init__" not in vars(kind):
            continue
        _, *parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        if positional is None and inspect.Parameter.VAR_POSITIONAL not in kinds:
            positional = [each for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                keywords.setdefault(parameter.name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    named = {*cls.fixed, *(parameter.name for parameter in positional)}
    return inspect.Signature([*positional, *(each for name, each in keywords.items() if name not in named)])


def _check_keywords(cls, keywords):
    known = list(inspect.signature(cls).parameters)
    for name in keywords:
        if name in cls.fixed:
            (base,) = next(kind for kind in cls.__mro__ if "fixed" in vars(kind)).__bases__
            family = [kind.__name__ for kind in (base, *base.__subclasses__()) if kind is not cls]
            raise ValueError(
                f"{cls.__name__} sets {name}={cls.fixed[name]!r} itself; received {name}={keywords[name]!r}. Leave it "
                f"out, or take another class: {', '.join(kind for kind in family if not kind.startswith('_'))}."
            )
        policy = "Call keras.config.set_dtype_policy(...) before the model is built." if name == "dtype" else None
        checks.keyword(cls, name, known, policy)


def _plain(value):
    """A constructor argument as JSON takes it, with tuples for sequences."""
    if isinstance(value, keras.Layer):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    elif hasattr(value, "as_list"):  # a shape of TensorFlow
        value = value.as_list()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
