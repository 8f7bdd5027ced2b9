"""Where the class scores of a graph are: before a softmax, sigmoid or log-softmax at its end."""

from keras_capsvit.explain.relevance.graph import node_of

_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")
_SAME = ("Identity", "Cast", "EnsureShape", "StopGradient", "PreventGradient", "CheckNumerics")
_MOVING = ("Reshape", "Squeeze", "ExpandDims", "StridedSlice", "Transpose")
_SELECTING = ("Select", "SelectV2")  # the maximum where it is finite, otherwise zeros; in older TensorFlow by Select
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
        start = tensor = self._past_same(self._graph.outputs[0])
        changed = None
        while True:
            before = self._squashed(tensor)
            if before is not None:
                if changed is not None:
                    raise ValueError(
                        f"Expected class scores, or probabilities at the end of the model; found "
                        f"{self._graph.nodes[changed].op} at {changed!r} after {self._graph.nodes[node_of(tensor)].op} "
                        f"at {node_of(tensor)!r}. Pass as start= the layer before it, or let the model end there."
                    )
                start = tensor = self._past_same(before)
                continue
            name, active = node_of(tensor), self._active(tensor)
            if len(active) != 1 or self._graph.nodes[name].op not in _SAME + _MOVING + _ELEMENTWISE:
                return start
            if changed is None and not self._keeps_order(name, tensor, active[0]):
                changed = name
            tensor = active[0]

    def _active(self, tensor):
        if node_of(tensor) in self._graph.arguments:
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
            classes = [shapes[key][-1] if shapes[key].rank else None for key in (tensor, read)]
            return op != "Transpose" and classes[0] is not None and classes[0] == classes[1]
        constants = [self._graph.constants.get(i) for i in self._graph.inputs(name) if i != read]
        if any(value is None or value.shape.num_elements() != 1 for value in constants):
            return False
        value = float(constants[0].numpy().item()) if constants else 1.0
        reads_first = self._graph.inputs(name)[0] == read
        return {"Mul": value > 0, "RealDiv": value > 0 and reads_first, "Sub": reads_first, "Neg": False}.get(op, True)

    def _squashed(self, tensor):
        """The tensor that a softmax, sigmoid or log-softmax, as one op or written out, is computed from; or None."""
        if node_of(tensor) in self._graph.arguments:
            return None
        op, inputs = self._graph.nodes[node_of(tensor)].op, self._graph.inputs(node_of(tensor))
        if op in _SQUASHING:
            return inputs[0]
        if len(inputs) != 2 or self._graph.shapes[inputs[1]][-1:].as_list() != [1]:  # a number for all classes
            return None
        if op == "RealDiv":  # exp(x) / sum(exp(x))
            exponents = self._back(inputs[0], ("Exp",)), self._back(inputs[1], ("Sum", "Exp"))
            return self._same_uncentred(exponents)
        if op == "Sub":  # x - log(sum(exp(x)))
            return self._same_uncentred((inputs[0], self._back(inputs[1], ("Log", "Sum", "Exp"))))
        return None

    def _same_uncentred(self, exponents):
        """``x``, if both tensors are that, or that but for its maximum; otherwise None."""
        logits = {self._uncentred(tensor) if tensor is not None else None for tensor in exponents}
        return logits.pop() if len(logits) == 1 else None

    def _back(self, tensor, ops):
        """The tensor that a chain of ops, and moves between them, begins with; or None."""
        for op in ops:
            tensor = self._past_moves(tensor)
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

    def _past_moves(self, tensor):
        while active := self._active(tensor):
            op = self._graph.nodes[node_of(tensor)].op
            if op not in (*_SAME, *_MOVING, *_SELECTING):
                break
            tensor = self._graph.inputs(node_of(tensor))[1] if op in _SELECTING else active[-1]
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
