"""Chooses a rule for every step of a graph, and compiles the walk back through them."""

import dataclasses
import fnmatch
import functools
import re

import tensorflow as tf

from keras_capsvit.explain.relevance import rules as rulebook
from keras_capsvit.explain.relevance.canonical import Reader, Step
from keras_capsvit.explain.relevance.graph import UnsupportedOpError, compiled, node_of
from keras_capsvit.explain.relevance.report import Report, Row
from keras_capsvit.explain.relevance.walk import Run

_TAILS = ("Identity", "Cast", "Softmax", "LogSoftmax", "Sigmoid")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step with its rule, and whether it is the last linear layer, the one whose weights CLRP negates."""

    step: Step
    rule: rulebook.Rule
    settings: dict
    last_linear: bool = False


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
    def stop_shape(self):
        """Static shape of the tensor that relevance goes to."""
        return tuple(self.graph.shapes[self.stop])

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
            self._compiled["scores"] = compiled(lambda x: Run(self, x).tensor(self.start), self._spec)
        return self._compiled["scores"](tf.constant(x))

    def relevance(self, x, targets, contrast=False, audit=False):
        """Relevance of classes.

        Args:
            x: tensor ``(b, ...)``.
            targets: int32 array or tensor ``(k, b)``, positions on the last axis of ``start``.
            contrast: bool, whether the score, uniformly over all other positions, is sent back negatively.
            audit: bool; for one target only.

        Returns:
            Tensor ``(k, b, ...)``; with ``audit``, the pair of it and a tensor ``(steps, 3)``, for each step of the
            plan: sum of relevance that arrives, that leaves, and that arrived where there was nothing to share it by.
        """
        several = targets.shape[0] > 1
        if several and not self._repeats:
            found = [self.relevance(x, ids[None], contrast) for ids in targets]
            return tf.concat(found, 0)
        key = (several, contrast, audit)
        if key not in self._compiled:
            ids = tf.TensorSpec((None if several else 1, None), "int32")
            self._compiled[key] = compiled(
                lambda x, ids: self._relevance(x, ids, several, contrast, audit), self._spec, ids
            )
        return self._compiled[key](tf.convert_to_tensor(x), tf.convert_to_tensor(targets))

    @functools.cached_property
    def _repeats(self):
        """Whether the tensors of k relevances per input are k times those of the inputs, one after the other."""
        if self.graph.shapes[f"{self.graph.input}:0"][0] is not None:
            return False
        for name in self.graph.dependent - {self.graph.input}:
            op = self.graph.nodes[name].op
            # These may put the batch inside of an axis, behind something else.
            if op in ("SpaceToBatchND", "BatchToSpaceND"):
                return False
            if op == "Reshape":
                read = self.graph.shapes[self.graph.inputs(name)[0]]
                if read.rank is None or None in list(read)[1:]:
                    return False
        return True

    def _relevance(self, x, targets, several, contrast, audit):
        run = Run(self, x, tf.shape(targets)[0] if several else None, [] if audit else None)
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

    def report(self, found=None):
        """Report of the plan; ``found`` is what ``relevance`` returned for an audit, or None."""
        relevance, sums = (None, None) if found is None else (float(tf.reduce_sum(found[0])), found[1])
        rows = []
        for i, one in enumerate(self.plan):
            arrived, left, lost = (None, None, None) if sums is None else map(float, sums[i])
            rows.append(
                Row(one.step.path, one.step.op, one.step.kind, one.rule.name, one.settings, arrived, left, lost)
            )
        return Report(self.start, self.stop, rows, relevance)

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
        entries = self.composite.entries
        reached, planned, unsupported = {start}, [], {}
        for name in reversed(self.graph.order):
            if name not in reached or name == source:
                continue
            step = self.reader.step(name)
            chosen = _choose(entries, step)
            if step.kind == "normalization" and chosen and chosen[0] is rulebook.GRADIENT:
                step = self.reader.step(name, whole=False)
                chosen = _choose(entries, step)
            if chosen is None:
                unsupported.setdefault(step.op, []).append(name)
                chosen = rulebook.GRADIENT, {}
            first_linear = step.linear is not None and not any(one.step.linear for one in planned)
            planned.append(Planned(step, *chosen, first_linear))
            goes_to = (step.main,) if chosen[0].one_way and step.main is not None else step.active
            reached.update(node_of(step.inputs[i]) for i in goes_to)
        if unsupported:
            raise UnsupportedOpError(_unsupported(unsupported))
        for entry in entries[: self.composite.own]:
            if entry[0] != "*" and not any(_applies(entry, one.step) for one in planned):
                layers = dict.fromkeys(one.step.path for one in planned if one.step.linear)
                raise ValueError(
                    f"Expected the entry {entry!r} of rules to apply to a step between {self.start!r} and "
                    f"{self.stop!r}; it applies to none. Linear layers there: {', '.join(layers)}."
                )
        return planned


def _choose(entries, step):
    """Rule of a step and its settings, or None for an op that has no rule."""
    known = _known(step)
    for entry in entries:
        rule = _applies(entry, step)
        if rule is not None:
            settings = entry[2] if len(entry) == 3 else {}
            rulebook.check_settings(rule, settings)
            return rule, settings
    return (next(iter(known.values())), {}) if known else None


def _known(step):
    """Rules by name that a step has."""
    registered = None if step.linear else rulebook.RULES.get(step.op)
    return registered or rulebook.RULES.get(step.kind, {})


def _applies(entry, step):
    """The rule of an entry if it applies to a step, or None."""
    where, name = entry[:2]
    rule = _known(step).get(name) or (rulebook.GRADIENT if name == "gradient" else None)
    return rule if _matches(where, step) else None


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
