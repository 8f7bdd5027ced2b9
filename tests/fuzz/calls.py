"""One call of something public: drawn from a seed and its number, run, and judged."""

import ast
import dataclasses
import functools
import inspect
import pathlib
import re
import typing
import warnings

import numpy as np
from keras import ops

import keras_capsvit
from fuzz import zoo

PACKAGE = pathlib.Path(keras_capsvit.__file__).parent
FINE = ("right", "documented")
NOTHING = "none of them"  # of images or other rows
_KERAS = ("layers/input_spec.py", "utils/argument_validation.py", "ops/operation_utils.py")  # of layers, in Keras
_WORDS = 4  # of a message that says something


class Outcome(typing.NamedTuple):
    """What came of a call: ``right``, ``documented``, ``undocumented``, ``silent``, ``wrong``; and what exactly."""

    kind: str
    detail: str = ""


class Call(typing.NamedTuple):
    """A Subject, and Values by parameter."""

    subject: typing.Any
    values: dict

    def __str__(self):
        return f"{self.subject.name}({', '.join(f'{name}={value.text}' for name, value in self.values.items())})"

    def has(self, verdict):
        return [f"{name}={value.text}" for name, value in self.values.items() if value.verdict == verdict]


def drawn(subject, seed, number):
    """The call of a number: good arguments, of which none, one or two are exchanged for any others."""
    random = np.random.default_rng([seed, number])
    values = {}
    for name, pool in subject.pools.items():
        if name in subject.required:
            values[name] = pool.good(random) if random.uniform() < 0.3 else pool.values["good"][0]
        elif random.uniform() < 0.15:
            values[name] = pool.good(random)
    exchanged = random.choice([0, 1, 2], p=[0.15, 0.65, 0.2]) if number else 0
    for name in random.permutation(list(subject.pools))[:exchanged]:
        values[str(name)] = subject.pools[name].hostile(random)
    if any(value.text == NOTHING for value in values.values()):  # then what is made of it is looked at by nobody
        for name, value in values.items():
            if value.text != NOTHING and value.verdict != "good":
                values[name] = subject.pools[name].good(random)
    return Call(subject, values)


def plain(subject):
    """The call with the first good value of everything that has to be given."""
    return Call(subject, {name: subject.pools[name].values["good"][0] for name in subject.required})


def judged(call):
    """Run a call, and judge what comes of it."""
    arguments = {name: value.make() for name, value in call.values.items()}
    if "_texts" in inspect.signature(call.subject.call).parameters and not (call.has("bad") or call.has("nan")):
        texts = tuple(sorted((n, v.text) for n, v in call.values.items() if not n.startswith(".")))
        arguments = {"_texts": texts, **arguments}  # explainers that are the same are made once
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            result = call.subject.call(**arguments)
    except zoo.Deliberate:
        return Outcome("right")
    except Exception as error:
        return _of_error(error)
    return _of_result(call, arguments, result)


def _of_error(error):
    message = str(error)
    if is_documented(error):
        return Outcome("documented", message)
    frame = _innermost(error)
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    return Outcome("undocumented", f"{type(error).__name__} at {_short(place)}: {message:.150}")


def _of_result(call, arguments, result):
    bad = call.has("bad")
    longer = [value for value in bad if value.endswith("=one more")]
    if bad and not len(longer) == len(bad) > 1:  # several that are longer by one have the same length
        return Outcome("silent", f"took {' and '.join(bad)}")
    arrays = list(_arrays(result))
    finite = all(np.isfinite(array).all() for array in arrays)
    if call.has("nan"):
        if finite and sum(array.size for array in arrays):
            return Outcome("silent", f"finite from {' and '.join(call.has('nan'))}")
        return Outcome("right")
    if not finite and not (call.subject.nan or call.has("open")):
        return Outcome("silent", "NaN or infinite from finite arguments")
    problem = call.subject.check(arguments, result)
    return Outcome("wrong", problem) if problem else Outcome("right")


def is_documented(error):
    """Whether an error was raised by this package, with a message; is Python's about a call's keywords; or is Keras's
    about the arguments and inputs of layers, which says what was expected and received."""
    message = str(error)
    if isinstance(error, TypeError) and re.search(
        r"unexpected keyword|missing \d+ required|positional argument", message
    ):
        return True
    frame = _innermost(error)
    path = pathlib.Path(frame.tb_frame.f_code.co_filename)
    if isinstance(error, ValueError) and path.as_posix().partition("keras/src/")[2] in _KERAS:
        return True
    if not path.is_relative_to(PACKAGE) or len(message.split()) < _WORDS:
        return False
    return any(start <= frame.tb_lineno <= end for start, end in _raises(path))


def _innermost(error):
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    return frame


@functools.cache
def _raises(path):
    """Lines of the statements of a file that raise a new error."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [(node.lineno, node.end_lineno) for node in nodes if isinstance(node, ast.Raise) and node.exc]


def _arrays(result):
    """All arrays of numbers in a result."""
    if isinstance(result, dict):
        result = list(result.values())
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = [getattr(result, field.name) for field in dataclasses.fields(result)]
    if isinstance(result, list | tuple):
        for each in result:
            yield from _arrays(each)
    elif isinstance(result, float | np.ndarray | np.generic) or ops.is_tensor(result):
        array = np.asarray(ops.convert_to_numpy(result))
        if array.dtype.kind in "fiub":
            yield array


def _short(place):
    return re.sub(r"^.*/(keras_capsvit|site-packages|lib/python[^/]*|tests)/", r"\1/", place)
