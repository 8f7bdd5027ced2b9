"""The one place that uses API of Keras and TensorFlow which is not public; a test keeps it."""

import contextlib
import functools
import importlib
import threading

import keras

# Functions of Keras's backend that every way to call them ends in: ``keras.ops``, ``keras.activations``, layers.
ACTIVATIONS = ("softmax", "log_softmax", "sigmoid")
CONVOLUTIONS = ("conv", "depthwise_conv", "separable_conv", "conv_transpose")
PRODUCTS = ("matmul", "einsum", "tensordot", "dot", "inner", "vdot")
WATCHED_FUNCTIONS = {"nn": (*ACTIVATIONS, "dot_product_attention", *CONVOLUTIONS), "numpy": PRODUCTS}

_watchers = threading.local()
_installed = {"count": 0, "lock": threading.Lock(), "originals": []}


@contextlib.contextmanager
def watching(watcher):
    """Let ``watcher`` see every layer and every one of ``WATCHED_FUNCTIONS`` that this thread calls meanwhile.

    While anybody watches, ``keras.Operation.__call__``, ``keras.Layer.__call__`` and the functions of the backend are
    wrapped, in all threads, by a wrapper that asks the watchers of its own thread; nothing is put on a layer or model,
    and nothing is left afterwards, also not after an error.

    Args:
        watcher: object with ``layer(call, operation, args, kwargs)``, which returns what ``call(*args, **kwargs)``
            returns or something in its place, ``function(call, name, args, kwargs)``, likewise, and ``keeps_floats``,
            a bool, whether functional models of integers are to leave float inputs as they are.
    """
    with _installed["lock"]:
        if not _installed["count"]:
            _install()
        _installed["count"] += 1
    _stack().append(watcher)
    try:
        yield
    finally:
        _stack().remove(watcher)
        with _installed["lock"]:
            _installed["count"] -= 1
            if not _installed["count"]:
                _uninstall()


def _stack():
    if not hasattr(_watchers, "stack"):
        _watchers.stack = []
    return _watchers.stack


def _install():
    backend = importlib.import_module("keras.src.backend")
    replacements = [
        (getattr(backend, module), name, _watched_function)
        for module, names in WATCHED_FUNCTIONS.items()
        for name in names
    ]
    replacements += [(keras.Operation, "__call__", _watched_operation), (keras.Layer, "__call__", _watched_layer)]
    functional = importlib.import_module("keras.src.models.functional").Functional
    replacements.append((functional, "_convert_inputs_to_tensors", _watched_conversion))
    replacements.append((keras.Sequential, "input_dtype", _watched_dtype))
    for owner, name, wrap in replacements:
        original = getattr(owner, name)
        _installed["originals"].append((owner, name, original))
        setattr(owner, name, wrap(original, name))


def _uninstall():
    while _installed["originals"]:
        owner, name, original = _installed["originals"].pop()
        setattr(owner, name, original)


def _watched_function(original, name):
    @functools.wraps(original)
    def function(*args, **kwargs):
        call = original
        for watcher in _stack():
            call = functools.partial(watcher.function, call, name)
            call = _spread(call)
        return call(*args, **kwargs)

    return function


def _watched_layer(original, _):
    @functools.wraps(original)
    def __call__(layer, *args, **kwargs):
        call = functools.partial(original, layer)
        for watcher in _stack():
            call = _spread(functools.partial(watcher.layer, call, layer))
        return call(*args, **kwargs)

    return __call__


def _watched_operation(original, _):
    watched = _watched_layer(original, _)

    @functools.wraps(original)
    def __call__(operation, *args, **kwargs):
        # Of a layer this is the inner part of its own call, which was seen already.
        return (original if isinstance(operation, keras.Layer) else watched)(operation, *args, **kwargs)

    return __call__


def _watched_conversion(original, _):
    @functools.wraps(original)
    def convert(model, inputs):
        converted = original(model, inputs)
        if not _floats_are_kept():
            return converted
        return [
            x if keras.ops.is_tensor(x) and keras.backend.is_float_dtype(x.dtype) else cast
            for x, cast in zip(inputs, converted, strict=True)
        ]

    return convert


def _watched_dtype(original, _):
    return property(lambda model: keras.config.floatx() if _floats_are_kept() else original.fget(model))


def _floats_are_kept():
    return any(watcher.keeps_floats for watcher in _stack())


def _spread(call):
    return lambda *args, **kwargs: call(args, kwargs)


def silence_retracing(function):
    """Keep TensorFlow, which counts the traces of a tf.function by its line of source, from warning of many."""
    function._omit_frequent_tracing_warning = True
    return function


def inner_layers(model):
    """All layers of a model or layer, however deep, itself excluded; a list."""
    return list(model._flatten_layers(include_self=False, recursive=True))


@contextlib.contextmanager
def without_values():
    """Let variables that are made inside have shapes, but never values.

    Keras lists them, and would give them values at its next occasion, in the middle of a trace of JAX too.
    """
    state, name = importlib.import_module("keras.src.backend.common.global_state"), "uninitialized_variables"
    listed = list(state.get_global_attribute(name) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        state.set_global_attribute(name, listed)


def global_seed_state():
    """Variable ``(2,)`` of the generator that ``keras.random`` draws from where it is given no seed."""
    return importlib.import_module("keras.src.random.seed_generator").global_seed_generator().state


def gradient_function(op):
    """The function that TensorFlow has registered for the gradient of a tf.Operation."""
    from tensorflow.python.framework import ops

    return ops.get_gradient_function(op)


def body_of(function):
    """GraphDef of a FunctionDef, and the names of its tensors in it, by their names in the FunctionDef."""
    from tensorflow.python.framework import function_def_to_graph

    return function_def_to_graph.function_def_to_graph_def(function)
