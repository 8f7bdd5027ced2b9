"""What results depend on, in a form that is the same in every process and can be compared."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import types

import keras
import numpy as np
from keras import ops

from keras_capsvit import taps

_OPAQUE = ("keras", "tensorflow", "jax", "jaxlib", "threading", "weakref", "_thread")  # whose objects are their class
_DEEPEST = 8


def described(value, seen=None, depth=0):
    """What an object is: plain values, and digests where there are many.

    Models are their weights; functions their code and what they close over, not what they look up elsewhere;
    explainers what they were constructed with; other objects their class and attributes.

    Args:
        value: anything.
        seen: dict of what was described before, by id; None for nothing.
        depth: int, number of objects that it is inside of.

    Returns:
        What JSON takes, without NaN.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.generic):
        return described(value.item())
    if isinstance(value, pathlib.PurePath | type):
        return str(value)
    seen = {} if seen is None else seen
    if id(value) in seen or depth > _DEEPEST:
        return f"{type(value).__qualname__}, see above"
    seen[id(value)] = value  # which keeps its id from being given to another
    inner = functools.partial(described, seen=seen, depth=depth + 1)
    if isinstance(value, dict):
        return {str(name): inner(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [inner(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, keras.Layer):
        return {"class": type(value).__qualname__, "weights": digest(*map(ops.convert_to_numpy, value.variables)).hex()}
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)} {digest(ops.convert_to_numpy(value)).hex()}"
    if isinstance(value, taps.Scores):
        return inner(value.model)
    if isinstance(value, np.random.Generator):
        return inner(value.bit_generator.state)
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, types.MethodType):
        return [inner(value.__func__), inner(value.__self__)]
    if isinstance(value, types.FunctionType):
        around = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        inside = inner([around, value.__defaults__, value.__kwdefaults__])
        return [f"{value.__module__}.{value.__qualname__}", digest(*_code(value.__code__)).hex(), inside]
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **inner(fields)}
    if hasattr(value, "constructed_with"):  # an explainer's
        return {"class": type(value).__qualname__, **inner(value.constructed_with)}
    kind = {"class": type(value).__qualname__, "name": getattr(value, "__qualname__", None)}
    if type(value).__module__.split(".")[0] in _OPAQUE:
        return kind
    return {**kind, **inner(dict(getattr(value, "__dict__", {})))}


def digest(*parts):
    """SHA-256 of strings, bytes and arrays, as bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str | bytes):
            data = part.encode() if isinstance(part, str) else part
        else:
            array = np.ascontiguousarray(part)
            total.update(f"{array.dtype} {array.shape}".encode())
            data = array.tobytes()
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.digest()


def _code(code):
    """What a function does, as strings and bytes that are the same in every process."""
    yield code.co_code
    yield " ".join(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
