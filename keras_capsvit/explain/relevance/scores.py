"""Where the class scores of a graph are: before a softmax, sigmoid or log-softmax at its end."""

from keras_capsvit.explain.relevance.graph import node_of

_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")
_SAME = ("Identity", "Cast", "EnsureShape", "StopGradient", "PreventGradient", "CheckNumerics")
_MOVING = ("Reshape", "Squeeze", "ExpandDims", "StridedSlice", "Transpose")
_ELEMENTWISE = ("Log", "Log1p", "Maximum", "Minimum", "ClipByValue", "AddV2", "Add", "Sub", "Mul", "RealDiv", "Neg")


class Tail:
    """Walks back from the output of a graph.

    Args:
        graph: Graph.
    """

    def __init__(self, graph):
        self._graph = graph

    def scores(self):
        """Name of the tensor of class scores.

        Raises:
            ValueError: where probabilities are changed such that the scores behind them do not order classes alike.
        """
        start = here = self._past_same(self._graph.outputs[0])
        changed = None
        while True:
            before = self._squashed(here)
            if before is not None:
                if changed is not None:
                    raise ValueError(
                        f"Expected class scores, or probabilities at the end of the model; found "
                        f"{self._graph.nodes[changed].op} at {changed!r} after {self._graph.nodes[node_of(here)].op} "
                        f"at {node_of(here)!r}. Pass as start= the layer before it, or let the model end there."
                    )
                start = here = self._past_same(before)
                continue
            name, active = node_of(here), self._active(here)
            if len(active) != 1 or self._graph.nodes[name].op not in _SAME + _MOVING + _ELEMENTWISE:
                return start
            if changed is None and not self._keeps_order(name, here, active[0]):
                changed = name
            here = active[0]

    def _active(self, tensor):
        if node_of(tensor) in self._graph.given:
            return []
        return [i for i in self._graph.inputs(node_of(tensor)) if node_of(i) in self._graph.dependent]

    def _past_same(self, tensor):
        while self._active(tensor) and self._graph.nodes[node_of(tensor)].op in ("Identity", "Cast"):
            tensor = self._graph.inputs(node_of(tensor))[0]
        return tensor

    def _keeps_order(self, name, tensor, read):
        """Whether an op leaves the order of classes, on the last axis, as it is."""
        op, shapes = self._graph.nodes[name].op, self._graph.shapes
        if op in _SAME:
            return True
        if op in _MOVING:
            classes = [shapes[one][-1] if shapes[one].rank else None for one in (tensor, read)]
            return op != "Transpose" and classes[0] is not None and classes[0] == classes[1]
        others = [self._graph.constants.get(i) for i in self._graph.inputs(name) if i != read]
        if any(one is None or one.shape.num_elements() != 1 for one in others):
            return False
        value = float(others[0].numpy().item()) if others else 1.0
        first = self._graph.inputs(name)[0] == read
        return {"Mul": value > 0, "RealDiv": value > 0 and first, "Sub": first, "Neg": False}.get(op, True)

    def _squashed(self, tensor):
        """The tensor that a softmax, sigmoid or log-softmax, as one op or written out, is computed from; or None."""
        if node_of(tensor) in self._graph.given:
            return None
        op, inputs = self._graph.nodes[node_of(tensor)].op, self._graph.inputs(node_of(tensor))
        if op in _SQUASHING:
            return inputs[0]
        if op == "RealDiv":  # exp(x) / sum(exp(x))
            total, exponent = self._back(inputs[1], ("Sum", "Exp")), self._back(inputs[0], ("Exp",))
            if exponent is not None and total is not None and self._past_same(total) == self._past_same(exponent):
                return self._uncentred(exponent)
        if op == "Sub":  # x - log(sum(exp(x)))
            total = self._back(inputs[1], ("Log", "Sum", "Exp"))
            x = self._uncentred(inputs[0])
            if total is not None and self._uncentred(total) == x:
                return x
        return None

    def _back(self, tensor, ops):
        """The tensor that a chain of ops, and moves between them, begins with; or None."""
        for op in ops:
            while self._active(tensor) and self._graph.nodes[node_of(tensor)].op in (*_SAME, *_MOVING, "SelectV2"):
                tensor = self._active(tensor)[-1]
            active = self._active(tensor)
            if not active:
                return None
            name = node_of(tensor)
            if self._graph.nodes[name].op in ("AddV2", "Add") and op == "Log":  # the maximum, which was taken away
                active = [i for i in active if self._back(i, ("Max",)) is None]
                name = node_of(active[0]) if len(active) == 1 else name
                active = self._active(active[0]) if len(active) == 1 else []
            if not active or self._graph.nodes[name].op != op:
                return None
            tensor = active[0]
        return tensor

    def _uncentred(self, tensor):
        """``x`` of ``x - max(x)``; otherwise the tensor itself."""
        tensor = self._past_same(tensor)
        active = self._active(tensor)
        if len(active) == 2 and self._graph.nodes[node_of(tensor)].op == "Sub":
            largest = self._back(active[1], ("Max",))
            if largest is not None and self._past_same(largest) == self._past_same(active[0]):
                return self._past_same(active[0])
        return tensor
