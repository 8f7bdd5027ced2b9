"""One replay of a model, the walk of relevance back through it, and what rules see on the way."""

import functools

import tensorflow as tf

from keras_capsvit.explain.relevance import groups
from keras_capsvit.explain.relevance.graph import CONVOLUTIONS, emit, pull_back

_TINY = 1e-20  # sums up to this count as 0


class Run:
    """One replay of the model while it is being traced, and the walk back through it.

    Args:
        engine: Engine.
        arguments: tensors ``(b, ...)``, the input and other arguments of the model.
        times: scalar tensor, how many relevances each input has; None for one.
        audit: list that rows of ``Account`` are added to, or None.
        first_class: bool tensor, of models with one output, whether a relevance is of class 0; or None.
        contrast: bool, of such models, whether the relevance of the other class is subtracted.
    """

    def __init__(self, engine, arguments, times=None, audit=None, first_class=None, contrast=False):
        self.engine, self.arguments, self.times, self.audit = engine, arguments, times, audit
        self._first_class, self._contrast = first_class, contrast
        self._ops = engine.graph.replay(*arguments)
        self._repeated = {}

    def op(self, name):
        return self._ops[name]

    def tensor(self, key):
        """Tensor of the forward pass by name ``node:index``."""
        name, _, index = key.partition(":")
        if name in self.engine.graph.arguments:
            return self.arguments[self.engine.graph.arguments.index(name)]
        return self._ops[name].outputs[int(index)]

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
        account = self._account()
        layer = Layer(self, planned.step, account)
        relevance = tf.reshape(relevances[0], layer.shape) if planned.step.linear.reshaped else relevances[0]
        shares = (
            planned.rule.function(Layer(self, planned.step, account, sign), part, **planned.settings)
            for sign, part in self._by_sign(planned, relevance)
        )
        passed = functools.reduce(tf.add, shares)
        self._note(relevances, [passed], account)
        return [passed if i == planned.step.linear.position else None for i in range(len(planned.step.inputs))]

    def _by_sign(self, planned, relevance):
        """Pairs of a sign of the weights of a layer and the relevance that arrives there."""
        if not planned.last_linear:
            return [(1, relevance)]
        if self._first_class is None:
            return [(1, relevance), (-1, -relevance)] if self.engine.negate else [(1, relevance)]
        # One output z stands for the logits [-z, z]: the layer of class 0 is the negated one of class 1.
        is_first_class = tf.reshape(self._first_class, (-1, *[1] * (relevance.shape.rank - 1)))
        own, opposite = tf.where(is_first_class, 0.0, relevance), tf.where(is_first_class, relevance, 0.0)
        return [(1, own - opposite), (-1, opposite - own)] if self._contrast else [(1, own), (-1, opposite)]

    def _other(self, planned, relevances):
        account = self._account()
        op = Op(self, planned.step, account)
        redistributed = planned.rule.function(op, relevances, **planned.settings)
        reached = (
            (planned.step.main,) if planned.rule.one_way and planned.step.main is not None else planned.step.active
        )
        if account is not None:
            constants = [r for i, r in enumerate(redistributed) if r is not None and i not in planned.step.active]
            account.add(bias=sum(map(tf.reduce_sum, constants), start=0.0))
        redistributed = [r if i in reached else None for i, r in enumerate(redistributed)]
        self._note(relevances, redistributed, account)
        return redistributed

    def _account(self):
        return None if self.audit is None else Account()

    def _note(self, arrived, left, account):
        if account is not None:
            self.audit.append(account.row(arrived, left))


class Account:
    """What does not leave a step as relevance, summed: ``lost``, for want of anything to share it by; taken by a
    ``bias`` or another constant; and taken by the ``stabilizer`` of a denominator."""

    columns = ("arrived", "passed", "lost", "bias", "stabilizer", "size_arrived", "size_passed")

    def __init__(self):
        self._sums = dict.fromkeys(("lost", "bias", "stabilizer"), 0.0)

    def add(self, **amounts):
        for name, amount in amounts.items():
            self._sums[name] += tf.cast(amount, "float64")

    def row(self, arrived, passed):
        """Values of the columns; the last two are sums of absolute values."""
        both = [[r for r in relevances if r is not None] for relevances in (arrived, passed)]
        sums = [_sum(relevances) for relevances in both]
        sizes = [_sum(map(tf.abs, relevances)) for relevances in both]
        return tf.stack([tf.cast(value, "float64") for value in (*sums, *self._sums.values(), *sizes)])


def _sum(tensors):
    """The sum of all values of tensors, which may be of several float types."""
    return sum((tf.cast(tf.reduce_sum(tensor), "float64") for tensor in tensors), start=0.0)


def _batch_axis(tensor):
    return next((i for i, size in enumerate(tensor.shape) if size is None), None)


class _View:
    """What rules see of a step."""

    tiny = _TINY

    def __init__(self, run, account):
        self._run, self._account_of = run, account

    @property
    def audited(self):
        """Whether it is noted where relevance goes."""
        return self._account_of is not None

    def note(self, relevance, z, bias=None, stabilizer=None):
        """Note that relevance is divided by ``z``, of which ``bias`` and ``stabilizer`` are no contributions."""
        if not self.audited:
            return
        gone = tf.abs(z) <= self.tiny
        ratio = tf.where(gone, tf.zeros_like(z), relevance / z)
        self._account_of.add(lost=tf.reduce_sum(tf.where(gone, relevance, tf.zeros_like(relevance))))
        for name, part in (("bias", bias), ("stabilizer", stabilizer)):
            if part is not None:
                self._account_of.add(**{name: tf.reduce_sum(ratio * part)})

    def shared_otherwise(self, relevance):
        """Note that relevance was not lost, because it is shared by something else."""
        if self.audited:
            self._account_of.add(lost=-tf.reduce_sum(relevance))


class Op(_View):
    """An op other than a linear layer, as its rule sees it (see ``register_rule``)."""

    def __init__(self, run, step, account=None):
        super().__init__(run, account)
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

    def __init__(self, run, step, account=None, sign=1):
        super().__init__(run, account)
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
        number = groups.count(self._op.node_def, self.x.shape, weight.shape) if self._op.type in CONVOLUTIONS else 1
        if number == 1:
            return self._pull_back(self.x, gradient, weight)
        if groups.is_depthwise(self._op.node_def, weight.shape):
            return groups.depthwise_gradient(self._op.node_def, self.x, weight, gradient)
        axis = groups.channel_axis(self._op.node_def)
        own = groups.separated(self.x, weight, number, axis)
        gradients = tf.split(gradient, number, axis)
        return tf.concat([self._pull_back(x, g, w) for (x, w), g in zip(own, gradients, strict=True)], axis)

    def _pull_back(self, x, gradient, weight):
        if self._op.type == "Conv2D":  # whose own gradient would read the repeated input, for its shape only
            names = ("strides", "padding", "explicit_paddings", "data_format", "dilations")
            return tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.concat([tf.shape(gradient)[:1], tf.shape(x)[1:]], 0),
                filter=weight,
                out_backprop=gradient,
                **{name: self._op.get_attr(name) for name in names},
            )
        inputs = self._with(self._run.repeat(x), weight)
        return pull_back(self._op, inputs, [gradient], [gradient])[self._linear.position]

    def _with(self, x, weight):
        inputs = list(self._op.inputs)
        inputs[self._linear.position], inputs[self._linear.at] = x, weight
        if self._op.type == "Conv2DBackpropInput":
            inputs[0] = tf.concat([tf.shape(x)[:1], inputs[0][1:]], 0)
        return inputs
