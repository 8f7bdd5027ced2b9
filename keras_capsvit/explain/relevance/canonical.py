"""What the ops of a graph mean to relevance: kinds of steps, gates and normalisations."""

import dataclasses
import functools

from keras_capsvit.explain.relevance.graph import Graph, node_of
from keras_capsvit.explain.relevance.intervals import ANY, Intervals
from keras_capsvit.explain.relevance.linear import Linear, linear_layers

PRODUCTS = ("Mul", "MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")
QUOTIENTS = ("RealDiv", "Div", "DivNoNan", "Xdivy")
SUMS = ("AddV2", "Add", "AddN", "Sub", "BiasAdd")
KINDS = {
    "sum": (*SUMS, "Sum", "ResizeBilinear", "ResizeBicubic", "ResizeArea"),
    "average": ("Mean", "AvgPool", "AvgPool3D"),
    "maximum": ("MaxPool", "MaxPoolV2", "MaxPool3D", "Max", "Maximum", "Min", "Minimum"),
    "identity": ("Identity", "IdentityN", "Snapshot", "PreventGradient", "CheckNumerics"),
    "structure": (
        *("Reshape", "Transpose", "Squeeze", "ExpandDims", "Pad", "PadV2", "MirrorPad", "ConcatV2", "Pack", "Unpack"),
        *("Split", "SplitV", "Slice", "StridedSlice", "Gather", "GatherV2", "GatherNd", "ReverseV2", "Tile", "Cast"),
        *("SpaceToBatchND", "BatchToSpaceND", "SpaceToDepth", "DepthToSpace", "SelectV2", "Select"),
        *("ResizeNearestNeighbor", "MatrixDiagPartV3", "Roll"),
    ),
    "activation": (
        *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Tanh", "Sigmoid", "Softplus", "Softsign", "Erf", "Erfc"),
        *("Exp", "Log", "Log1p", "Rsqrt", "Sqrt", "Square", "Abs", "Neg", "Reciprocal", "Pow", "ClipByValue", "Sin"),
        *("Cos", "Atan", "LogSoftmax", "LRN", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"),
    ),
    "broadcast": ("BroadcastTo",),
    "softmax": ("Softmax",),
}
_KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops}
# Factors that scale what they multiply, rather than being explained themselves.
_GATES = {"Sigmoid", "Rsqrt", "Sqrt", "Reciprocal", "Erf", "Erfc", "Tanh", "Relu6"}
_MOVING = {
    *("Reshape", "Transpose", "Squeeze", "ExpandDims", "StridedSlice"),
    *("Identity", "IdentityN", "Cast", "BroadcastTo", "Tile"),
}
_AFFINE = {"Mul", "AddV2", "Add", "Sub", "RealDiv", "BiasAdd", "Neg"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One redistribution: relevance arrives at a node and goes to some of the tensors in ``inputs``.

    Attributes:
        name: str, the node; ``op``: its type, of a linear layer that of its head; ``kind``: which rules there are.
        inputs: names of tensors; ``active``: positions of those that relevance may go to.
        main: int or None, the one of them that gets all of it from rules that make a difference.
        linear: Linear or None.
        nonnegative: bool, whether nothing that the output is a sum of can be negative.
    """

    name: str
    op: str
    kind: str
    inputs: tuple
    active: tuple
    main: int | None = None
    linear: Linear | None = None
    nonnegative: bool = False

    @property
    def path(self):
        """Name of the node that tells the layer."""
        return self.linear.head if self.linear else self.name


class Reader:
    """Reads a graph as steps.

    Args:
        graph: Graph.
        source: str, the node that relevance goes to.
        borders: names of nodes that no linear layer may extend beyond.
        input_range: pair of floats that the input lies between.
    """

    def __init__(self, graph: Graph, source, borders=(), input_range=ANY):
        self.graph, self.source = graph, source
        self.follow = graph.descendants(source)
        self._intervals = Intervals(graph, input_range)
        self._near = self._find_near() if source == graph.input else set()
        self._linear = linear_layers(graph, self.follow, set(borders))
        for linear in self._linear.values():
            x = graph.inputs(linear.head)[linear.position]
            linear.nonnegative, linear.first = self._intervals.nonnegative(x), node_of(x) in self._near
        self._normalizations = self._find_normalizations()

    def step(self, name, whole=True):
        """The Step at a node; with ``whole``, a normalisation that ends there is one step."""
        op, inputs = self.graph.nodes[name].op, tuple(self.graph.inputs(name))
        if whole and name in self._normalizations:
            return Step(name, op, "normalization", (self._normalizations[name],), (0,), 0)
        if name in self._linear:
            linear = self._linear[name]
            inputs = tuple(self.graph.inputs(linear.head))
            at = linear.position
            return Step(name, self.graph.nodes[linear.head].op, "linear", inputs, (at,), at, linear)
        active = self._active(name)
        if op == "IdentityN":  # its further inputs are there for a gradient of its own
            active = tuple(i for i in active if i == 0) or active
        kind, main = self._kind(name, op, inputs, active)
        return Step(name, op, kind, inputs, active, main, None, self._intervals.contributions_nonnegative(name))

    def _active(self, name):
        return tuple(i for i, tensor in enumerate(self.graph.inputs(name)) if node_of(tensor) in self.follow)

    def _kind(self, name, op, inputs, active):
        if op in QUOTIENTS:
            return "scale", 0 if 0 in active else active[0]
        if op in SUMS and len(active) == 1:
            return "shift", active[0]
        if op in ("Maximum", "Minimum") and len(active) == 1:
            return "activation", active[0]
        if op not in PRODUCTS:
            return _KIND_OF.get(op, op), active[0] if len(active) == 1 else None
        if len(active) == 1:
            return ("scale" if op == "Mul" else "product"), active[0]
        sources = [self._source(inputs[i]) for i in active]
        for gates in ({"Softmax"}, _GATES):
            gates_at = [i for i, source in zip(active, sources, strict=True) if source in gates]
            if len(gates_at) == 1:
                elementwise = op == "Mul" and "Softmax" not in gates
                return ("gate" if elementwise else "product"), next(i for i in active if i != gates_at[0])
        if op == "Mul" and (larger := self._larger(inputs)) is not None:
            return "gate", larger
        return "product", None

    def _source(self, tensor):
        """Type of the op that a factor comes from, past reshapes, constants, signs and divisors."""
        name = node_of(tensor)
        while name != self.source and name not in self._linear:
            op, active = self.graph.nodes[name].op, self._active(name)
            inputs = self.graph.inputs(name)
            if op == "Mul" and len(active) == 2:
                # A softmax that is scaled is still what weighs.
                return "Softmax" if "Softmax" in map(self._source, inputs) else op
            divides = op in QUOTIENTS and 0 in active
            alone = len(active) == 1 and op in _AFFINE | {"Maximum", "Minimum"}
            if not active or not (divides or alone or op in _MOVING):
                return op
            name = node_of(inputs[active[0]])
        return self.graph.nodes[name].op

    def _larger(self, inputs):
        """Position of the factor that the other one is broadcast over, or None."""
        a, b = (self.graph.shapes[i] for i in inputs)
        if a.rank is None or b.rank is None:
            return None
        if a.rank != b.rank:
            return 0 if a.rank > b.rank else 1
        a_wider = any(q == 1 and p != 1 for p, q in zip(a, b, strict=True))
        b_wider = any(p == 1 and q != 1 for p, q in zip(a, b, strict=True))
        return None if a_wider == b_wider else int(b_wider)

    def _find_near(self):
        """Nodes that nothing but affine ops of single elements, and moves, lie between and the input."""
        near = {self.graph.input}
        for name in self.graph.order:
            op, inputs, active = self.graph.nodes[name].op, self.graph.inputs(name), self._active(name)
            if name not in self.follow or not active or not (op in KINDS["structure"] or op in _AFFINE | {"Identity"}):
                continue
            joins = len(active) == 1 or op in ("ConcatV2", "Pack")
            passive = [i for k, i in enumerate(inputs) if k not in active]
            divides = op == "RealDiv" and active != (0,)
            known = op in KINDS["structure"] or all(i in self.graph.constants for i in passive)
            if joins and known and not divides and all(node_of(inputs[i]) in near for i in active):
                near.add(name)
        return near

    def _find_normalizations(self):
        """Tensor that is normalised by the last node of its normalisation (layer, group and instance normalisation)."""
        normalized = {}
        readers = self.graph.readers(self.graph.dependent)
        for name in self.graph.order:
            if name in self.follow and self.graph.nodes[name].op in ("Rsqrt", "Sqrt"):
                centred = self._centred(name)
                if centred is not None:
                    end = self._join(centred[1], readers)
                    shapes = self.graph.shapes
                    if end is not None and list(shapes[f"{end}:0"]) == list(shapes[centred[0]]):
                        normalized[end] = centred[0]
        return normalized

    def _centred(self, name):
        """The tensor whose variance a node takes the root of, and the node of its mean; or None."""
        for _ in range(10):
            inputs, active = self.graph.inputs(name), self._active(name)
            name = node_of(inputs[active[0]]) if active else self.source
            if name == self.source:
                return None
            if self.graph.nodes[name].op in ("SquaredDifference", "Square"):
                difference = name
                if self.graph.nodes[name].op == "Square":
                    difference = node_of(self.graph.inputs(name)[0])
                    if self.graph.nodes[difference].op != "Sub":
                        return None
                x, mean = self.graph.inputs(difference)
                mean = self._past(node_of(mean), {"StopGradient", "Identity", "Reshape", "Squeeze"})
                return (x, mean) if self.graph.nodes[mean].op == "Mean" else None
        return None

    def _past(self, name, ops):
        while self.graph.nodes[name].op in ops:
            name = node_of(self.graph.inputs(name)[0])
        return name

    def _join(self, name, readers):
        """The first node that all ways from ``name`` lead through."""
        ahead = set(readers[name])
        for node in self._after(name):
            if ahead == {node}:
                return node
            if node in ahead:
                ahead.remove(node)
                ahead.update(readers[node])
        return None

    @functools.cached_property
    def _places(self):
        return {name: place for place, name in enumerate(self.graph.order)}

    def _after(self, name):
        return self.graph.order[self._places[name] + 1 :]
