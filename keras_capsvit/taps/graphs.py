"""Traced TensorFlow functions, those of SavedModels above all, as ops that can be run anew, read and changed."""

import functools

import tensorflow as tf

from keras_capsvit import autodiff, private

CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# What a classifier ends in, and what leaves values as they are.
ENDS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_PASSING = {"Identity", "IdentityN", "Cast", "Snapshot", "StopGradient", "EnsureShape", "PreventGradient"}
_RESHAPING = {"Reshape", "Squeeze", "ExpandDims"}
# The last steps of a model whose scores are no probabilities for sure.
LINEAR_ENDS = {"MatMul", "BiasAdd", "BatchMatMulV2", "Conv2D"}
_PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "DepthwiseConv2dNative"}


def before_activation(tensor):
    """``(x, name)``, if a symbolic tensor is what an activation at the end of a model made of ``x``; or None.

    Args:
        tensor: tf.Tensor ``(b, M)`` of the function that is being traced.

    Returns:
        Tensor ``(b, M)`` and one of ``"softmax"``, ``"log_softmax"``, ``"sigmoid"``.
    """
    end = tensor
    while end.op.type in _PASSING | _RESHAPING:
        end = end.op.inputs[0]
    if end.op.type not in ENDS:
        return None
    x = end.op.inputs[0]
    if x.shape.rank != tensor.shape.rank or x.shape[-1] != tensor.shape[-1]:
        if x.shape[-1] != tensor.shape[-1]:  # over another axis, so that rows are no distributions
            return None
        x = tf.reshape(x, tf.shape(tensor))
        x.set_shape(tensor.shape)
    return x, ENDS[end.op.type]


class Program:
    """A function of images as ops, with all calls in it unfolded, so that every one of them can be seen.

    Args:
        function: callable of one tensor, such as the signature of a SavedModel, whose trace is taken.
        spec: tf.TensorSpec of the images.
        in_bfloat16: bool, whether convolutions and matrix products of float32 are computed in bfloat16.

    Attributes:
        activation: str or None, the activation at the end, of which ``run`` returns the argument; known after it ran.
        ends_linearly: bool, whether the last step is a linear one, so that scores are no probabilities; likewise.
    """

    def __init__(self, function, spec, *, in_bfloat16=False):
        with tf.init_scope():  # outside of what is being traced, where TensorFlow looks functions up by name
            traced = tf.function(lambda x: tf.identity(function(x)), autograph=False).get_concrete_function(spec)
            definition = inlined(traced.graph.as_graph_def())
            definition = with_products_in_bfloat16(definition) if in_bfloat16 else definition
        self.spec = spec
        self._nodes = {node.name: node for node in definition.node}
        self._inputs = {name: [key_of(i) for i in node.input if i[0] != "^"] for name, node in self._nodes.items()}
        self._captures = {inner.op.name: outer for outer, inner in traced.graph.captures}
        self._image = next(tensor.op.name for tensor in traced.inputs if tensor.op.name not in self._captures)
        self._versions, self._library = definition.versions, definition.library
        self._output = self._inputs[traced.outputs[0].op.name][0]
        self._order = ancestors(self._inputs, [self._output])
        self.activation, self.ends_linearly = None, False
        self._traced = traced  # its variables live as long as it
        self._compiled = {}

    @functools.cached_property
    def points(self):
        """Static shapes of the nodes that follow the images, in the order they run; a dict of tuples by name."""
        follows = {self._image}
        for name in self._order:
            if any(node_of(i) in follows for i in self._inputs[name]):
                follows.add(name)
        names = [name for name in self._order if name in follows and name != self._image]
        shapes = {}

        def look(x):
            tensors = self._import([f"{name}:0" for name in names], self._feed(x))
            shapes.update((name, t.shape) for name, t in zip(names, tensors, strict=True))
            return x

        tf.function(look, autograph=False).get_concrete_function(self.spec)
        return {name: tuple(shape) for name, shape in shapes.items() if shape.rank is not None}

    @functools.cached_property
    def attentions(self):
        """Names of the nodes that are the softmax of a self-attention ``(b, heads, t, t)``, in order."""
        softmax = (name for name in self.points if self._nodes[name].op == "Softmax")
        return [
            name
            for name in softmax
            if len(self.points[name]) == 4 and self.points[name][-1] == self.points[name][-2] not in (None, 1)
        ]

    def op(self, name):
        """Type of a node."""
        return self._nodes[name].op

    def data_format(self, name):
        """``"channels_first"`` or ``"channels_last"`` of a convolution or pooling; None of other nodes."""
        attributes = self._nodes[name].attr
        names = {b"NCHW": "channels_first", b"NHWC": "channels_last"}
        return names.get(attributes["data_format"].s) if "strides" in attributes else None

    def run(self, x, points=(), offsets=None, continued=False):
        """Scores before the activation at the end, and the values of nodes.

        Args:
            x: tensor of images.
            points: names out of ``points``.
            offsets: dict from names out of these, in the order they run, to tensors that are added to their values.
            continued: bool, whether floats take the place of what the model casts its integers to.

        Returns:
            ``(scores, list of tensors)``.
        """
        points, offsets = tuple(points), dict(offsets or {})
        key = (points, tuple(offsets), continued)
        if key not in self._compiled:

            def function(x, values):
                known = self._feed(x)
                if continued:
                    known.update(self._behind_cast(x))
                for point, value in zip(offsets, values, strict=True):
                    (tensor,) = self._import([f"{point}:0"], known)
                    known[f"{point}:0"] = tensor + tf.cast(value, tensor.dtype)
                output, *values = self._import([self._output, *(f"{point}:0" for point in points)], known)
                self.ends_linearly = output.op.type in LINEAR_ENDS
                output, self.activation = before_activation(output) or (output, None)
                return output, *values

            # A function of its own, because a tape does not see ops that are imported.
            compiled = tf.function(autodiff.counted(function), autograph=False, reduce_retracing=True)
            self._compiled[key] = private.silence_retracing(compiled)
        scores, *values = self._compiled[key](x, list(offsets.values()))
        return scores, values

    def _feed(self, x):
        graph = tf.compat.v1.get_default_graph()
        needed = {node_of(i) for name in self._order for i in self._inputs[name]} | {node_of(self._output)}
        captured = {f"{n}:0": graph.capture(value) for n, value in self._captures.items() if n in needed}
        return {f"{self._image}:0": tf.cast(x, self.spec.dtype), **captured}

    def _behind_cast(self, x):
        """The image in the place of what casts it to floats."""
        images = {self._image}
        for name in self._order:
            if self._nodes[name].op in ("Identity", "EnsureShape") and node_of(self._inputs[name][0]) in images:
                images.add(name)
        casts = [n for n in self._order if self._nodes[n].op == "Cast" and node_of(self._inputs[n][0]) in images]
        types = {name: tf.as_dtype(self._nodes[name].attr["DstT"].type) for name in casts}
        return {f"{name}:0": tf.cast(x, dtype) for name, dtype in types.items() if dtype.is_floating}

    def _import(self, fetches, known):
        """Tensors by name, computed from those that are known by name."""
        fed, reached = {node_of(key) for key in known}, set()
        stack = [node_of(name) for name in fetches]
        while stack:
            name = stack.pop()
            if name not in reached and name not in fed:
                reached.add(name)
                stack += [node_of(i) for i in self._inputs[name]]
        definition = tf.compat.v1.GraphDef(versions=self._versions, library=self._library)
        for name in self._order:
            if name in reached:
                node = definition.node.add()
                node.CopyFrom(self._nodes[name])
                node.device = ""
                node.attr.pop("_class", None)
                node.ClearField("input")
                node.input.extend(self._inputs[name])
        read = {i for name in reached for i in self._inputs[name]}
        feed = {key: value for key, value in known.items() if key in read}
        names = [name for name in fetches if name not in known]
        computed = tf.graph_util.import_graph_def(definition, feed, names, name="") if names else []
        computed = dict(zip(names, computed, strict=True))
        return [known[name] if name in known else computed[name] for name in fetches]


def program_of(function, shape, dtype="float32", *, in_bfloat16=False):
    """Program of a function of images of a shape ``(H, W, C)``, None where any is, and a dtype."""
    return Program(function, tf.TensorSpec((None, *shape), dtype), in_bfloat16=in_bfloat16)


def inlined(definition):
    """A GraphDef without calls of functions, but with their ops in the place of these."""
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
            inputs = [key_of(i) for i in node.input if i[0] != "^"]
            node.ClearField("input")
            node.input.extend(_follow(i, inside) for i in inputs)
        definition = flat
    return definition


def with_products_in_bfloat16(definition):
    """A GraphDef whose convolutions and matrix products of float32 are computed in bfloat16, and cast back."""
    lowered = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)

    def cast(name, tensor, source, target):
        node = lowered.node.add(name=name, op="Cast", input=[tensor])
        node.attr["SrcT"].type, node.attr["DstT"].type = source.as_datatype_enum, target.as_datatype_enum

    for node in definition.node:
        if node.op not in _PRODUCTS or node.attr["T"].type != tf.float32.as_datatype_enum:
            lowered.node.add().CopyFrom(node)
            continue
        product = tf.compat.v1.NodeDef()
        product.CopyFrom(node)
        product.name = f"{node.name}/bfloat16"
        product.attr["T"].type = tf.bfloat16.as_datatype_enum
        product.ClearField("input")
        for position, tensor in enumerate(i for i in node.input if i[0] != "^"):
            cast(f"{product.name}/{position}", tensor, tf.float32, tf.bfloat16)
            product.input.append(f"{product.name}/{position}:0")
        lowered.node.add().CopyFrom(product)
        cast(node.name, f"{product.name}:0", tf.bfloat16, tf.float32)
    return lowered


def ancestors(inputs, outputs):
    """Names of the nodes that tensors are computed from, inputs first.

    Args:
        inputs: dict from names of nodes to names of the tensors that they read.
        outputs: list of names of tensors.

    Returns:
        List of str.
    """
    order, seen, stack = [], set(), [(node_of(output), False) for output in outputs]
    while stack:
        name, inputs_done = stack.pop()
        if inputs_done:
            order.append(name)
        elif name not in seen:
            seen.add(name)
            stack.append((name, True))
            stack += [(node_of(i), False) for i in inputs[name]]
    return order


def node_of(tensor):
    """Name of the node that a tensor name ``node:index`` belongs to."""
    return tensor.partition(":")[0]


def key_of(tensor):
    """A tensor's name with its index."""
    return tensor if ":" in tensor else f"{tensor}:0"


def _expand(flat, call, function):
    """Add the nodes of a called function to ``flat``; returns the tensor inside for each output of the call."""
    body, names = private.body_of(function)
    read = [key_of(i) for i in call.input if i[0] != "^"]
    arguments = dict(zip((argument.name for argument in function.signature.input_arg), read, strict=True))

    def renamed(tensor):
        node, _, index = key_of(tensor).partition(":")
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
