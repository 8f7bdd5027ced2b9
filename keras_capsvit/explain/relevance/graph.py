"""A traced function as a graph of ops: what depends on its input, what is constant, and how to run it anew."""

import numpy as np
import tensorflow as tf

from keras_capsvit import autodiff
from keras_capsvit.explain.relevance import groups, refusals
from keras_capsvit.private import gradient_function
from keras_capsvit.taps.graphs import ancestors, inlined, key_of, node_of

# Their outputs follow the shape of the input, or jump: no relevance passes them.
_BLOCKING = {
    *("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "StopGradient", "BroadcastGradientArgs"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "LogicalAnd", "LogicalOr", "LogicalNot"),
    *("ArgMax", "ArgMin", "Sign", "Floor", "Ceil", "Round", "IsNan", "IsInf", "IsFinite"),
}
CONVOLUTIONS = {"Conv2D", "Conv3D"}
_SMALL = 1024  # elements; integer constants up to this size (axes, shapes) stay where shape inference sees them


class Graph:
    """The ops between the input of a traced function and its outputs.

    Args:
        function: tf.ConcreteFunction whose outputs are ``tf.identity`` of what it computes.
        count: int >= 1, how many arguments it takes: the input, and others that no relevance goes to.

    Attributes:
        nodes: NodeDef by name, of all ancestors of the outputs; ``order`` lists the names, inputs first.
        input: str, name of the input node; ``arguments``: of all arguments; ``specs``: a tf.TensorSpec of each.
        dtype: of the input, a float; ``limits``: the range of an input that was an integer, otherwise infinite.
        outputs: names of the output tensors.
        dependent: names of the nodes that depend on an argument in any way; all others are folded.
        constants: eager tensors by tensor name, the folded inputs of dependent nodes.
        shapes: static tf.TensorShape of constants and of what dependent nodes write, by tensor name; ``dtypes`` too.

    Raises:
        UnsupportedOpError: for control flow that depends on the input, random numbers, sums over the batch, half
            precision, and integer inputs that more than a cast reads.
    """

    def __init__(self, function, count=1):
        definition = inlined(function.graph.as_graph_def(add_shapes=True))
        self.arguments = [tensor.op.name for tensor in function.inputs[:count]]
        self.input = self.arguments[0]
        self.outputs = [tensor.name for tensor in function.outputs]
        self._function = function  # keeps what it captures alive
        self._captures = {placeholder.op.name: value for value, placeholder in function.graph.captures}
        self._versions = definition.versions
        self._library = {called.signature.name: called for called in definition.library.function}
        nodes = {node.name: node for node in definition.node}
        self._inputs = {name: [key_of(i) for i in node.input if i[0] != "^"] for name, node in nodes.items()}
        self.order = ancestors(self._inputs, self.outputs)
        self.nodes = {name: nodes[name] for name in self.order}
        self.dtype, self.limits = refusals.as_float(self, function.inputs[0].dtype)
        dtypes = [self.dtype, *(tensor.dtype for tensor in function.inputs[1:count])]
        self.specs = [tf.TensorSpec(x.shape, dtype) for x, dtype in zip(function.inputs, dtypes, strict=False)]
        self.dependent = set().union(*(self.descendants(name, through=False) for name in self.arguments))
        # TensorFlow has no kernels for grouped convolutions on all machines; these are taken apart.
        self._grouped = {name for name in self.order if self.nodes[name].op in CONVOLUTIONS}
        variables = function.variables
        self._values = compiled(lambda: [variable.value() for variable in variables]) if variables else list
        self.constants = self._fold()
        self.shapes, self.dtypes = self._types()
        self._grouped = {name for name in self._grouped if self._groups(name) > 1}
        refusals.check(self)

    @property
    def results(self):
        """Names of the tensors that the outputs are identities of."""
        tensors = []
        for tensor in self.outputs:
            while self.nodes[node_of(tensor)].op == "Identity":
                tensor = self._inputs[node_of(tensor)][0]
            tensors.append(tensor)
        return tensors

    def inputs(self, name):
        """Names ``node:index`` of the tensors that a node reads."""
        return self._inputs[name]

    def descendants(self, source, through=True):
        """Nodes that depend on ``source``, itself included; with ``through``, those whose values follow its."""
        nodes = {source}
        for name in self.order:
            if any(node_of(i) in nodes for i in self._inputs[name]) and not (through and self.blocks(name)):
                nodes.add(name)
        return nodes

    def blocks(self, name):
        """Whether no relevance passes a node."""
        node = self.nodes[name]
        return node.op in _BLOCKING or (node.op == "Cast" and not tf.as_dtype(node.attr["DstT"].type).is_floating)

    def readers(self, within):
        """For every node in ``within``, the nodes in it that read it."""
        readers = {name: [] for name in within}
        for name in self.order:
            if name in within:
                for source in dict.fromkeys(map(node_of, self._inputs[name])):
                    if source in readers:
                        readers[source].append(name)
        return readers

    def replay(self, *arguments):
        """Add the dependent ops to the function that is being traced, for these arguments.

        Returns:
            dict from node name to tf.Operation; the argument nodes are not in it.
        """
        feed = {f"{name}:0": tensor for name, tensor in zip(self.arguments, arguments, strict=True)}
        for key, value in self.constants.items():
            small = value.dtype.is_integer and value.shape.num_elements() <= _SMALL
            feed[key] = tf.constant(value.numpy()) if small else tf.compat.v1.get_default_graph().capture(value)
        return self._emit_all([name for name in self.order if name in self.dependent - {*self.arguments}], feed)

    @property
    def outdated(self):
        """Whether a variable has another value than the one that was folded."""
        return not all(map(_equal, self._values(), self._folded))

    def refresh(self):
        """Fold anew, with the present values of the variables."""
        self.constants = self._fold()

    def _emit_all(self, names, feed):
        """Add nodes, in their order, to the function that is being traced; ``feed`` are the other tensors by name."""
        tensors, operations, waiting = dict(feed), {}, []

        def add(ops):
            operations.update(ops)
            tensors.update((f"{name}:{k}", tensor) for name, op in ops.items() for k, tensor in enumerate(op.outputs))

        def flush():
            read = {i for name in waiting for i in self._inputs[name]} & tensors.keys()
            ops = tf.graph_util.import_graph_def(
                self._definition(waiting), {i: tensors[i] for i in read}, waiting, name=""
            )
            add(dict(zip(waiting, ops, strict=True)))
            waiting.clear()

        for name in names:
            if name in self._grouped:
                flush()
                add({name: _convolution(self.nodes[name], [tensors[i] for i in self._inputs[name]])})
            else:
                waiting.append(name)
        flush()
        return operations

    def _definition(self, names):
        definition = tf.compat.v1.GraphDef(versions=self._versions)
        for name in names:
            node = definition.node.add()
            node.CopyFrom(self.nodes[name])
            node.device = ""
            node.attr.pop("_class", None)
            node.ClearField("input")
            node.input.extend(self._inputs[name])
        definition.library.function.extend(self._called(definition.node))
        return definition

    def _called(self, nodes):
        """The functions that nodes call, and those that these call. Others would only be in each other's way."""
        functions, waiting = {}, list(nodes)
        while waiting:
            for value in waiting.pop().attr.values():
                for name in (value.func.name, *(function.name for function in value.list.func)):
                    if name in self._library and name not in functions:
                        functions[name] = self._library[name]
                        waiting += functions[name].node_def
        return functions.values()

    def _fold(self):
        needed = {i for name in self.order if name in self.dependent for i in self._inputs[name]}
        needed = sorted(i for i in needed if node_of(i) not in self.dependent)
        constants = {i: self._captures[node_of(i)] for i in needed if node_of(i) in self._captures}
        computed = [i for i in needed if i not in constants]
        fixed = [name for name in self.order if name not in self.dependent and name not in self._captures]
        read = {node_of(i) for name in fixed for i in self._inputs[name]}

        def evaluate():
            graph = tf.compat.v1.get_default_graph()
            feed = {f"{name}:0": graph.capture(self._captures[name]) for name in read if name in self._captures}
            ops = self._emit_all(fixed, feed)
            return [tf.identity(ops[node_of(i)].outputs[int(i.partition(":")[2])]) for i in computed]

        # Before they are folded, so that a change meanwhile is noticed; what is read shares its memory until then.
        self._folded = self._values()
        return {**constants, **dict(zip(computed, compiled(evaluate)() if computed else [], strict=True))}

    def _types(self):
        shapes = {f"{name}:0": spec.shape for name, spec in zip(self.arguments, self.specs, strict=True)}
        dtypes = {f"{name}:0": spec.dtype for name, spec in zip(self.arguments, self.specs, strict=True)}
        shapes.update((key, value.shape) for key, value in self.constants.items())
        dtypes.update((key, value.dtype) for key, value in self.constants.items())

        def look(*arguments):
            for name, op in self.replay(*arguments).items():
                shapes.update({f"{name}:{k}": output.shape for k, output in enumerate(op.outputs)})
                dtypes.update({f"{name}:{k}": output.dtype for k, output in enumerate(op.outputs)})
            return arguments[0]

        compiled(look, *self.specs)
        return shapes, dtypes

    def _groups(self, name):
        x, weight = (self.shapes.get(i, tf.TensorShape(None)) for i in self._inputs[name])
        return groups.count(self.nodes[name], x, weight)


def _equal(present, kept):
    """Whether two values of a variable, read now and before, are the same."""
    # A variable whose value somebody keeps gets new memory when it changes, so that the same memory is the same value.
    place = _address(present)
    if place is not None and place == _address(kept):
        return True
    return present.shape == kept.shape and bool(tf.reduce_all(tf.equal(present, kept)))


def _address(tensor):
    """Where an eager tensor lies in memory; None for a type that NumPy does not know."""
    try:
        return np.asarray(memoryview(tensor)).ctypes.data
    except ValueError:
        return None


def trace(function, spec, more_specs=()):
    """Trace a function of tensors.

    Args:
        function: callable ``(x, *others) → tensors``, a tensor or a list of them.
        spec: tf.TensorSpec of ``x``, with None for the batch.
        more_specs: tf.TensorSpecs of the others.

    Returns:
        Graph.

    Raises:
        UnsupportedOpError: see Graph.
    """

    def outputs(*arguments):
        return [tf.identity(tensor) for tensor in tf.nest.flatten(function(*arguments))]

    specs = [
        tf.TensorSpec(argument.shape, argument.dtype, f"relevance_input_{i}")
        for i, argument in enumerate((spec, *more_specs))
    ]
    return Graph(tf.function(outputs, autograph=False).get_concrete_function(*specs), len(specs))


def compiled(function, *specs):
    """``function`` of tensors of the given tf.TensorSpec, traced now."""
    return tf.function(autodiff.counted(function), autograph=False, input_signature=specs).get_concrete_function()


def emit(op, inputs):
    """A new op like the tf.Operation ``op`` on other input tensors, in the function that is being traced."""
    return _convolution(op.node_def, inputs) if op.type in CONVOLUTIONS else _emit(op.node_def, inputs)


def _convolution(node, inputs):
    number = groups.count(node, inputs[0].shape, inputs[1].shape)
    if number == 1:
        return _emit(node, inputs)
    axis = groups.channel_axis(node)
    if groups.is_depthwise(node, inputs[1].shape):
        convolution = _emit(node, (inputs[0][..., :1], inputs[1][..., : inputs[1].shape[-1] // number]))
        return _Stand(convolution, inputs, [groups.depthwise(node, *inputs)])
    ops = [_emit(node, pair) for pair in groups.separated(*inputs, number, axis)]
    return _Stand(ops[0], inputs, [tf.concat([op.outputs[0] for op in ops], axis)])


def _emit(node, inputs):
    attributes = {name: value for name, value in node.attr.items() if not name.startswith("_")}
    return tf.compat.v1.get_default_graph().create_op(node.op, list(inputs), attrs=attributes)


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
    input_gradients = gradient_function(op)(_Stand(op, inputs, outputs), *gradients)
    input_gradients = input_gradients if isinstance(input_gradients, list | tuple) else [input_gradients]
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in input_gradients]


class _Stand:
    """Stands for an op where its gradient function looks at its inputs and outputs."""

    def __init__(self, op, inputs, outputs):
        self._op, self.inputs, self.outputs = op, list(inputs), list(outputs)

    def __getattr__(self, name):
        return getattr(self._op, name)
