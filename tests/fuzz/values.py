"""Pools of arguments. Every value has a verdict on what may come of a call with it.

``good``: the call returns something finite, or refuses the combination. ``open``: returning and refusing are both
right. ``nan``: it is refused, or something that is not finite comes out. ``bad``: it is refused.
"""

import typing

import numpy as np
from keras import ops

from fuzz import zoo

VERDICTS = ("good", "open", "nan", "bad")


class Value(typing.NamedTuple):
    """An argument: what makes it anew for every call, how it is printed, and its verdict."""

    make: typing.Callable
    text: str
    verdict: str


class Pool:
    """Values of one parameter, by verdict; of each a list of plain values, or of Lazy ones."""

    def __init__(self, good, bad=(), open=(), nan=()):
        self.values = {
            verdict: [_value(each, verdict) for each in each_of]
            for verdict, each_of in zip(VERDICTS, (good, open, nan, bad), strict=True)
        }

    def good(self, random):
        return self.values["good"][random.integers(len(self.values["good"]))]

    def hostile(self, random):
        """A value of any verdict, the first good one aside, all alike likely."""
        every = [value for values in self.values.values() for value in values][1:]
        return every[random.integers(len(every))] if every else self.good(random)

    def or_none(self):
        """The same pool, in which None is the first good value: of parameters with that default."""
        pool = Pool([None])
        for verdict, values in self.values.items():
            pool.values[verdict] += [value for value in values if value.text != "None"]
        return pool

    def and_open(self, *values):
        """The same pool in which some values are open."""
        texts = {_value(each, "open").text for each in values}
        pool = Pool([], open=values)
        for verdict, own in self.values.items():
            pool.values[verdict] += [value for value in own if value.text not in texts]
        return pool

    def and_bad(self, *bad):
        """The same pool with further bad values."""
        self.values["bad"] += [_value(each, "bad") for each in bad]
        return self


class Lazy(typing.NamedTuple):
    """A value that is made anew for every call, and its text."""

    text: str
    make: typing.Callable


def _value(each, verdict):
    if isinstance(each, Lazy):
        return Value(each.make, each.text, verdict)
    return Value(lambda: each, repr(each)[:60], verdict)


def generator():
    return (k for k in range(3))


OBJECTS = Lazy("array of objects", lambda: np.array([object(), None]))
NO_NUMBERS = [
    "3",
    b"3",
    None,
    [],
    {},
    1j,
    Lazy("object", object),
    Lazy("generator", generator),
    OBJECTS,
    Lazy("abs", lambda: abs),
]
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def among(good, bad=(), open=(), nan=(), but=()):
    """Pool in which one of every type is bad, too, if it is not listed otherwise or in ``but``, texts."""
    pool = Pool(good, bad, open, nan)
    listed = {value.text for values in pool.values.values() for value in values} | set(but)
    others = [None, "nonsense", 3, 1.5, [], {}, 1j, float("nan"), b"x", Lazy("generator", generator), OBJECTS]
    pool.values["bad"] += [value for value in (_value(each, "bad") for each in others) if value.text not in listed]
    pool.values["open"] += [value for value in (_value(each, "open") for each in others) if value.text in but]
    return pool


def nonsense(functions):
    """Callables that return nonsense, as values."""
    return [Lazy(each.__name__, lambda each=each: each) for each in functions]


def whole(low, good, high=None, huge=True):
    """Integers from ``low`` to ``high``."""
    beyond = [] if high is None else [high + 1, 2**31, 2**32]
    bad = [low - 1, -(2**31), True, low + 0.5, [low], *beyond, *NOT_FINITE, *NO_NUMBERS]
    return Pool([*good, np.int64(good[0])], bad, [float(good[0]), *([2**31, 2**63] if high is None and huge else [])])


def number(good, low=-np.inf, high=np.inf, *, above=False, below=False):
    """Numbers between ``low`` and ``high``; with ``above`` and ``below`` without these themselves."""
    beyond = [low - 0.5] if np.isfinite(low) else []
    beyond += [high + 0.5, 1e30] if np.isfinite(high) else []
    beyond += ([low] if above else []) + ([high] if below else [])
    edges = [edge for edge in (low, high) if np.isfinite(edge) and edge not in beyond]
    bad = [*beyond, True, [good[0]], *NOT_FINITE, *NO_NUMBERS]
    return Pool([*good, np.float32(good[0]), np.float64(good[-1])], bad, [*edges, 1e-30])


def flag():
    return Pool([True, False, np.True_], ["no", None, 2, -1, 1.5, [], float("nan"), "True", 1j], [0, 1])


def choice(*options):
    return Pool(options, ["nonsense", "", options[0].upper() + "x", None, 3, [], float("nan"), True, b"x", 1j, {}])


def seed():
    return Pool([0, 7, np.int64(3)], [1.5, *NOT_FINITE, *NO_NUMBERS], [2**31, 2**32, 2**63, -1, True, [1, 2]])


def array(
    make, *, fixed=True, wrong_length=True, integers="open", not_finite="nan", infinite=None, more_bad=(), more_good=()
):
    """Arrays of floats.

    Args:
        make: callable, makes a good one.
        fixed: bool, whether the rank is, so that others are bad.
        wrong_length: bool, whether another length than that of the other arguments is bad.
        integers: verdict on arrays of integers.
        not_finite: verdict on arrays with NaN or infinite values.
        infinite: verdict on those with infinite ones; None for the same.
    """

    def changed(value):
        def change():
            array = np.array(make())
            array.flat[array.size // 2] = value
            return array

        return change

    good = [
        Lazy("array", make),
        Lazy("float64", lambda: make().astype("float64")),
        Lazy("tensor", lambda: ops.convert_to_tensor(make())),
        Lazy("nested lists", lambda: make().tolist()),
        Lazy("strided", lambda: np.repeat(make(), 2, axis=0)[::2]),
        Lazy("float16", lambda: make().astype("float16")),
        *more_good,
    ]
    large = [Lazy("inf inside", changed(np.inf)), Lazy("-inf inside", changed(-np.inf))]
    bad = [
        Lazy("strings", lambda: make().astype(str)),
        Lazy("complex", lambda: make().astype("complex64")),
        Lazy("objects", lambda: make().astype(object)),
        Lazy("ragged", lambda: [make()[0].tolist(), [1.0]]),
        Lazy("dict", lambda: {"x": make()}),
        Lazy("set", lambda: {1.0, 2.0}),
        "array",
        None,
        *([Lazy("generator", generator)]),
        *more_bad,
    ]
    bad += [Lazy("one rank less", lambda: make()[0]), Lazy("one rank more", lambda: make()[None]), 1.0] if fixed else []
    bad += [Lazy("one more", lambda: np.concatenate([make(), make()[:1]]))] if wrong_length else []
    open = [
        Lazy("bools", lambda: make() > 0.5),
        Lazy("huge values", changed(1e30)),
        Lazy("tiny values", changed(1e-40)),
        Lazy("zeros", lambda: np.zeros_like(make())),
        Lazy("none of them", lambda: make()[:0]),
    ]
    pools = {"open": open, "good": good, "bad": bad, "nan": []}
    pools[not_finite].append(Lazy("NaN inside", changed(np.nan)))
    pools[infinite or not_finite] += large
    pools[integers] += [
        Lazy("uint8", lambda: (make() * 200).astype("uint8")),
        Lazy("int64", lambda: make().astype("int64")),
    ]
    return Pool(good, bad, open, pools["nan"])


def pictures(sizes=True, wrong_length=True):
    """Images ``(b, H, W, C)`` in [0, 1]; with ``sizes`` those of another size are bad."""
    make = zoo.images
    bad = [
        Lazy("another size", lambda: np.zeros((zoo.BATCH, zoo.SIZE + 1, zoo.SIZE + 3, 1), "float32")),
        Lazy("three channels", lambda: np.repeat(make(), 3, axis=-1)),
    ]
    return array(make, wrong_length=wrong_length, more_bad=bad if sizes else [])


def _labels_with(value):
    def change():
        ids = zoo.ids().astype(np.result_type(type(value), "int64") if not isinstance(value, float) else "float64")
        ids[1] = value
        return ids

    return Lazy(f"label {value!r}", change)


def labels(classes=True, rows="bad", others=True):
    """Class ids of images; ``classes``, whether their number is known, so that others are bad.

    ``rows`` is the verdict on rows that are not one-hot; ``others``, whether there are images that they are labels of.
    """
    ids = zoo.ids
    beyond = [_labels_with(zoo.CLASSES), _labels_with(2**31), _labels_with(2**32), _labels_with(2**40)]
    good = [
        Lazy("ids", ids),
        Lazy("int32", lambda: ids().astype("int32")),
        Lazy("uint8", lambda: ids().astype("uint8")),
        Lazy("floats", lambda: ids().astype("float32")),
        Lazy("column", lambda: ids()[:, None]),
        Lazy("one-hot", lambda: np.eye(zoo.CLASSES)[ids()]),
        Lazy("list", lambda: ids().tolist()),
        Lazy("tensor", lambda: ops.convert_to_tensor(ids())),
    ]
    bad = [
        *map(_labels_with, (-1, -3, 1.7, float("nan"), float("inf"))),
        Lazy("bools", lambda: ids() > 0),
        Lazy("complex", lambda: ids().astype(complex)),
        Lazy("strings", lambda: ids().astype(str)),
        Lazy("objects", lambda: ids().astype(object)),
        Lazy("ragged", lambda: [[0], [1, 2], [0], [0]]),
        Lazy("generator", generator),
        "ids",
        None,
        0,
        {},
    ]
    pools = {"bad": bad + (beyond if classes else []), "open": [] if classes else beyond}
    pools["bad" if others else "open"] += [
        Lazy("one more", lambda: zoo.ids(zoo.BATCH + 1)),
        Lazy("one less", lambda: zoo.ids(zoo.BATCH - 1)),
        Lazy("none of them", lambda: ids()[:0]),
    ]
    pools[rows] += [
        Lazy("soft one-hot", lambda: np.full((zoo.BATCH, zoo.CLASSES), 1 / zoo.CLASSES)),
        Lazy("two ones in a row", lambda: np.ones((zoo.BATCH, zoo.CLASSES))),
    ]
    return Pool(good, pools["bad"], pools["open"])


def targets(several="bad", none="good", beyond="bad"):
    """A class id for all images, ids, or None, with verdicts on None, several ids for an image, and no classes."""
    ids = zoo.ids
    good = [
        0,
        np.int64(2),
        Lazy("ids", ids),
        Lazy("int32", lambda: ids().astype("int32")),
        Lazy("list", lambda: ids().tolist()),
    ]
    bad = [
        *(-1, -2, 2**31, 2**32, 1.5, "cat", True, 1j, float("nan"), float("inf"), [], {}, b"1"),
        *map(_labels_with, (-1, 2**32, 1.7, float("nan"))),
        Lazy("one less", lambda: zoo.ids(zoo.BATCH - 1)),
        Lazy("one more", lambda: zoo.ids(zoo.BATCH + 1)),
        Lazy("bools", lambda: ids() > 0),
        Lazy("strings", lambda: ids().astype(str)),
        Lazy("objects", lambda: ids().astype(object)),
        Lazy("generator", generator),
        Lazy("predict", lambda: zoo.linear),
    ]
    open = [1.0, Lazy("float ids", lambda: ids().astype("float32"))]
    pools = {"good": good, "bad": bad, "open": open}
    pools[several].append(Lazy("two ids each", lambda: np.stack([ids(), ids()], axis=1)))
    pools[none].insert(0, None)
    pools[beyond] += [zoo.CLASSES, _labels_with(zoo.CLASSES)]
    return Pool(good, bad, open)


def bounds():
    bad = [(1, 0), (0, 0), (float("nan"), 1), (0, float("inf")), None, 3, "01", (0, 1, 2), ("a", "b"), ((0, 0), (1, 1))]
    bad += [(0.4, 0.6), {}, [], (None, None), (0, 1j), Lazy("generator", generator), (False, True)]
    return Pool([(0, 1), (0.0, 1.0), [0, 1], ((0,), (1,)), (np.float32(0), np.float32(1))], bad, [(-1, 2), (0, 255)])


def models(*good, bad=(), silly=zoo.NONSENSE, scored=True):
    """Models, as callables that make them, the zoo's if none are given; ``scored``, whether one has to have scores."""
    good = good or (zoo.cnn, zoo.softmax_cnn, zoo.graph_capsules, zoo.transformer)
    others = (zoo.two_inputs, *([zoo.without_scores] if scored else []), *bad)
    bad = [None, "model", 3, [], {}, 1j, *(Lazy(each.__name__, each) for each in others), *nonsense(silly)]
    nan = [Lazy("broken", zoo.broken), Lazy("not_finite", lambda: zoo.not_finite)]
    return Pool([Lazy(each.__name__, each) for each in good], bad, [Lazy("raises", lambda: zoo.raises)], nan)


def datasets(of_model=True):
    """Data sets; ``of_model``, whether a model tells which size and labels are bad."""
    x, y = zoo.images, zoo.ids
    good = [
        Lazy("pair", lambda: (x(), y())),
        Lazy("list", lambda: [x(), y()]),
        Lazy("batches", lambda: [(x(), y()), (x(2), y(2))]),
        Lazy("examples", lambda: zip(x(), y(), strict=True)),
        Lazy("stream", zoo.batched),
        Lazy("one-hot", lambda: (x(), np.eye(zoo.CLASSES)[y()])),
    ]
    bad = [
        *(None, "mnist", 3, {}, 1j, [], Lazy("images", x), Lazy("generator", generator), [1, 2], (1, 2), ("a", "b")),
        Lazy("no examples", lambda: (x(0), y(0))),
        Lazy("another number of labels", lambda: (x(), y(3))),
        Lazy("negative labels", lambda: (x(), y() - 1)),
        Lazy("label 2**32", lambda: (x(), y() + 2**32)),
        Lazy("label 1.7", lambda: (x(), y() + 0.7)),
        Lazy("bools", lambda: (x(), y() > 0)),
        Lazy("strings", lambda: (x(), y().astype(str))),
        Lazy("NaN images", lambda: (x() * np.nan, y())),
        Lazy("infinite images", lambda: (x() / np.zeros(1), y())),
        Lazy("triples", lambda: [(x(), y(), y())]),
        Lazy("images without channels", lambda: (x()[..., 0], y())),
        Lazy("bad second batch", lambda: [(x(), y()), (x() * np.nan, y())]),
        Lazy("different sizes", lambda: list(zip([x()[0], x()[1, :3]], y(), strict=False))),
        Lazy("objects", lambda: (x().astype(object), y())),
    ]
    bad_for_model = [
        Lazy("another size", lambda: (np.zeros((4, 9, 9, 1), "float32"), y())),
        Lazy("labels beyond", lambda: (x(), y() + 1)),
    ]
    return Pool(good, bad + bad_for_model) if of_model else Pool(good, bad, bad_for_model)


def attacks():
    good = [
        Lazy("FGSM", zoo.fgsm),
        Lazy("BIM", zoo.bim),
        Lazy("identity", lambda: lambda objective, x, y, targeted=False: x),
    ]
    bad = [
        None,
        "pgd",
        3,
        [],
        {},
        *(Lazy(each.__name__, lambda each=each: each) for each in (*zoo.NONSENSE, zoo.not_finite)),
    ]
    return Pool(good, bad, [Lazy("raises", lambda: zoo.raises)])


def mapping(pool, most=2):
    """Dicts from names to values of a pool."""

    def of(value):
        return Lazy(f"{{'a': {value.text}}}", lambda: {"a": value.make()})

    good = [of(value) for value in pool.values["good"][:most]]
    bad = [of(value) for value in pool.values["bad"]]
    bad += [None, "names", 3, [], 1j, Lazy("no dict", lambda: [("a", pool.values["good"][0].make())])]
    return Pool(good, bad, [{}, *(of(value) for value in pool.values["open"])])
