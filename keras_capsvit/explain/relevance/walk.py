"""One replay of a model, the walk of relevance back through it, and what rules see on the way."""

import tensorflow as tf

from keras_capsvit.explain.relevance.graph import emit, pull_back

_TINY = 1e-20  # sums up to this count as 0


class Run:
    """One replay of the model while it is being traced, and the walk back through it.

    Args:
        engine: Engine.
        x: tensor ``(b, ...)``.
        times: scalar tensor, how many relevances each input has; None for one.
        audit: list that sums of relevance are added to, or None.
    """

    def __init__(self, engine, x, times=None, audit=None):
        self.engine, self.x, self.times, self.audit = engine, x, times, audit
        self._ops = engine.graph.replay(x)
        self._repeated = {}

    def op(self, name):
        return self._ops[name]

    def tensor(self, key):
        """Tensor of the forward pass by name ``node:index``."""
        name, _, index = key.partition(":")
        return self.x if name == self.engine.graph.input else self._ops[name].outputs[int(index)]

    def repeat(self, tensor):
        """A tensor of the forward pass, once for each of the relevances of an input; constants stay as they are."""
        axis = _batch_axis(tensor)
        if self.times is None or axis is None:
            return tensor
        if id(tensor) not in self._repeated:
            multiples = [self.times if i == axis else 1 for i in range(tensor.shape.rank)]
            self._repeated[id(tensor)] = tensor, tf.tile(tensor, multiples)
        return self._repeated[id(tensor)][1]

    def per_input(self, function, relevance, tensor):
        """``function`` of relevance and a tensor of the forward pass, as if that were repeated, without doing it."""
        axis = _batch_axis(tensor)
        if self.times is None or axis is None:
            return function(relevance, tensor)
        shape = tf.shape(relevance)
        batch = tf.shape(tensor)[axis]
        apart = tf.reshape(relevance, tf.concat([shape[:axis], [self.times, batch], shape[axis + 1 :]], 0))
        return tf.reshape(function(apart, tf.expand_dims(tensor, axis)), shape)

    def walk(self, relevance):
        """From relevance of ``start`` to relevance of ``stop``."""
        arrived = {self.engine.start: relevance}
        for planned in self.engine.plan:
            step = planned.step
            outputs = [f"{step.name}:{k}" for k in range(len(self._ops[step.name].outputs))]
            relevances = [arrived.pop(output, None) for output in outputs]
            leaving = self._linear(planned, relevances) if step.linear else self._other(planned, relevances)
            for tensor, share in zip(step.inputs, leaving, strict=True):
                if share is not None:
                    arrived[tensor] = arrived[tensor] + share if tensor in arrived else share
        stop = self.engine.stop
        return arrived[stop] if stop in arrived else tf.zeros_like(self.repeat(self.tensor(stop)))

    def _linear(self, planned, relevances):
        layer = Layer(self, planned.step)
        relevance = tf.reshape(relevances[0], layer.shape) if planned.step.linear.reshaped else relevances[0]
        found = planned.rule.function(layer, relevance, **planned.settings)
        if planned.last_linear and self.engine.negate:
            found = found - planned.rule.function(Layer(self, planned.step, -1), relevance, **planned.settings)
        self._note(relevances, [found], layer)
        return [found if i == planned.step.linear.position else None for i in range(len(planned.step.inputs))]

    def _other(self, planned, relevances):
        op = Op(self, planned.step)
        found = planned.rule.function(op, relevances, **planned.settings)
        wanted = (planned.step.main,) if planned.rule.one_way and planned.step.main is not None else planned.step.active
        found = [r if i in wanted else None for i, r in enumerate(found)]
        self._note(relevances, found, op)
        return found

    def _note(self, arrived, left, view):
        if self.audit is None:
            return
        sums = [sum((tf.reduce_sum(r) for r in some if r is not None), start=0.0) for some in (arrived, left)]
        lost = 0.0
        if view.divisors:
            gone = tf.reduce_all([tf.abs(z) <= _TINY for z in view.divisors], axis=0)
            lost = tf.reduce_sum(tf.where(gone, tf.reshape(arrived[0], tf.shape(gone)), 0.0))
        self.audit.append(tf.stack([*sums, tf.cast(lost, sums[0].dtype)]))


def _batch_axis(tensor):
    return next((i for i, size in enumerate(tensor.shape) if size is None), None)


class _View:
    """What rules see of a step."""

    tiny = _TINY

    def __init__(self, run):
        self._run, self.divisors = run, []

    def divisor(self, z):
        """``z``, noted as what relevance is divided by."""
        self.divisors.append(z)
        return z


class Op(_View):
    """An op other than a linear layer, as its rule sees it (see ``register_rule``)."""

    def __init__(self, run, step):
        super().__init__(run)
        self.name, self.type, self.active, self.main = step.name, step.op, step.active, step.main
        self.nonnegative = step.nonnegative
        self._op = run.op(step.name)
        read = self._op.inputs if step.kind != "normalization" else [run.tensor(step.inputs[0])]
        self.inputs = [run.repeat(tensor) for tensor in read]
        self.outputs = [run.repeat(tensor) for tensor in self._op.outputs]

    def pull_back(self, gradients):
        """Gradients with respect to the inputs, a tensor or None for each."""
        return pull_back(self._op, self.inputs, self.outputs, gradients)


class Layer(_View):
    """A linear layer, as its rule sees it.

    Attributes:
        x: its input; ``y``: what it and its biases make of it; ``weight``, ``bias`` (or None).
        positive, negative: of the weight; ``x_positive``, ``x_negative``: of the input.
        nonnegative: bool, whether the input cannot be negative.
        box: pair of tensors, bounds of the input.
    """

    def __init__(self, run, step, sign=1):
        super().__init__(run)
        self._step, self._linear, self._sign = step, step.linear, sign
        self._op = run.op(step.linear.head)
        self.x = run.tensor(step.inputs[step.linear.position])
        self.nonnegative = step.linear.nonnegative
        self.bias = None if step.linear.bias is None else sign * step.linear.bias
        self.shape = tf.shape(run.repeat(self._op.outputs[0]))
        y = run.op(step.name).outputs[0]
        self.y = sign * (tf.reshape(y, tf.shape(self._op.outputs[0])) if step.linear.reshaped else y)

    @property
    def weight(self):
        return self._derived("weight", lambda weight: weight)

    @property
    def positive(self):
        return self._derived("positive", tf.nn.relu)

    @property
    def negative(self):
        return self._derived("negative", lambda weight: -tf.nn.relu(-weight))

    def _derived(self, name, make):
        """What is made of the weight, computed once and kept."""
        cache = self._linear.cache
        if (name, self._sign) not in cache:
            with tf.init_scope():
                weight = self._linear.weight if self._sign > 0 else -self._linear.weight
                cache[name, self._sign] = make(weight)
        return cache[name, self._sign]

    @property
    def x_positive(self):
        return self.x if self.nonnegative else tf.nn.relu(self.x)

    @property
    def x_negative(self):
        return -tf.nn.relu(-self.x)

    @property
    def box(self):
        if "box" not in self._linear.cache:
            with tf.init_scope():
                bounds = self._run.engine.bounds(self._step.inputs[self._linear.position])
            self._linear.cache["box"] = bounds
        return self._linear.cache["box"]

    def forward(self, x, weight):
        """The linear op on another input and weight."""
        return emit(self._op, self._with(x, weight)).outputs[0]

    def per_input(self, function, relevance, tensor):
        """See Run."""
        return self._run.per_input(function, relevance, tensor)

    def pull_back(self, gradient, weight):
        """Gradient with respect to the input, if the layer had another weight."""
        if self._op.type == "Conv2D":  # whose own gradient would read the repeated input, for its shape only
            names = ("strides", "padding", "explicit_paddings", "data_format", "dilations")
            return tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.concat([tf.shape(gradient)[:1], tf.shape(self.x)[1:]], 0),
                filter=weight,
                out_backprop=gradient,
                **{name: self._op.get_attr(name) for name in names},
            )
        inputs = self._with(self._run.repeat(self.x), weight)
        return pull_back(self._op, inputs, [gradient], [gradient])[self._linear.position]

    def _with(self, x, weight):
        inputs = list(self._op.inputs)
        inputs[self._linear.position], inputs[self._linear.at] = x, weight
        if self._op.type == "Conv2DBackpropInput":
            inputs[0] = tf.concat([tf.shape(x)[:1], inputs[0][1:]], 0)
        return inputs
