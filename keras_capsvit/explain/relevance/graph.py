"""A traced function as a graph of ops: what depends on its input, what is constant, and how to run it anew.

The only file that uses TensorFlow API that is not public.
"""

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph
from tensorflow.python.framework import ops as private

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# Their outputs follow the shape of the input, or jump: no relevance passes them.
_BLOCKING = {
    *("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "StopGradient", "BroadcastGradientArgs"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "LogicalAnd", "LogicalOr", "LogicalNot"),
    *("ArgMax", "ArgMin", "Sign", "Floor", "Ceil", "Round", "IsNan", "IsInf", "IsFinite"),
}
_CONTROL_FLOW = {
    *("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "Switch", "Merge", "Enter", "Exit"),
    *("NextIteration", "PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaCallModule", "SymbolicGradient", "RemoteCall"),
}
_RANDOM = ("Random", "StatelessRandom", "TruncatedNormal", "StatelessTruncatedNormal", "ParameterizedTruncated")
_REDUCTIONS = {"Mean", "Sum", "Max", "Min", "Prod"}
_SMALL = 1024  # elements; integer constants up to this size (axes, shapes) stay where shape inference sees them


class UnsupportedOpError(ValueError):
    """A model has ops that relevance cannot pass; the message names them all."""


class Graph:
    """The ops between the input of a traced function and its outputs.

    Args:
        function: tf.ConcreteFunction of one argument, whose outputs are ``tf.identity`` of what it computes.

    Attributes:
        nodes: NodeDef by name, of all ancestors of the outputs; ``order`` lists the names, inputs first.
        input: str, name of the input node; ``dtype``: of its tensor; ``outputs``: names of the output tensors.
        dependent: names of the nodes that depend on the input in any way; all others are folded.
        constants: eager tensors by tensor name, the folded inputs of dependent nodes.
        shapes: static tf.TensorShape of constants and of what dependent nodes write, by tensor name; ``dtypes`` too.

    Raises:
        UnsupportedOpError: for control flow that depends on the input, random numbers, sums over the batch, float16.
    """

    def __init__(self, function):
        definition = _inline(function.graph.as_graph_def(add_shapes=True))
        self.input = function.inputs[0].op.name
        self.dtype = function.inputs[0].dtype
        self.outputs = [tensor.name for tensor in function.outputs]
        self._function = function  # keeps what it captures alive
        self._captures = {placeholder.op.name: value for value, placeholder in function.graph.captures}
        self._versions, self._library = definition.versions, definition.library
        nodes = {node.name: node for node in definition.node}
        self._inputs = {name: [_key(i) for i in node.input if i[0] != "^"] for name, node in nodes.items()}
        self.order = self._ancestors()
        self.nodes = {name: nodes[name] for name in self.order}
        self.dependent = self.descendants(self.input, through=set())
        self.constants = self._fold()
        self._active = self._definition(name for name in self.order if name in self.dependent and name != self.input)
        self.shapes, self.dtypes = self._types(function.inputs[0].shape)
        self._refuse()

    @property
    def results(self):
        """Names of the tensors that the outputs are identities of."""
        found = []
        for tensor in self.outputs:
            while self.nodes[node_of(tensor)].op == "Identity":
                tensor = self._inputs[node_of(tensor)][0]
            found.append(tensor)
        return found

    def inputs(self, name):
        """Names ``node:index`` of the tensors that a node reads."""
        return self._inputs[name]

    def descendants(self, source, through=_BLOCKING):
        """Nodes whose values follow that of ``source``, itself included; ops in ``through`` break the chain."""
        found = {source}
        for name in self.order:
            if self.nodes[name].op not in through and any(node_of(i) in found for i in self._inputs[name]):
                found.add(name)
        return found

    def readers(self, within):
        """For every node in ``within``, the nodes in it that read it."""
        found = {name: [] for name in within}
        for name in self.order:
            if name in within:
                for one in dict.fromkeys(map(node_of, self._inputs[name])):
                    if one in found:
                        found[one].append(name)
        return found

    def replay(self, x):
        """Add the dependent ops to the function that is being traced, for the input ``x``.

        Returns:
            dict from node name to tf.Operation; the input node is not in it.
        """
        feed = {f"{self.input}:0": x}
        for key, value in self.constants.items():
            small = value.dtype.is_integer and value.shape.num_elements() <= _SMALL
            feed[key] = tf.constant(value.numpy()) if small else private.get_default_graph().capture(value)
        names = [node.name for node in self._active.node]
        return dict(zip(names, tf.graph_util.import_graph_def(self._active, feed, names, name=""), strict=True))

    def refresh(self):
        """Fold anew, with the present values of the variables."""
        self.constants = self._fold()

    def _ancestors(self):
        order, seen = [], set()
        stack = [(node_of(output), False) for output in self.outputs]
        while stack:
            name, done = stack.pop()
            if done:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack += [(node_of(i), False) for i in self._inputs[name]]
        return order

    def _definition(self, names):
        found = tf.compat.v1.GraphDef(versions=self._versions, library=self._library)
        for name in names:
            node = found.node.add()
            node.CopyFrom(self.nodes[name])
            node.device = ""
            node.attr.pop("_class", None)
            node.ClearField("input")
            node.input.extend(self._inputs[name])
        return found

    def _fold(self):
        needed = {i for name in self.order if name in self.dependent for i in self._inputs[name]}
        needed = sorted(i for i in needed if node_of(i) not in self.dependent)
        constants = {i: self._captures[node_of(i)] for i in needed if node_of(i) in self._captures}
        computed = [i for i in needed if i not in constants]
        fixed = [name for name in self.order if name not in self.dependent and name not in self._captures]
        definition = self._definition(fixed)
        read = {node_of(i) for name in fixed for i in self._inputs[name]}

        def evaluate():
            graph = private.get_default_graph()
            feed = {f"{name}:0": graph.capture(self._captures[name]) for name in read if name in self._captures}
            return [tf.identity(t) for t in tf.graph_util.import_graph_def(definition, feed, computed, name="")]

        return {**constants, **dict(zip(computed, compiled(evaluate)() if computed else [], strict=True))}

    def _types(self, shape):
        shapes = {f"{self.input}:0": shape, **{key: value.shape for key, value in self.constants.items()}}
        dtypes = {f"{self.input}:0": self.dtype, **{key: value.dtype for key, value in self.constants.items()}}

        def look(x):
            for name, op in self.replay(x).items():
                shapes.update({f"{name}:{k}": output.shape for k, output in enumerate(op.outputs)})
                dtypes.update({f"{name}:{k}": output.dtype for k, output in enumerate(op.outputs)})
            return x

        compiled(look, tf.TensorSpec(shape, self.dtype))
        return shapes, dtypes

    def _refuse(self):
        follow = self.descendants(self.input)
        ops = [(name, self.nodes[name].op) for name in self.order]
        loops = [f"{op} at {name!r}" for name, op in ops if op in _CONTROL_FLOW and name in follow]
        if loops:
            raise UnsupportedOpError(
                f"Relevance cannot pass control flow that depends on the input; found {', '.join(loops)}. Unroll loops "
                "with Python's range (the number of iterations must not be a tensor), and replace conditions on "
                "tensors by where."
            )
        half = next((name for name in self.order if self.dtypes.get(f"{name}:0") == tf.float16), None)
        if half is not None:
            raise UnsupportedOpError(
                f"Expected a model that computes in float32 or float64, for its range; received float16 at {half!r}. "
                "Load the model with the dtype policy float32."
            )
        random = [f"{op} at {name!r}" for name, op in ops if op.startswith(_RANDOM)]
        batch = [f"{op} over the batch at {name!r}" for name, op in ops if name in follow and self._over_batch(name)]
        if random or batch:
            raise UnsupportedOpError(
                f"Expected a model in inference mode; found {', '.join(random + batch)}, as with training=True. Trace "
                "or export it with training=False."
            )

    def _over_batch(self, name):
        node, inputs = self.nodes[name], self._inputs[name]
        if node.op.startswith("FusedBatchNorm"):
            return node.attr["is_training"].b
        if node.op not in _REDUCTIONS or inputs[1] not in self.constants:
            return False
        shape = self.shapes[inputs[0]]
        axes = {int(axis) % shape.rank for axis in np.ravel(self.constants[inputs[1]].numpy())} if shape.rank else set()
        return any(shape[axis] is None for axis in axes)


def trace(function, shape, dtype="float32"):
    """Trace a function of one tensor.

    Args:
        function: callable ``x → tensors``, a tensor or a list of them.
        shape: shape of ``x``, with None for the batch.
        dtype: of ``x``.

    Returns:
        Graph.

    Raises:
        UnsupportedOpError: see Graph.
    """

    def outputs(x):
        return [tf.identity(tensor) for tensor in tf.nest.flatten(function(x))]

    traced = tf.function(outputs, autograph=False)
    return Graph(traced.get_concrete_function(tf.TensorSpec(shape, dtype, name="relevance_input")))


def compiled(function, *specs):
    """``function`` of tensors of the given tf.TensorSpec, traced now."""
    return tf.function(function, autograph=False, input_signature=specs).get_concrete_function()


def emit(op, inputs):
    """A new op like the tf.Operation ``op`` on other input tensors, in the function that is being traced."""
    attributes = {name: value for name, value in op.node_def.attr.items() if not name.startswith("_")}
    return private.get_default_graph().create_op(
        op.type, list(inputs), [output.dtype for output in op.outputs], attrs=attributes, op_def=op.op_def
    )


def pull_back(op, inputs, outputs, gradients):
    """Gradients with respect to the inputs of an op, as if it had read and written other tensors than it did.

    Args:
        op: tf.Operation, which says what is computed.
        inputs: tensors in the place of its inputs; may have another batch size.
        outputs: tensors in the place of its outputs.
        gradients: tensor or None for each output.

    Returns:
        List of a tensor or None for each input.
    """
    gradients = [tf.zeros_like(o) if g is None else g for o, g in zip(outputs, gradients, strict=True)]
    found = private.get_gradient_function(op)(_Stand(op, inputs, outputs), *gradients)
    found = found if isinstance(found, list | tuple) else [found]
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in found]


class _Stand:
    """Stands for an op where its gradient function looks at its inputs and outputs."""

    def __init__(self, op, inputs, outputs):
        self._op, self.inputs, self.outputs = op, list(inputs), list(outputs)

    def __getattr__(self, name):
        return getattr(self._op, name)


def node_of(tensor):
    """Name of the node that a tensor name ``node:index`` belongs to."""
    return tensor.partition(":")[0]


def _key(tensor):
    return tensor if ":" in tensor else f"{tensor}:0"


def _inline(definition):
    # TensorFlow's own inlining leaves out functions that are compiled, such as those of Keras's grouped convolutions.
    library = {function.signature.name: function for function in definition.library.function}
    while any(node.op in CALLS for node in definition.node):
        flat = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)
        inside = {}
        for node in definition.node:
            if node.op in CALLS:
                inside.update(_expand(flat, node, library[node.attr["f"].func.name]))
            else:
                flat.node.add().CopyFrom(node)
        for node in flat.node:
            inputs = [_key(i) for i in node.input if i[0] != "^"]
            node.ClearField("input")
            node.input.extend(_follow(i, inside) for i in inputs)
        definition = flat
    return definition


def _expand(flat, call, function):
    """Add the nodes of a called function to ``flat``; returns the tensor inside for each output of the call."""
    body, names = function_def_to_graph.function_def_to_graph_def(function)
    given = [_key(i) for i in call.input if i[0] != "^"]
    arguments = dict(zip((argument.name for argument in function.signature.input_arg), given, strict=True))

    def renamed(tensor):
        node, _, index = _key(tensor).partition(":")
        return arguments.get(node, f"{call.name}/{node}:{index}")

    for node in body.node:
        if node.name not in arguments:
            copy = flat.node.add()
            copy.CopyFrom(node)
            copy.name = f"{call.name}/{node.name}"
            copy.ClearField("input")
            copy.input.extend(renamed(i) for i in node.input if i[0] != "^")
    results = (renamed(names[function.ret[result.name]]) for result in function.signature.output_arg)
    return {f"{call.name}:{k}": result for k, result in enumerate(results)}


def _follow(tensor, inside):
    while tensor in inside:
        tensor = inside[tensor]
    return tensor
