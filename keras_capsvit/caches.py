"""What is kept for models: a bounded number of values, dropped with the model, and made anew when it has changed."""

import collections
import functools
import threading
import types
import weakref

import keras
import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
# Attributes that come and go while a model is trained and run, and that no forward pass depends on.
_RUN_TIME = {
    *("activity_regularizer", "autocast", "build", "built", "call_signature_parameters", "compiled", "history", "loss"),
    *("name", "optimizer", "predict_function", "quantize", "steps_per_execution", "stop_evaluating", "stop_predicting"),
    *("stop_training", "supports_jit", "test_function", "train_function", "unrolled_steps_per_execution"),
    *("_called", "_compile_config", "_compile_loss", "_compile_metrics", "_compiled_trainable_state"),
    *("_eval_epoch_iterator", "_initial_epoch", "_jit_compile", "_lock", "_loss_tracker"),
    *("_run_eagerly", "_self_setattr_tracking", "_self_update_uid", "_tracker", "_trainable"),
}


class Cache:
    """Values that belong to objects, such as functions compiled for a model; nothing is stored on the objects.

    An entry goes when one of its objects does, when the cache is full and it was used longest ago, and when an object
    is no longer what it was when the entry was made (see ``fingerprint``). A value must not refer to the objects,
    except ``weakly``: it would keep them alive.

    Args:
        size: int >= 1, most entries.
    """

    def __init__(self, size):
        self.size = size
        self._entries = collections.OrderedDict()
        self._lock = threading.RLock()

    def __len__(self):
        return len(self._entries)

    def get(self, owners, key, make):
        """The value of some objects.

        Args:
            owners: tuple of objects that the value belongs to. A bound method is its object and its function; what
                takes no weak reference is kept alive as long as the entry.
            key: hashable, which of their values.
            make: callable without arguments, called if there is no such value, or an object changed.

        Returns:
            What ``make`` returned.
        """
        place = (*map(identity, owners), key)
        state = [fingerprint(owner) for owner in owners]
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None and entry[1] == state:
                self._entries.move_to_end(place)
                return entry[2]
        value = make()
        with self._lock:
            references = [weakly(owner, lambda _: self._entries.pop(place, None)) for owner in owners]
            self._entries[place] = references, state, value
            self._entries.move_to_end(place)
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        return value

    def clear(self):
        """Drop all entries."""
        self._entries.clear()


def identity(owner):
    """What tells an object from all others that are alive, a hashable; bound methods are made anew at every access."""
    if isinstance(owner, types.MethodType):
        return id(owner.__self__), id(owner.__func__)
    return id(owner)


def weakly(owner, callback=None):
    """A callable that returns an object while it is alive, and None afterwards.

    Args:
        owner: any object; one that takes no weak reference is kept alive.
        callback: callable of one argument, called when the object has gone.

    Returns:
        Callable without arguments.
    """
    try:
        kind = weakref.WeakMethod if isinstance(owner, types.MethodType) else weakref.ref
        return kind(owner, callback) if callback else kind(owner)
    except TypeError:
        return lambda: owner


def fingerprint(owner):
    """What a function may have found in an object when it was compiled, besides variables.

    Args:
        owner: a model; a bound method or another callable, of which the object and the layers that it closes over
            count.

    Returns:
        List that equals another one if the object's attributes, and those of the layers inside, are the same: numbers,
        strings and callables, such as ``rate``, ``strides`` and ``activation``.
    """
    state, seen, waiting = [], set(), _roots(owner)
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        state.append(_reference(part))
        attributes = getattr(part, "__dict__", {})
        for name in _that_matter(type(part).__module__.startswith("keras."), *attributes):
            value = attributes[name]
            kind = _KINDS.get(type(value)) or _kind(value)
            if kind == "plain":
                state.append(value)
            elif kind == "layer":
                waiting.append(value)
            elif kind == "callable":
                state.append(_reference(value))
            elif kind != "other":
                for element in value.values() if kind == "mapping" else value:
                    if isinstance(element, _PLAIN):
                        state.append(element)
                    elif isinstance(element, keras.Layer):
                        waiting.append(element)
        if isinstance(part, keras.Model):
            waiting.extend(part.layers)
    return state


_KINDS: dict[type, str] = {}  # by type


def _reference(value):
    try:
        return weakref.ref(value)  # equals only itself once the object has gone, unlike its id
    except TypeError:
        return id(value)


@functools.lru_cache(4096)
def _that_matter(of_keras, *names):
    """Attributes that outputs may depend on: no private ones of Keras, nor what makes and regularises variables."""
    unimportant = ("_initializer", "_regularizer", "_constraint")
    return [
        name
        for name in names
        if not (name in _RUN_TIME or name.startswith("_" if of_keras else "_self_") or name.endswith(unimportant))
    ]


def _kind(value):
    kinds = (
        ("plain", isinstance(value, _PLAIN)),
        ("layer", isinstance(value, keras.Layer)),
        ("sequence", isinstance(value, list | tuple)),
        ("mapping", isinstance(value, dict)),
        ("callable", callable(value)),
        ("other", True),
    )
    return _KINDS.setdefault(type(value), next(kind for kind, holds in kinds if holds))


def _roots(owner):
    if isinstance(owner, types.MethodType):
        return [owner.__self__]
    if isinstance(owner, types.FunctionType):
        return [part for part in map(_content, owner.__closure__ or ()) if isinstance(part, keras.Layer)]
    return [owner]


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return None
