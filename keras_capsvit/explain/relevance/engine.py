"""Chooses a rule for every step of a graph, and compiles the walk back through them."""

import dataclasses
import fnmatch
import functools
import re

import numpy as np
import tensorflow as tf

from keras_capsvit.explain.relevance import rules as rulebook
from keras_capsvit.explain.relevance.canonical import Reader, Step
from keras_capsvit.explain.relevance.graph import compiled, node_of
from keras_capsvit.explain.relevance.refusals import UnsupportedOpError
from keras_capsvit.explain.relevance.report import Report, Row
from keras_capsvit.explain.relevance.scores import Tail
from keras_capsvit.explain.relevance.walk import Account, Run

_UNBOUNDED = 1e12  # how many times more rules without a bound pass on, by far not reached where all is well
_ROUNDING = 2.0


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
        start: name of a tensor, or None for the output without the softmax or sigmoid at its end; if that is one
            number ``z``, the classes 0 and 1 have the scores ``-z`` and ``z``.
        stop: name of a tensor, or None for the input.
        input_range: pair of numbers or arrays that broadcast to an image, or None.
        negate: bool, whether the relevance under a negated last linear layer is subtracted.

    Raises:
        UnsupportedOpError: for ops without a rule; names all of them.
        ValueError: for entries that apply to nothing, and a start that does not depend on the stop.
    """

    def __init__(self, graph, composite, *, start=None, stop=None, input_range=None, negate=False):
        self.graph, self.composite, self.negate = graph, composite, negate
        self.start = start or Tail(graph).scores()
        self.stop = stop or f"{graph.input}:0"
        if self.start not in graph.shapes:
            raise ValueError("Expected class scores that depend on the model's input; these do not.")
        self.binary = start is None and graph.shapes[self.start][-1:] == [1]
        self.input_range = input_range
        self._plan_anew()

    @property
    def classes(self):
        """How many classes there are, or neurons on the last axis of ``start``."""
        return 2 if self.binary else self.graph.shapes[self.start][-1]

    @property
    def dtype(self):
        """NumPy dtype of the input."""
        return self.graph.dtype.as_numpy_dtype

    @property
    def limits(self):
        """Pair of what the input lies between, numbers or arrays."""
        return self.graph.limits if self.input_range is None else self.input_range

    @property
    def whole(self):
        """Whether the model takes integers."""
        return bool(np.isfinite(self.graph.limits[0]))

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
        limits = self.graph.limits
        if self.input_range is not None:
            limits = float(tf.reduce_min(self.input_range[0])), float(tf.reduce_max(self.input_range[1]))
        self.reader = Reader(self.graph, node_of(self.stop), (node_of(self.start), node_of(self.stop)), limits)
        self.plan = self._plan()
        self.growth = self._growth()
        self._compiled = {}

    @property
    def conserving(self):
        """Whether relevance is redistributed, rather than a gradient passed back."""
        gradients = ("gradient", "guided", "deconvnet")
        return not any(planned.rule.name in gradients and planned.step.kind != "identity" for planned in self.plan)

    @property
    def even_poolings(self):
        """Names of global average poolings that share relevance evenly."""
        return [one.step.path for one in self.plan if one.rule.name == "even" and self._pools_all(one.step)]

    def _pools_all(self, step):
        before, after = (self.graph.shapes[tensor] for tensor in (step.inputs[0], f"{step.name}:0"))
        if before.rank is None or before.rank < 3 or None in (*before[1:], *after[1:]):
            return False
        return before[1:].num_elements() > after[1:].num_elements() == before[-1] == after[-1]

    def _growth(self):
        """How many times the relevance that was sent, in absolute values, may arrive at most."""
        if not self.conserving:
            return np.inf
        found = [one.rule.growth(one.step.nonnegative, **one.settings) for one in self.plan]
        return (
            _ROUNDING
            * np.prod([1.0, *(growth for growth in found if np.isfinite(growth))])
            * (1.0 if np.all(np.isfinite(found)) else _UNBOUNDED)
        )

    def scores(self, given):
        """Scores of classes, or the tensor ``start``, of a batch of inputs."""
        if "scores" not in self._compiled:
            self._compiled["scores"] = compiled(lambda *given: self._scores(Run(self, given)), *self.graph.specs)
        return self._compiled["scores"](*map(tf.convert_to_tensor, given))

    def _scores(self, run):
        scores = run.tensor(self.start)
        return tf.concat([-scores, scores], -1) if self.binary else scores

    def relevance(self, given, targets, contrast=False, audit=False):
        """Relevance of classes.

        Args:
            given: tensors ``(b, ...)``, the arguments of the graph.
            targets: int32 array or tensor ``(k, b)``, classes.
            contrast: bool, whether the score, uniformly over all other classes, is sent back negatively.
            audit: bool; for one target only.

        Returns:
            Pair of a tensor ``(k, b, ...)`` and sums ``(k, b, 4)``: what was sent and what arrived, and the same of
            absolute values. With ``audit`` also a tensor ``(steps, columns)``, see Account.
        """
        several = targets.shape[0] > 1
        if several and not self._repeats:
            found = [self.relevance(given, ids[None], contrast) for ids in targets]
            return tuple(tf.concat(parts, 0) for parts in zip(*found, strict=True))
        key = (several, contrast, audit)
        if key not in self._compiled:
            ids = tf.TensorSpec((None if several else 1, None), "int32")
            self._compiled[key] = compiled(
                lambda ids, *given: self._relevance(given, ids, several, contrast, audit), ids, *self.graph.specs
            )
        return self._compiled[key](*map(tf.convert_to_tensor, (targets, *given)))

    @functools.cached_property
    def _repeats(self):
        """Whether the tensors of k relevances per input are k times those of the inputs, one after the other."""
        if self.graph.shapes[f"{self.graph.input}:0"][0] is not None:
            return False
        for name in self.graph.dependent - {*self.graph.given}:
            op = self.graph.nodes[name].op
            # These may put the batch inside of an axis, behind something else.
            if op in ("SpaceToBatchND", "BatchToSpaceND"):
                return False
            if op == "Reshape":
                read = self.graph.shapes[self.graph.inputs(name)[0]]
                if read.rank is None or None in list(read)[1:]:
                    return False
        return True

    def _relevance(self, given, targets, several, contrast, audit):
        ids = tf.reshape(targets, (-1,))
        binary = {"first_class": tf.equal(ids, 0), "contrast": contrast or self.negate} if self.binary else {}
        run = Run(self, given, tf.shape(targets)[0] if several else None, [] if audit else None, **binary)
        scores = run.repeat(self._scores(run))
        classes = scores.shape[-1]
        chosen = tf.one_hot(ids, classes, dtype=scores.dtype)
        for _ in range(scores.shape.rank - 2):
            chosen = chosen[:, None]
        # Not a product, which would make NaN of a score that is infinite.
        score = tf.reduce_sum(tf.where(chosen > 0, scores, tf.zeros_like(scores)), axis=-1, keepdims=True)
        sent = chosen - (1 - chosen) / max(classes - 1, 1) if contrast else chosen
        if self.binary:
            sent = tf.ones_like(score)
        sent = sent * (tf.ones_like(score) if self.composite.one else score)
        arrived = run.walk(sent)
        maps = tf.reshape(arrived, tf.concat([tf.shape(targets), tf.shape(arrived)[1:]], 0))
        sums = [_over_rows(reduced, tf.shape(targets)) for reduced in (sent, arrived, tf.abs(sent), tf.abs(arrived))]
        if self.composite.one:  # gradients may be finite where scores are not
            sums[0] += _over_rows(score, tf.shape(targets))
        return (maps, tf.stack(sums, -1), *([tf.stack(run.audit)] if audit else []))

    def report(self, found=None):
        """Report of the plan; ``found`` is what ``relevance`` returned for an audit, or None."""
        rows = []
        for i, one in enumerate(self.plan):
            sums = {}
            if found is not None:
                sums = dict(zip(Account.columns, found[2][i].numpy().tolist(), strict=True))
                before, after = sums.pop("size_arrived"), sums.pop("size_passed")
                sums["growth"] = after / before if before else 0.0
            rows.append(Row(one.step.path, one.step.op, one.step.kind, one.rule.name, one.settings, **sums))
        return Report(self.start, self.stop, rows, None if found is None else float(tf.reduce_sum(found[0])))

    def bounds(self, tensor):
        """Lowest and highest values of a tensor that affine ops compute from the input."""
        shapes = [[size or 1 for size in spec.shape] for spec in self.graph.specs]
        others = [tf.zeros(shape, spec.dtype) for shape, spec in zip(shapes, self.graph.specs, strict=True)][1:]
        through = compiled(lambda *given: tf.identity(Run(self, given).tensor(tensor)), *self.graph.specs)
        ends = (tf.broadcast_to(tf.cast(end, self.graph.dtype), shapes[0]) for end in self.input_range)
        low, high = (through(end, *others) for end in ends)
        return tf.minimum(low, high), tf.maximum(low, high)

    def _plan(self):
        source, start = node_of(self.stop), node_of(self.start)
        if start not in self.reader.follow or start == source:
            raise ValueError(
                f"Expected {start!r}, where relevance starts, to depend on {source!r}; it does not{self._why(start)}."
            )
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

    def _why(self, start):
        """How a sentence ends that says that a node's value does not follow that of the source."""
        before, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name not in before:
                before.add(name)
                waiting += map(node_of, self.graph.inputs(name))
        follow = self.reader.follow
        stopping = [
            f"{self.graph.nodes[name].op} at {name!r}"
            for name in self.graph.order
            if name in before and name not in follow and any(node_of(i) in follow for i in self.graph.inputs(name))
        ]
        return f": no relevance passes {', '.join(stopping)}" if stopping else ""


def _over_rows(tensor, shape):
    """Sums of the rows of a tensor ``(k b, ...)``, in ``shape`` (k, b)."""
    return tf.reshape(tf.reduce_sum(tf.reshape(tensor, (shape[0] * shape[1], -1)), 1), shape)


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
