"""The objectives of models: logits, class capsules, votes, and sums of such."""

import functools
import weakref

from keras import ops

from keras_capsvit import caches, checks, taps
from keras_capsvit.attacks.base_objective import Objective
from keras_capsvit.ops import safe_norm, squash

# Lengths below this count as this: a class capsule of length 0 has no direction to grow in.
_SHORTEST = 1e-12

ORDERS = ("average_then_squash", "squash_then_average", "average_loss")


class _OfModel(Objective):
    """An objective that a model has by itself; ``scores`` are made when they are first needed."""

    def __init__(self, model, name, output, transform):
        self.model = model
        self.normalized = name == "average_loss"
        self._which = name, output
        self._transform = transform

    @functools.cached_property
    def _source(self):
        name, output = self._which
        return taps.tap(self.model, "votes") if name in ORDERS else taps.scores(self.model, output)

    @property
    def subject(self):
        return None if self._which[0] in ORDERS else self._source

    def loss_and_attention(self, x, y):
        """Cross-entropy ``(b,)``, and the attentions ``(b, heads, t, t)`` on the way; of what has a ``subject``."""
        scores, _, attention = self.subject.recorded(x, attention=True)
        return self.cross_entropy(self._transform(scores), y), attention

    @property
    def variables(self):
        return list(getattr(self._source, "variables", ()) or getattr(self.model, "variables", ()))

    def scores(self, x):
        return ops.cast(self._transform(self._source(x)), "float32")

    def parts(self):
        return (self.model,), self._which, functools.partial(_of, *self._which)


class _Combined(Objective):
    def __init__(self, objectives):
        super().__init__(objectives[0].scores, objectives[0].model, normalized=objectives[0].normalized)
        self.objectives = objectives
        self.precision = "bfloat16" if "bfloat16" in [each.precision for each in objectives] else "float32"

    @property
    def variables(self):
        return list(
            {id(variable): variable for objective in self.objectives for variable in objective.variables}.values()
        )

    def loss_and_scores(self, x, y):
        losses, scores = zip(*(objective.loss_and_scores(x, y) for objective in self.objectives), strict=True)
        return sum(losses), scores[0]

    def parts(self):
        parts = [objective.parts() for objective in self.objectives]
        owners = tuple(owner for owners, _, _ in parts for owner in owners)
        keys = tuple(key for _, key, _ in parts)
        remake = functools.partial(_combined_of, [(len(owners), remake) for owners, _, remake in parts])
        return owners, ("combined", *keys), remake


def natural(model, output=None):
    """The objective that belongs to a model: ``capsules`` where its scores are lengths, ``logits`` otherwise.

    Args:
        model: model, live or served, plain callable ``x → logits``, or Objective, which is returned as it is.
        output: name or index of the output, of a model with several.

    Returns:
        Objective.
    """
    if isinstance(model, Objective):
        return model
    return _of("capsules" if _kind_of(model, output) == "lengths" else "logits", output, model)


def logits(model, output=None):
    """The logits of a model, what attacks on ConvNets work on: its scores before a softmax or a sigmoid.

    Args:
        model: model, live or served; or callable ``x → logits (b, M)``. One output ``z`` of a sigmoid counts as two
            classes with the logits ``[-z, z]``.
        output: name or index of the output, of a model with several.

    Returns:
        Objective.

    Raises:
        ValueError: for a model whose scores are the lengths of capsules.
    """
    if _kind_of(model, output) == "lengths":
        raise ValueError("This model's scores are lengths of capsules, not logits; use attacks.capsules or .votes.")
    return _of("logits", output, model)


def capsules(model, output=None):
    """Caps-Attack (thesis Eq. 6.7): ``log ||v_j||`` of the class capsules, as logits.

    Args:
        model: capsule network, live or served.
        output: name or index of the output, of a model with several.

    Returns:
        Objective.

    Raises:
        ValueError: for a model without the tap ``lengths``.
    """
    if _kind_of(model, output) != "lengths":
        taps.tap(model, "lengths")  # which says what taps there are instead
    return _of("capsules", output, model)


def votes(model, order="average_then_squash"):
    """Vote-Attack: the votes ``u`` as logits; the routing is never run, forwards or backwards.

    Args:
        model: capsule network with votes, live or served.
        order: with ``g`` the squash and the mean over input capsules ``i``:
            ``"average_then_squash"``, ``log ||g(mean_i u_ij)||`` (thesis Eq. 6.8);
            ``"squash_then_average"``, ``log ||mean_i g(u_ij)||`` (Eq. 6.9);
            ``"average_loss"``, the mean of the losses of every vote's ``log ||g(u_ij)||`` (Eq. 6.10). Its scores are
            the means of log-probabilities; the softmax that other libraries put on them makes another loss of it.

    Returns:
        Objective.

    Raises:
        ValueError: for another order, or a model without the tap ``votes``.
    """
    checks.choice("order", order, ORDERS)
    if "votes" not in taps.names(model):
        taps.tap(model, "votes")  # which says what taps there are instead
    return _of(order, None, model)


def combined(*objectives):
    """Several objectives at a time: the sum of their losses, such as of capsules and votes (AT + Votes, Table 6.2).

    Args:
        objectives: Objectives of one model; scores are those of the first.

    Returns:
        Objective.

    Raises:
        ValueError: for no objective, and what is none.
    """
    if not objectives:
        raise ValueError("Expected at least one objective to combine; received none.")
    if not all(isinstance(each, Objective) for each in objectives):
        kinds = ", ".join(type(each).__name__ for each in objectives)
        raise ValueError(f"Expected Objectives, such as attacks.votes(model), to combine; received {kinds}.")
    return living(("combined", *map(id, objectives)), lambda: _Combined(objectives))


def _log(lengths):
    return ops.log(ops.maximum(ops.cast(lengths, "float32"), _SHORTEST))


_TRANSFORMS = {  # of class scores, or of votes u (b, i, j, e)
    "logits": lambda scores: scores,
    "capsules": _log,
    "average_then_squash": lambda u: _log(safe_norm(squash(ops.mean(u, axis=1)))),
    "squash_then_average": lambda u: _log(safe_norm(ops.mean(squash(u), axis=1))),
    "average_loss": lambda u: ops.mean(ops.log_softmax(_log(safe_norm(squash(u))), axis=-1), axis=1),
}
_KINDS = caches.Cache(256)  # of scores, "lengths" or "logits"
_LIVING: weakref.WeakValueDictionary = (
    weakref.WeakValueDictionary()
)  # objectives in use; they keep their models, so identities stay what they are


def _kind_of(model, output):
    taps.check_output(output)
    return _KINDS.get((model,), output, lambda: taps.scores(model, output).kind)


def _of(name, output, model):
    return living((name, output, caches.identity(model)), lambda: _OfModel(model, name, output, _TRANSFORMS[name]))


def living(key, make):
    """The objective of a key that is in use already, or else the one that ``make`` returns."""
    objective = _LIVING.get(key)
    if objective is None:
        objective = _LIVING[key] = make()
    return objective


def _combined_of(parts, *owners):
    objectives = []
    for count, remake in parts:
        objectives.append(remake(*owners[:count]))
        owners = owners[count:]
    return combined(*objectives)
