"""What an attack works on: scores of images, and the loss that it raises (untargeted) or lowers (targeted)."""

import keras
from keras import ops

from keras_capsvit import taps
from keras_capsvit.ops import safe_norm, squash

# Lengths below this count as this: a class capsule of length 0 has no direction to grow in.
_SHORTEST = 1e-12

ORDERS = ("average_then_squash", "squash_then_average", "average_loss")


class Objective:
    """Logits of images, the softmax cross-entropy of which an attack changes.

    A plain callable ``x (b, H, W, C) → (b, M)``, so other attack libraries can drive it too.

    Args:
        scores: callable ``x → (b, M)``.
        model: what the scores come from; its variables are read anew at every call.
        normalized: bool, whether the scores are log-probabilities already, whose cross-entropy needs no softmax.
    """

    def __init__(self, scores, model, *, normalized=False):
        self.scores = scores
        self.variables = list(getattr(model, "variables", ()))
        self.normalized = normalized
        self.compiled = {}  # by the attacks that work on it
        self.combined = {}  # with others
        self.examined = False

    def __call__(self, x):
        return self.scores(x)

    def loss(self, x, y):
        """Cross-entropy ``(b,)`` of images ``x`` for class ids ``y (b,)``."""
        return self.loss_and_scores(x, y)[0]

    def loss_and_scores(self, x, y):
        """Cross-entropy ``(b,)`` and the scores ``(b, M)`` that it is of, in one forward pass."""
        scores = self.scores(x)
        log_probabilities = scores if self.normalized else ops.log_softmax(scores, axis=-1)
        loss = -ops.sum(ops.one_hot(y, scores.shape[-1], dtype=scores.dtype) * log_probabilities, axis=-1)
        return loss, scores


def natural(model):
    """The objective that belongs to a model: ``capsules`` where its scores are lengths, ``logits`` otherwise.

    Args:
        model: model, live or served, plain callable ``x → logits``, or Objective, which is returned as it is.

    Returns:
        Objective.
    """
    if isinstance(model, Objective):
        return model
    return capsules(model) if "lengths" in taps.names(model) else logits(model)


def logits(model):
    """The logits of a model, what attacks on ConvNets work on.

    Args:
        model: model, live or served, with a tap ``logits``; or callable ``x → logits (b, M)``.

    Returns:
        Objective.

    Raises:
        ValueError: for a model whose scores are the lengths of capsules.
    """
    if "lengths" in taps.names(model):
        raise ValueError("This model's scores are lengths of capsules, not logits; use attacks.capsules or .votes.")
    return _of(model, "logits" if "logits" in taps.names(model) else None, lambda scores: scores)


def capsules(model):
    """Caps-Attack (thesis Eq. 6.7): ``log ||v_j||`` of the class capsules, as logits.

    Args:
        model: capsule network, live or served.

    Returns:
        Objective.

    Raises:
        ValueError: for a model without the tap ``lengths``.
    """
    return _of(model, "lengths", _log)


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
    scores = {
        "average_then_squash": lambda votes: _log(safe_norm(squash(ops.mean(votes, axis=1)))),
        "squash_then_average": lambda votes: _log(safe_norm(ops.mean(squash(votes), axis=1))),
        "average_loss": lambda votes: ops.mean(ops.log_softmax(_log(safe_norm(squash(votes))), axis=-1), axis=1),
    }
    if order not in scores:
        raise ValueError(f"order must be one of {ORDERS}; received {order!r}.")
    return _of(model, "votes", scores[order], order)


def combined(*objectives):
    """Several objectives at a time: the sum of their losses, such as of capsules and votes (AT + Votes, Table 6.2).

    Args:
        objectives: Objectives of one model; scores are those of the first.

    Returns:
        Objective.

    Raises:
        ValueError: for no objective.
    """
    if not objectives:
        raise ValueError("Expected at least one objective to combine; received none.")
    first = objectives[0]
    if objectives not in first.combined:
        first.combined[objectives] = _Combined(objectives)
    return first.combined[objectives]


class _Combined(Objective):
    def __init__(self, objectives):
        super().__init__(objectives[0].scores, None, normalized=objectives[0].normalized)
        self.objectives = objectives
        self.variables = list({id(one): one for objective in objectives for one in objective.variables}.values())

    def loss_and_scores(self, x, y):
        losses, scores = zip(*(objective.loss_and_scores(x, y) for objective in self.objectives), strict=True)
        return sum(losses), scores[0]


def _log(lengths):
    return ops.log(ops.maximum(ops.cast(lengths, "float32"), _SHORTEST))


def _of(model, tap, scores, order=None):
    """The objective, made once per model and kind, because what attacks compile for it is kept there.

    It is kept by the model itself: anything else would keep the model alive.
    """
    made = getattr(model, "__dict__", {}).setdefault("_objectives", {})
    if (tap, order) not in made:
        function = model if tap is None else taps.tap(model, tap)
        arguments = {"training": False} if isinstance(function, keras.Model) else {}
        made[tap, order] = Objective(
            lambda x: ops.cast(scores(function(x, **arguments)), "float32"),
            model,
            normalized=order == "average_loss",
        )
    return made[tap, order]
