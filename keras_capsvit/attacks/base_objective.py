"""What an attack works on: scores of images, and the loss that it raises (untargeted) or lowers (targeted)."""

from keras import ops

from keras_capsvit import autodiff, caches

_COMPILED = caches.Cache(64)


class Objective:
    """Logits of images, the softmax cross-entropy of which an attack changes.

    A plain callable ``x (b, H, W, C) → (b, M)``, so other attack libraries can drive it too.

    Args:
        scores: callable ``x → (b, M)``.
        model: what the scores come from; its variables are read anew at every call.
        normalized: bool, whether the scores are log-probabilities already, whose cross-entropy needs no softmax.
    """

    precision = "float32"  # of gradients, see ``in_precision``
    subject = None  # taps.Scores that the objective is of, whose attention can be recorded; None of others

    def __init__(self, scores, model, *, normalized=False):
        self.scores = scores
        self.model = model
        self.normalized = normalized

    @property
    def variables(self):
        """Variables that the scores depend on, a list."""
        return list(getattr(self.model, "variables", ()))

    @property
    def input_shape(self):
        """Shape ``(H, W, C)`` of the images that the model takes, None where any is; None where it is not known."""
        shape = getattr(self.model, "input_shape", None)
        return tuple(shape[1:]) if isinstance(shape, tuple) and len(shape) == 4 else None

    def parts(self):
        """What remakes the objective: the objects that it belongs to, which of their objectives it is, and how.

        Returns:
            Tuple of objects, which compiled functions must not keep alive; a hashable; and a callable from the objects
            to the objective, which refers to none of them.
        """
        return (self,), type(self), _itself

    def compiled(self, key, make, owners=()):
        """A function of this objective, compiled once and kept until one of the objects it belongs to goes or changes.

        Args:
            key: hashable, which function.
            make: callable from an Objective to a function of tensors that refers to no model but by that Objective.
            owners: tuple of further objects that the function belongs to.

        Returns:
            Callable of tensors or arrays.
        """
        own, which, _ = self.parts()
        return _COMPILED.get((*own, *owners), (key, which), lambda: autodiff.compiled(make(Weak(self)), self.variables))

    def scored(self, x):
        """Scores ``(b, M)`` of images, a NumPy array, by the compiled objective."""
        return ops.convert_to_numpy(self.compiled("scores", lambda objective: objective.__call__)(x))

    def __call__(self, x):
        return self.scores(x)

    def loss(self, x, y):
        """Cross-entropy ``(b,)`` of images ``x`` for class ids ``y (b,)``."""
        return self.loss_and_scores(x, y)[0]

    def loss_and_scores(self, x, y):
        """Cross-entropy ``(b,)`` and the scores ``(b, M)`` that it is of, in one forward pass."""
        scores = self.scores(x)
        if type(self).loss is not Objective.loss:  # of a subclass that has another one
            return self.loss(x, y), scores
        return self.cross_entropy(scores, y), scores

    def cross_entropy(self, scores, y):
        """Cross-entropy ``(b,)`` of scores ``(b, M)`` for class ids ``y (b,)``."""
        log_probabilities = scores if self.normalized else ops.log_softmax(scores, axis=-1)
        return -ops.sum(ops.one_hot(y, scores.shape[-1], dtype=scores.dtype) * log_probabilities, axis=-1)


class Weak(Objective):
    """An objective that is looked up while a function is traced, so that the compiled function keeps no model alive.

    Args:
        objective: Objective.
    """

    def __init__(self, objective):
        owners, _, self._remake = objective.parts()
        self._owners = [caches.weakly(owner) for owner in owners]
        self.normalized = objective.normalized

    def __call__(self, x):
        return self._there()(x)

    def loss(self, x, y):
        return self._there().loss(x, y)

    def loss_and_scores(self, x, y):
        return self._there().loss_and_scores(x, y)

    def loss_and_attention(self, x, y):
        return self._there().loss_and_attention(x, y)

    def _there(self):
        return self._remake(*(owner() for owner in self._owners))


def _itself(objective):
    return objective
