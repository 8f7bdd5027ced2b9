"""Runs relevance backwards through a graph: chooses a rule for every step, replays the model, walks back, compiles."""

import collections
import dataclasses
import fnmatch
import re

import tensorflow as tf

from keras_capsvit.explain.relevance import rules as rulebook
from keras_capsvit.explain.relevance.canonical import Reader, Step
from keras_capsvit.explain.relevance.graph import UnsupportedOpError, compiled, emit, node_of, pull_back

_TAILS = ("Identity", "Cast", "Softmax", "LogSoftmax", "Sigmoid")
_TINY = 1e-20  # activations up to this count as 0


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step with its rule, and whether it is the last linear layer, the one whose weights CLRP negates."""

    step: Step
    rule: rulebook.Rule
    settings: dict
    last_linear: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A step in a Report: its node, op type, kind and rule, and sums of relevance (None without images)."""

    node: str
    op: str
    kind: str
    rule: str
    settings: dict
    arrived: float | None
    passed: float | None
    lost: float | None


@dataclasses.dataclass(frozen=True)
class Report:
    """What an explainer does.

    Attributes:
        start: str, the tensor whose value is redistributed; ``stop``: the tensor it is redistributed to.
        rows: list of Row, in the order relevance takes.
    """

    start: str
    stop: str
    rows: list

    @property
    def ops(self):
        """How many steps there are of each op type, a dict."""
        return dict(collections.Counter(row.op for row in self.rows).most_common())

    def __str__(self):
        ops = ", ".join(f"{count} {op}" for op, count in self.ops.items())
        lines = [f"Relevance of {self.start} to {self.stop}: {ops}", f"{'op':22} {'rule':14} node"]
        if self.rows and self.rows[0].arrived is not None:
            lines[1] = f"{'op':22} {'rule':14} {'arrived':>11} {'passed':>11} {'lost':>11}  node"
        for row in self.rows:
            sums = "" if row.arrived is None else f"{row.arrived:11.4g} {row.passed:11.4g} {row.lost:11.4g}  "
            lines.append(f"{row.op:22} {row.rule:14} {sums}{row.node}")
        return "\n".join(lines)


class Engine:
    """Relevance of the tensor ``start`` to the tensor ``stop`` of a graph.

    Args:
        graph: Graph.
        composite: Composite, the rules; the user's entries in it must each apply to something.
        start: name of a tensor, or None for the output without the softmax or sigmoid at its end.
        stop: name of a tensor, or None for the input.
        input_range: pair of numbers or arrays that broadcast to an image, or None.
        negate: bool, whether the relevance under a negated last linear layer is subtracted.

    Raises:
        UnsupportedOpError: for ops without a rule; names all of them.
        ValueError: for entries that apply to nothing, and a start that does not depend on the stop.
    """

    def __init__(self, graph, composite, *, start=None, stop=None, input_range=None, negate=False):
        self.graph, self.composite, self.negate = graph, composite, negate
        self.start = start or self._before_softmax()
        self.stop = stop or f"{graph.input}:0"
        self.input_range = input_range
        self._plan_anew()

    @property
    def classes(self):
        """Size of the last axis of the tensor that relevance comes from."""
        return self.graph.shapes[self.start][-1]

    @property
    def _spec(self):
        return tf.TensorSpec(self.graph.shapes[f"{self.graph.input}:0"], self.graph.dtype)

    @property
    def dtype(self):
        """NumPy dtype of the input."""
        return self.graph.dtype.as_numpy_dtype

    @property
    def to_input(self):
        """Whether relevance goes to the input."""
        return self.stop == f"{self.graph.input}:0"

    def refresh(self):
        """Take over the present values of the model's variables."""
        self.graph.refresh()
        self._plan_anew()

    def _plan_anew(self):
        low = None if self.input_range is None else float(tf.reduce_min(self.input_range[0]))
        self.reader = Reader(self.graph, node_of(self.stop), (node_of(self.start), node_of(self.stop)), low)
        self.plan = self._plan()
        self._compiled = {}

    def scores(self, x):
        """The tensor ``start`` of a batch of inputs."""
        if "scores" not in self._compiled:
            self._compiled["scores"] = compiled(lambda x: _Run(self, x).tensor(self.start), self._spec)
        return self._compiled["scores"](tf.constant(x))

    def relevance(self, x, targets, contrast=False, audit=False):
        """Relevance of classes.

        Args:
            x: tensor ``(b, ...)``.
            targets: int tensor ``(k, b)``, positions on the last axis of ``start``.
            contrast: bool, whether the score, uniformly over all other positions, is sent back negatively.
            audit: bool.

        Returns:
            Tensor ``(k, b, ...)``; with ``audit``, the pair of it and a tensor ``(steps, 3)``, for each step of the
            plan: sum of relevance that arrives, that leaves, and that arrived where there was nothing to share it by.
        """
        several = targets.shape[0] != 1
        key = (several, contrast, audit)
        if key not in self._compiled:
            ids = tf.TensorSpec((None if several else 1, None), "int32")
            self._compiled[key] = compiled(
                lambda x, ids: self._relevance(x, ids, several, contrast, audit), self._spec, ids
            )
        return self._compiled[key](tf.constant(x), tf.constant(targets))

    def _relevance(self, x, targets, several, contrast, audit):
        run = _Run(self, x, tf.shape(targets)[0] if several else None)
        scores = run.repeat(run.tensor(self.start))
        classes = scores.shape[-1]
        chosen = tf.one_hot(tf.reshape(targets, (-1,)), classes, dtype=scores.dtype)
        for _ in range(scores.shape.rank - 2):
            chosen = chosen[:, None]
        sent = chosen
        if contrast:
            sent = chosen - (1 - chosen) / max(classes - 1, 1)
        if not self.composite.one:
            sent = sent * tf.reduce_sum(scores * chosen, axis=-1, keepdims=True)
        arrived = run.walk(sent)
        found = tf.reshape(arrived, tf.concat([tf.shape(targets), tf.shape(arrived)[1:]], 0))
        return (found, tf.stack(run.audit)) if audit else found

    def report(self, sums=None):
        """Report of the plan; ``sums (steps, 3)`` as ``relevance`` returns them, or None."""
        rows = []
        for i, one in enumerate(self.plan):
            arrived, left, lost = (None, None, None) if sums is None else map(float, sums[i])
            rows.append(
                Row(one.step.path, one.step.op, one.step.kind, one.rule.name, one.settings, arrived, left, lost)
            )
        return Report(self.start, self.stop, rows)

    def bounds(self, tensor):
        """Lowest and highest values of a tensor that affine ops compute from the input."""
        graph = self.graph
        batch, *image = graph.shapes[f"{graph.input}:0"]

        def evaluate(x):
            ops = graph.replay(x)
            return tf.identity(x if node_of(tensor) == graph.input else ops[node_of(tensor)].outputs[0])

        through = compiled(evaluate, self._spec)
        low, high = (
            through(tf.broadcast_to(tf.cast(end, self.graph.dtype), (batch or 1, *image))) for end in self.input_range
        )
        return tf.minimum(low, high), tf.maximum(low, high)

    def _before_softmax(self):
        tensor = self.graph.outputs[0]
        while self.graph.nodes[node_of(tensor)].op in _TAILS:
            tensor = self.graph.inputs(node_of(tensor))[0]
        return tensor

    def _plan(self):
        source, start = node_of(self.stop), node_of(self.start)
        if start not in self.reader.follow or start == source:
            raise ValueError(f"Expected {start!r}, where relevance starts, to depend on {source!r}; it does not.")
        reached, planned, unsupported, used = {start}, [], {}, set()
        for name in reversed(self.graph.order):
            if name not in reached or name == source:
                continue
            step = self.reader.step(name)
            chosen = self._choose(step, used)
            if step.kind == "normalization" and chosen and chosen[0] is rulebook.GRADIENT:
                step = self.reader.step(name, whole=False)
                chosen = self._choose(step, used)
            if chosen is None:
                unsupported.setdefault(step.op, []).append(name)
                chosen = rulebook.GRADIENT, {}
            first_linear = step.linear is not None and not any(one.step.linear for one in planned)
            planned.append(Planned(step, *chosen, first_linear))
            goes_to = (step.main,) if chosen[0].one_way and step.main is not None else step.active
            reached.update(node_of(step.inputs[i]) for i in goes_to)
        if unsupported:
            raise UnsupportedOpError(_unsupported(unsupported))
        for index, entry in enumerate(self.composite.entries[: self.composite.own]):
            if index not in used:
                layers = dict.fromkeys(one.step.path for one in planned if one.step.linear)
                raise ValueError(
                    f"Expected the entry {entry!r} of rules to apply to a step between {self.start!r} and "
                    f"{self.stop!r}; it applies to none. Linear layers there: {', '.join(layers)}."
                )
        return planned

    def _choose(self, step, used):
        registered = None if step.linear else rulebook.RULES.get(step.op)
        known = registered or rulebook.RULES.get(step.kind)
        for index, (where, name, *settings) in enumerate(self.composite.entries):
            rule = (known or {}).get(name) or (rulebook.GRADIENT if name == "gradient" else None)
            if rule is not None and _matches(where, step):
                settings = settings[0] if settings else {}
                rulebook.check_settings(rule, settings)
                used.add(index)
                return rule, settings
        return (next(iter(known.values())), {}) if known else None


class _Run:
    """One replay of the model while it is being traced, and the walk back through it.

    Args:
        engine: Engine.
        x: tensor ``(b, ...)``.
        times: scalar tensor, how many relevances each input has; None for one.
    """

    def __init__(self, engine, x, times=None):
        self.engine, self.x, self.times = engine, x, times
        self._ops = engine.graph.replay(x)
        self._repeated = {}
        self.audit = []

    def op(self, name):
        return self._ops[name]

    def tensor(self, key):
        """Tensor of the forward pass by name ``node:index``."""
        name, _, index = key.partition(":")
        return self.x if name == self.engine.graph.input else self._ops[name].outputs[int(index)]

    def repeat(self, tensor):
        """A tensor of the forward pass, once for each of the relevances of an input; constants stay as they are."""
        axis = next((i for i, size in enumerate(tensor.shape) if size is None), None)
        if self.times is None or axis is None:
            return tensor
        if id(tensor) not in self._repeated:
            multiples = [self.times if i == axis else 1 for i in range(tensor.shape.rank)]
            self._repeated[id(tensor)] = tensor, tf.tile(tensor, multiples)
        return self._repeated[id(tensor)][1]

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
        layer = _Layer(self, planned.step)
        relevance = tf.reshape(relevances[0], layer.shape) if planned.step.linear.reshaped else relevances[0]
        found = planned.rule.function(layer, relevance, **planned.settings)
        if planned.last_linear and self.engine.negate:
            found = found - planned.rule.function(_Layer(self, planned.step, -1), relevance, **planned.settings)
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
        sums = [sum((tf.reduce_sum(r) for r in some if r is not None), start=0.0) for some in (arrived, left)]
        lost = 0.0
        if view.divisors:
            gone = tf.reduce_all([tf.abs(z) <= _TINY for z in view.divisors], axis=0)
            lost = tf.reduce_sum(tf.where(gone, tf.reshape(arrived[0], tf.shape(gone)), 0.0))
        self.audit.append(tf.stack([*sums, tf.cast(lost, sums[0].dtype)]))


class _View:
    """What rules see of a step."""

    tiny = _TINY

    def __init__(self, run):
        self._run, self.divisors = run, []

    def repeat(self, tensor):
        """See _Run."""
        return self._run.repeat(tensor)

    def divisor(self, z):
        """What relevance is divided by: ``z``, once for each relevance of an input."""
        z = self.repeat(z)
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

    def divisor(self, z):
        self.divisors.append(z)  # made of outputs, which are repeated already
        return z

    def pull_back(self, gradients):
        """Gradients with respect to the inputs, a tensor or None for each."""
        return pull_back(self._op, self.inputs, self.outputs, gradients)


class _Layer(_View):
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
        self.weight = self._derived("weight", lambda weight: weight)
        self.positive = self._derived("positive", tf.nn.relu)
        self.negative = self._derived("negative", lambda weight: -tf.nn.relu(-weight))
        self.bias = None if step.linear.bias is None else sign * step.linear.bias
        self.shape = tf.shape(run.repeat(self._op.outputs[0]))
        y = run.op(step.name).outputs[0]
        self.y = sign * (tf.reshape(y, tf.shape(self._op.outputs[0])) if step.linear.reshaped else y)

    def _derived(self, name, make):
        cache = self._linear.cache
        if (name, self._sign) not in cache:
            with tf.init_scope():
                cache[name, self._sign] = make(
                    self._sign * self._linear.weight if self._sign < 0 else self._linear.weight
                )
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

    def pull_back(self, gradient, weight):
        """Gradient with respect to the input, if the layer had another weight."""
        inputs = self._with(self.repeat(self.x), weight)
        return pull_back(self._op, inputs, [gradient], [gradient])[self._linear.position]

    def _with(self, x, weight):
        inputs = list(self._op.inputs)
        inputs[self._linear.position], inputs[self._linear.at] = x, weight
        if self._op.type == "Conv2DBackpropInput":
            inputs[0] = tf.concat([tf.shape(x)[:1], inputs[0][1:]], 0)
        return inputs


def locate(graph, name):
    """The tensor that a layer computes.

    Args:
        graph: Graph.
        name: str, a layer (the last op in its scope that depends on the input), or a node of the graph.

    Returns:
        str, name of the tensor; None for None.

    Raises:
        ValueError: if there is none; lists the layers.
    """
    if name is None:
        return None
    follow = graph.descendants(graph.input)
    names = [one for one in graph.order if one in follow]
    if name in names:
        return f"{name}:0"
    # Keras numbers the scopes of a traced model's layers; a layer conv_1 is conv_1_1 there, and conv is conv_1.
    for pattern in (re.escape(name) + r"_\d+", re.escape(name)):
        found = [one for one in names if any(re.fullmatch(pattern, part) for part in one.split("/"))]
        if found:
            return f"{found[-1]}:0"
    layers = dict.fromkeys(one.split("/")[-2] for one in names if "/" in one)
    raise ValueError(f"Expected a tap, a layer or a node of the graph; received {name!r}. Layers: {', '.join(layers)}.")


def _matches(where, step):
    if where == "*" or where in (step.op, step.kind) or where == step.path:
        return True
    if where == "input":
        return step.linear is not None and step.linear.first
    parts = step.path.split("/")
    return any(fnmatch.fnmatchcase(one, where) for part in parts for one in (part, re.sub(r"_\d+$", "", part)))


def _unsupported(ops):
    listed = "; ".join(f"{op} at {', '.join(map(repr, names))}" for op, names in ops.items())
    first = next(iter(ops))
    return (
        f"Expected ops that relevance has a rule for; found {listed}. Say how relevance passes with "
        f"explain.register_rule({first!r}, function), where function(op, relevances) returns one relevance per input."
    )
