"""Between which values the tensors of a graph lie, by interval arithmetic, whatever the input is."""

import numpy as np
import tensorflow as tf

from keras_capsvit.explain.relevance.graph import node_of

ANY = (-np.inf, np.inf)
_UNIT = (0.0, 1.0)
_ROUNDING = 1e-6  # what floats may leave of a difference, relative to what it is between
_FIRST = {
    *("Identity", "Snapshot", "PreventGradient", "CheckNumerics", "StopGradient", "EnsureShape"),
    *("Reshape", "Transpose", "Squeeze", "ExpandDims", "Unpack", "SplitV", "Slice", "StridedSlice"),
    *("Gather", "GatherV2", "GatherNd", "ReverseV2", "Tile", "BroadcastTo", "Roll", "MirrorPad"),
    *("SpaceToDepth", "DepthToSpace", "BatchToSpaceND"),
    *("ResizeNearestNeighbor", "ResizeBilinear", "ResizeArea", "Mean", "AvgPool", "AvgPool3D"),
    *("MaxPool", "MaxPoolV2", "MaxPool3D", "Max", "Min"),
}
_FIXED = {
    **dict.fromkeys(("Softmax", "Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual"), _UNIT),
    **dict.fromkeys(("LogicalAnd", "LogicalOr", "LogicalNot", "OnesLike", "IsNan", "IsInf", "IsFinite"), _UNIT),
    **dict.fromkeys(("Sign", "Sin", "Cos"), (-1.0, 1.0)),
    **dict.fromkeys(("Shape", "ShapeN", "Size", "Rank", "ArgMax", "ArgMin"), (0.0, np.inf)),
    "ZerosLike": (0.0, 0.0),
    "LogSoftmax": (-np.inf, 0.0),
}
# Functions that never fall, with the values that they stay between.
_RISING = {
    "Relu": (lambda x: max(x, 0.0), ANY),
    "Relu6": (lambda x: min(max(x, 0.0), 6.0), ANY),
    "Elu": (lambda x: x if x > 0 else np.expm1(x), ANY),
    "Selu": (lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * np.expm1(x)), ANY),
    "Softplus": (lambda x: np.logaddexp(0.0, x), ANY),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), _UNIT),
    "Tanh": (np.tanh, (-1.0, 1.0)),
    "Atan": (np.arctan, ANY),
    "Exp": (np.exp, ANY),
    "Expm1": (np.expm1, ANY),
    "Log": (lambda x: np.log(x) if x > 0 else -np.inf, ANY),
    "Log1p": (lambda x: np.log1p(x) if x > -1 else -np.inf, ANY),
    "Sqrt": (lambda x: np.sqrt(max(x, 0.0)), ANY),
    "Floor": (np.floor, ANY),
    "Ceil": (np.ceil, ANY),
    "Round": (np.round, ANY),
}
# Where nothing falls below 0, neither does the result.
_OF_SIGN = {
    *("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "DepthwiseConv2dNative"),
    *("Conv3D", "Softsign", "Erf", "LRN", "Prod", "Cumsum", "CumulativeProd"),
}


class Intervals:
    """Lowest and highest values of the tensors of a graph; infinite where nothing is known.

    Args:
        graph: Graph.
        input_range: pair of floats that the input lies between.
    """

    def __init__(self, graph, input_range=ANY):
        self._graph, self._known = graph, {f"{graph.input}:0": input_range}

    def of(self, tensor):
        """``(lowest, highest)`` of a tensor by name."""
        graph, waiting = self._graph, [tensor]
        while waiting:
            key = waiting[-1]
            if key not in self._known:
                before = [] if key in graph.constants else graph.inputs(node_of(key))
                missing = [read for read in before if read not in self._known]
                if missing:
                    waiting += missing
                    continue
                self._known[key] = self._computed(key)
            waiting.pop()
        return self._known[tensor]

    def nonnegative(self, tensor):
        """Whether a tensor never falls below 0."""
        return self.of(tensor)[0] >= 0

    def contributions_nonnegative(self, name):
        """Whether nothing that a sum or mean is made of ever falls below 0."""
        op, inputs = self._graph.nodes[name].op, self._graph.inputs(name)
        if op == "Sub":
            return self.of(inputs[0])[0] >= 0 and self.of(inputs[1])[1] <= 0
        if op in ("Sum", "Mean", "AvgPool", "AvgPool3D", "ResizeBilinear", "ResizeArea"):
            return self.nonnegative(inputs[0])
        return op in ("AddV2", "Add", "AddN", "BiasAdd") and all(map(self.nonnegative, inputs))

    def _computed(self, key):
        graph, name = self._graph, node_of(key)
        if key in graph.constants:
            return _of_values(graph.constants[key])
        node = graph.nodes[name]
        inputs = [self._known[read] for read in graph.inputs(name)]
        if node.op == "Mul" and len(set(graph.inputs(name))) == 1:
            return _square(inputs[0])
        with np.errstate(all="ignore"):
            low, high = _interval(node, inputs, int(key.partition(":")[2]))
        low, high = float(low), float(high)
        return (-np.inf if np.isnan(low) else low, np.inf if np.isnan(high) else high)


def _of_values(constant):
    if constant.dtype.is_bool:
        return _UNIT
    if not (constant.dtype.is_floating or constant.dtype.is_integer) or not constant.shape.num_elements():
        return ANY
    values = constant.numpy()
    low, high = float(values.min()), float(values.max())
    return ANY if np.isnan(low) or np.isnan(high) else (low, high)


def _interval(node, inputs, index):
    """Interval of an output of a node."""
    op = node.op
    if op in _FIXED:
        return _FIXED[op]
    if op in _FIRST:
        return inputs[0]
    if op in _RISING:
        function, (lowest, highest) = _RISING[op]
        low, high = map(function, inputs[0])
        return max(low, lowest), min(high, highest)
    if op in _OF_SIGN:
        return (0.0 if all(low >= 0 for low, _ in inputs) else -np.inf), np.inf
    return _RULES[op](node, inputs, index) if op in _RULES else ANY


def _sum(node, inputs, index):
    low, high = (sum(ends) for ends in zip(*inputs, strict=True))
    return _outwards(low, high, inputs)


def _outwards(low, high, inputs):
    # A sum of one sign has it in floats, too; a difference may come out on the other side of what it is.
    if all(low >= 0 for low, _ in inputs) or all(high <= 0 for _, high in inputs):
        return low, high
    size = _ROUNDING * max((abs(end) for pair in inputs for end in pair if np.isfinite(end)), default=0.0)
    return low - size, high + size


def _difference(node, inputs, index):
    (a, b), (c, d) = inputs
    return _sum(node, [(a, b), (-d, -c)], index)


def _product(node, inputs, index):
    ends = [0.0 if 0 in (x, y) else x * y for x in inputs[0] for y in inputs[1]]
    return min(ends), max(ends)


def _quotient(node, inputs, index):
    (low, high), divisor = inputs
    if divisor[0] >= 0:
        return (0.0 if low >= 0 else -np.inf), (0.0 if high <= 0 else np.inf)
    return ANY


def _square(interval):
    low, high = interval
    ends = (low * low, high * high)
    return (0.0 if low <= 0 <= high else min(ends)), max(ends)


def _power(node, inputs, index):
    (low, _), exponent = inputs
    even = exponent[0] == exponent[1] and exponent[0] % 2 == 0
    return (0.0 if low >= 0 or even else -np.inf), np.inf


def _leaky(node, inputs, index):
    slope = node.attr["alpha"].f
    ends = [end if end > 0 else slope * end for end in inputs[0]]
    return min(*ends, *([0.0] if inputs[0][0] < 0 else [])), max(ends)


def _cast(node, inputs, index):
    low, high = inputs[0]
    target = tf.as_dtype(node.attr["DstT"].type)
    if target.is_bool:
        return _UNIT
    if target.is_integer:  # values beyond its limits are anything
        return (np.trunc(low), np.trunc(high)) if target.min <= low and high <= target.max else ANY
    return low, high


def _hull(*intervals):
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _abs(node, inputs, index):
    low, high = inputs[0]
    return max(low, -high, 0.0), max(-low, high)


def _total(node, inputs, index):
    low, high = inputs[0]
    return (0.0 if low >= 0 else -np.inf), (0.0 if high <= 0 else np.inf)


_RULES = {
    **dict.fromkeys(("AddV2", "Add", "AddN", "BiasAdd"), _sum),
    "Sub": _difference,
    "Mul": _product,
    **dict.fromkeys(("RealDiv", "Div", "DivNoNan", "Xdivy"), _quotient),
    "Sum": _total,
    "Square": lambda node, inputs, index: _square(inputs[0]),
    "SquaredDifference": lambda node, inputs, index: _square(_difference(node, inputs, index)),
    "Pow": _power,
    "LeakyRelu": _leaky,
    "Neg": lambda node, inputs, index: (-inputs[0][1], -inputs[0][0]),
    "Abs": _abs,
    "Rsqrt": lambda node, inputs, index: (0.0, np.inf),
    "Reciprocal": lambda node, inputs, index: _quotient(node, [_UNIT, inputs[0]], index),
    "Erfc": lambda node, inputs, index: (0.0, 2.0),
    "Maximum": lambda node, inputs, index: tuple(map(max, *inputs)),
    "Minimum": lambda node, inputs, index: tuple(map(min, *inputs)),
    "ClipByValue": lambda node, inputs, index: (
        max(inputs[0][0], inputs[1][0]),
        min(max(inputs[0][1], inputs[1][0]), inputs[2][1]),
    ),
    "Cast": _cast,
    "IdentityN": lambda node, inputs, index: inputs[index],
    "Split": lambda node, inputs, index: inputs[1],
    "ConcatV2": lambda node, inputs, index: _hull(*inputs[:-1]),
    "Pack": lambda node, inputs, index: _hull(*inputs),
    "Pad": lambda node, inputs, index: _hull(inputs[0], (0.0, 0.0)),
    "SpaceToBatchND": lambda node, inputs, index: _hull(inputs[0], (0.0, 0.0)),
    "PadV2": lambda node, inputs, index: _hull(inputs[0], inputs[2]),
    "MatrixDiagPartV3": lambda node, inputs, index: _hull(inputs[0], inputs[2]),
    "Select": lambda node, inputs, index: _hull(*inputs[1:]),
    "SelectV2": lambda node, inputs, index: _hull(*inputs[1:]),
    "Conv2DBackpropInput": lambda node, inputs, index: (
        0.0 if inputs[1][0] >= 0 and inputs[2][0] >= 0 else -np.inf,
        np.inf,
    ),
}
