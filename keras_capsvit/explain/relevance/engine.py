"""Compiles the walk of relevance back through the steps of a graph."""

import functools

import numpy as np
import tensorflow as tf

from keras_capsvit.explain.relevance.canonical import Reader
from keras_capsvit.explain.relevance.graph import compiled, node_of
from keras_capsvit.explain.relevance.plan import plan_of
from keras_capsvit.explain.relevance.report import Report, Row
from keras_capsvit.explain.relevance.scores import Tail
from keras_capsvit.explain.relevance.walk import Account, Run

_UNBOUNDED = 1e12  # how many times more rules without a bound pass on, by far not reached where all is well
_ROUNDING = 2.0


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
        returned = graph.shapes[graph.outputs[0]]
        if start is None and returned[-1:] == [1] and returned.rank > 2:
            raise ValueError(
                f"Expected a model with scores of classes on its last axis; this one returns {tuple(returned)}. Give a "
                "callable that reshapes them, or pass start=, its last layer, to explain their sum."
            )
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
        """Take over the values that the model's variables have now, if they changed."""
        with tf.init_scope():  # also while an endpoint is traced
            if self.graph.outdated:
                self.graph.refresh()
                self._plan_anew()

    def _plan_anew(self):
        limits = self.graph.limits
        if self.input_range is not None:
            limits = float(tf.reduce_min(self.input_range[0])), float(tf.reduce_max(self.input_range[1]))
        self.reader = Reader(self.graph, node_of(self.stop), (node_of(self.start), node_of(self.stop)), limits)
        self.plan = plan_of(self.reader, self.composite, self.start, self.stop)
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
        return [
            planned.step.path for planned in self.plan if planned.rule.name == "even" and self._pools_all(planned.step)
        ]

    def _pools_all(self, step):
        before, after = (self.graph.shapes[tensor] for tensor in (step.inputs[0], f"{step.name}:0"))
        if before.rank is None or before.rank < 3 or None in (*before[1:], *after[1:]):
            return False
        return before[1:].num_elements() > after[1:].num_elements() == before[-1] == after[-1]

    def _growth(self):
        """How many times the relevance that was sent, in absolute values, may arrive at most."""
        if not self.conserving:
            return np.inf
        growths = [planned.rule.growth(planned.step.nonnegative, **planned.settings) for planned in self.plan]
        return (
            _ROUNDING
            * np.prod([1.0, *(growth for growth in growths if np.isfinite(growth))])
            * (1.0 if np.all(np.isfinite(growths)) else _UNBOUNDED)
        )

    def scores(self, arguments):
        """Scores of classes, or the tensor ``start``, of a batch of inputs."""
        if "scores" not in self._compiled:
            self._compiled["scores"] = compiled(
                lambda *arguments: self._scores(Run(self, arguments)), *self.graph.specs
            )
        return self._compiled["scores"](*map(tf.convert_to_tensor, arguments))

    def _scores(self, run):
        scores = run.tensor(self.start)
        return tf.concat([-scores, scores], -1) if self.binary else scores

    def relevance(self, arguments, targets, contrast=False, audit=False):
        """Relevance of classes.

        Args:
            arguments: tensors ``(b, ...)``, the arguments of the graph.
            targets: int32 array or tensor ``(k, b)``, classes.
            contrast: bool, whether the score, uniformly over all other classes, is sent back negatively.
            audit: bool; for one target only.

        Returns:
            Pair of a tensor ``(k, b, ...)`` and sums ``(k, b, 4)``: what was sent and what arrived, and the same of
            absolute values. With ``audit`` also a tensor ``(steps, columns)``, see Account.
        """
        several = targets.shape[0] > 1
        if several and not self._repeats:
            results = [self.relevance(arguments, ids[None], contrast) for ids in targets]
            return tuple(tf.concat(parts, 0) for parts in zip(*results, strict=True))
        key = (several, contrast, audit)
        if key not in self._compiled:
            ids = tf.TensorSpec((None if several else 1, None), "int32")
            self._compiled[key] = compiled(
                lambda ids, *arguments: self._relevance(arguments, ids, several, contrast, audit),
                ids,
                *self.graph.specs,
            )
        return self._compiled[key](*map(tf.convert_to_tensor, (targets, *arguments)))

    @functools.cached_property
    def _repeats(self):
        """Whether the tensors of k relevances per input are k times those of the inputs, one after the other."""
        if self.graph.shapes[f"{self.graph.input}:0"][0] is not None:
            return False
        for name in self.graph.dependent - {*self.graph.arguments}:
            op = self.graph.nodes[name].op
            # These may put the batch inside of an axis, behind something else.
            if op in ("SpaceToBatchND", "BatchToSpaceND"):
                return False
            if op == "Reshape":
                read = self.graph.shapes[self.graph.inputs(name)[0]]
                if read.rank is None or None in list(read)[1:]:
                    return False
        return True

    def _relevance(self, arguments, targets, several, contrast, audit):
        ids = tf.reshape(targets, (-1,))
        binary = {"first_class": tf.equal(ids, 0), "contrast": contrast or self.negate} if self.binary else {}
        run = Run(self, arguments, tf.shape(targets)[0] if several else None, [] if audit else None, **binary)
        scores = run.repeat(self._scores(run))
        classes = scores.shape[-1]
        one_hot = tf.one_hot(ids, classes, dtype=scores.dtype)
        for _ in range(scores.shape.rank - 2):
            one_hot = one_hot[:, None]
        # Not a product, which would make NaN of a score that is infinite.
        score = tf.reduce_sum(tf.where(one_hot > 0, scores, tf.zeros_like(scores)), axis=-1, keepdims=True)
        sent = one_hot - (1 - one_hot) / max(classes - 1, 1) if contrast else one_hot
        if self.binary:
            sent = tf.ones_like(score)
        sent = sent * (tf.ones_like(score) if self.composite.sends_one else score)
        arrived = run.walk(sent)
        maps = tf.reshape(arrived, tf.concat([tf.shape(targets), tf.shape(arrived)[1:]], 0))
        sums = [_over_rows(reduced, tf.shape(targets)) for reduced in (sent, arrived, tf.abs(sent), tf.abs(arrived))]
        if self.composite.sends_one:  # gradients may be finite where scores are not
            sums[0] += _over_rows(score, tf.shape(targets))
        widest = max((each.dtype for each in sums), key=lambda dtype: dtype.size)
        sums = tf.stack([tf.cast(each, widest) for each in sums], -1)
        return (maps, sums, *([tf.stack(run.audit)] if audit else []))

    def report(self, audited=None):
        """Report of the plan; ``audited`` is what ``relevance`` returned for an audit, or None."""
        rows = []
        for i, planned in enumerate(self.plan):
            sums = {}
            if audited is not None:
                sums = dict(zip(Account.columns, audited[2][i].numpy().tolist(), strict=True))
                before, after = sums.pop("size_arrived"), sums.pop("size_passed")
                sums["growth"] = after / before if before else 0.0
            rows.append(
                Row(planned.step.path, planned.step.op, planned.step.kind, planned.rule.name, planned.settings, **sums)
            )
        return Report(self.start, self.stop, rows, None if audited is None else float(tf.reduce_sum(audited[0])))

    def bounds(self, tensor):
        """Lowest and highest values of a tensor that affine ops compute from the input."""
        shapes = [[size or 1 for size in spec.shape] for spec in self.graph.specs]
        zeros = [tf.zeros(shape, spec.dtype) for shape, spec in zip(shapes, self.graph.specs, strict=True)][1:]
        through = compiled(lambda *arguments: tf.identity(Run(self, arguments).tensor(tensor)), *self.graph.specs)
        ends = (tf.broadcast_to(tf.cast(end, self.graph.dtype), shapes[0]) for end in self.input_range)
        low, high = (through(end, *zeros) for end in ends)
        return tf.minimum(low, high), tf.maximum(low, high)


def _over_rows(tensor, shape):
    """Sums of the rows of a tensor ``(k b, ...)``, in ``shape`` (k, b)."""
    return tf.reshape(tf.reduce_sum(tf.reshape(tensor, (shape[0] * shape[1], -1)), 1), shape)
