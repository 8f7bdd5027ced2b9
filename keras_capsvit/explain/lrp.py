"""Layer-wise relevance propagation (thesis chapter 2)."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit import checks, taps
from keras_capsvit.explain.base import Recorded, check_tensorflow


class LRP(Recorded):
    """Layer-wise relevance propagation on the ops of any TensorFlow model (Bach et al. 2015; thesis Eq. 2.1).

    The score of a class, before any softmax, sigmoid or log-softmax at the end, is sent back and redistributed op by
    op; one output ``z`` stands for the scores ``-z`` and ``z`` of two classes. Biases after linear layers and batch
    normalisation become part of the layer; other normalisations and activations are bypassed; max pooling gives all to
    the maximum; the coupling of a routing and the attention of a transformer are constants (all relevance goes to votes
    and values), except under ``attn_lrp``, which gives each factor half. Votes may be negative, and z+ loses what
    arrives at a vote without a positive part: take ``"epsilon"`` for capsule networks. A warning tells once when less
    than half of what was sent arrives, and where most of it went missing.

    Args:
        model: Keras model of any kind, live or served, callable, ``tf.function``, path of a SavedModel, or what
            ``tf.saved_model.load`` returned.
        rules: str, or a list whose first matching entry counts. The names: ``"z_plus"``; ``"thesis"`` (2.3.1: z^beta on
            the input layer, z+ elsewhere, average pooling even, which misleads after a *global* average pooling: it
            spreads relevance over the whole map, so take ``"z_plus"`` for such networks); ``"epsilon"``;
            ``"epsilon_plus"`` (z+ in convolutions, epsilon in dense layers); ``"epsilon_gamma_box"``;
            ``"alpha2_beta1"``; ``"attn_lrp"``; ``"cp_lrp"``; and ``"gradient"``, ``"guided_backprop"``,
            ``"deconvnet"``, which return gradients; or a rule of linear layers (``"gamma"``, ``"w_square"``,
            ``"flat"``, ...). Entries of a list are ``(where, rule)`` or ``(where, rule, settings)``, and a name at the
            end for the rest. ``where`` is a layer name or a pattern of such, an op type (``"Conv2D"``), or ``"input"``,
            the linear layers next to the input.
        input_range: pair of numbers or arrays that broadcast to an image, lowest and highest input; then the input
            layer is treated by z^beta, unless ``rules`` is a list with an entry for it; images beyond it are refused.
        input_shape: ints ``(H, W, C)``, for models that do not tell it.
        start: str, tap, layer (also of nested and subclassed models, where needed by its path ``"outer/inner"``) or
            node whose neurons are explained; None for the scores.
        stop: str, tap, layer or node that relevance is returned for; None for the input. Relevance that goes round it
            is not in the result.
        output: name or index, of a model with several outputs.
        fixed: dict, values of all inputs but the one to explain, of a model with several: a row for each image, or one
            row for all.
        signature: str, of a SavedModel.
        channels: bool, keep the channels of images instead of summing over them.
        batch_size: int >= 1, images per pass.

    Raises:
        ValueError: on a backend other than TensorFlow; for rules, ranges and names that are none, and names of several
            layers; for models that relevance cannot pass, before anything runs, naming all such ops; for half
            precision, images with their channels first, integers that more than a cast reads, and probabilities at the
            end that are changed.

    Example::

        maps = LRP(model, input_range=(0, 1))(x)                       # for the predicted classes
        maps = LRP("saved_models/vgg/1", "epsilon")(x, target=[[3, 5]])  # both classes of one image
        LRP(model, [("fc*", "epsilon"), ("conv1", "gamma", {"gamma": 0.5}), "z_plus"])
    """

    _contrast = _negate = False

    def __init__(
        self,
        model,
        rules="z_plus",
        *,
        input_range=None,
        input_shape=None,
        start=None,
        stop=None,
        output=None,
        fixed=None,
        signature="serving_default",
        channels=False,
        batch_size=32,
    ):
        relevance = _relevance()
        checks.booleans(channels=channels)
        self.channels, self.batch_size = channels, checks.batch_size(batch_size)
        for name, value in (("start", start), ("stop", stop)):
            if value is not None:
                checks.text(name, value)
        composite = relevance.choose(rules, input_range)
        self._check(composite)
        self._fixed = {} if fixed is None else checks.named("fixed", fixed, "values of the other inputs")
        self._model = relevance.load(model)  # variables of a SavedModel live as long as it
        tapped, start, extra = self._with_taps(start, stop)
        function, spec, self._others = relevance.read(
            tapped, input_shape=input_shape, fixed=[*self._fixed], output=output, signature=signature, extra=extra
        )
        graph = relevance.trace(function, spec, self._others)
        ends = dict(zip(extra, graph.results[1:], strict=True))
        self._engine = relevance.Engine(
            graph,
            composite,
            start=ends.get(start) or relevance.locate(graph, start),
            stop=ends.get(stop) or relevance.locate(graph, stop),
            input_range=input_range,
            negate=self._negate,
        )
        self._balance = relevance.Balance(self._engine, type(self).__name__, self._contrast)
        self._shape = tuple(spec.shape)
        for name in self._engine.even_poolings:
            warnings.warn(
                f"Rule 'even' spreads relevance over the whole map at {name!r}, a global average pooling, also to "
                "where nothing is active: such maps are hardly better than random ones. Take rules='z_plus', which "
                "shares it by contribution.",
                stacklevel=2,
            )

    def __call__(self, x, target=None):
        """Explain images.

        Args:
            x: images ``(b, H, W, C)``, as the model takes them.
            target: class id, ids ``(b,)``, several ids per image ``(b, k)``, or None for the predicted class; of
                intermediate neurons, and of outputs with more axes than two, positions on the last axis, of which the
                values on the axes between are explained together.

        Returns:
            NumPy array of relevance ``(b, H, W)``, or ``(b, H, W, C)`` with ``channels``; of inputs that are no
            images, or with ``stop``, the shape of these. With several ids per image ``(b, k, ...)``.

        Raises:
            ValueError: for images of another shape or beyond their range, NaN or infinite ones, a target out of range,
                ``fixed`` with another number of rows, and for relevance that comes out as NaN or infinite or, in
                absolute values, larger than rules can make it; names the step that made it.
        """
        arguments = self._arguments(x)
        ids = self._ids(arguments, target)
        maps = []
        for rows, part in self._parts(arguments):
            maps.append(self._relevance(part, ids[rows].T))
        maps = np.concatenate(maps, axis=1) if maps else np.zeros((ids.shape[1], 0, *self._engine.stop_shape[1:]))
        maps = ops.convert_to_numpy(self._finished(np.swapaxes(maps, 0, 1)))
        return maps if np.ndim(target) == 2 else maps[:, 0]

    def on_tensors(self, x, ids):
        """Relevance inside a compiled function, such as an endpoint of ``serving.export``.

        Args:
            x: tensor ``(b, H, W, C)``, one batch whatever its size.
            ids: int32 tensor ``(b,)``.

        Returns:
            Tensor, as of the call. The weights of the model are constants in it. Where relevance comes out as NaN, or
            larger than rules can make it, running it raises an error.

        Raises:
            ValueError: for ``fixed`` with a row for each image.
        """
        self._engine.refresh()
        fixed = []
        for (name, value), spec in zip(self._fixed.items(), self._others, strict=True):
            row = _relevance().rows(value, spec, 1, name)
            fixed.append(ops.broadcast_to(row, (ops.shape(x)[0], *row.shape[1:])) if _batched(spec) else row)
        x = ops.cast(x, self._engine.dtype)
        maps = self._balance.asserted(*self._engine.relevance([x, *fixed], ids[None], self._contrast))
        return self._finished(maps[0][:, None])[:, 0]

    def predicted(self, x):
        """Classes of the highest scores.

        Args:
            x: images ``(b, H, W, C)``.

        Returns:
            int32 array ``(b,)``.
        """
        return self._predicted(self._arguments(x))

    def report(self, x=None, target=None):
        """What is explained how, and where relevance goes.

        Args:
            x: images ``(b, H, W, C)`` for a conservation audit, or None.
            target: see the call, one class per image.

        Returns:
            Report; ``str`` of it is a table. With ``x`` its steps say how much relevance arrived at them, how much they
            passed on, and how much was lost because there was nothing to share it by (z = 0), or taken by biases and
            other constants, or by the stabilizers of denominators, summed over the images.
        """
        if x is None:
            self.renew()
            return self._engine.report()
        arguments = self._arguments(x)
        ids = self._ids(arguments, target)
        if ids.shape[1] != 1:
            raise ValueError(f"Expected one class per image in a report; received target of shape {np.shape(target)}.")
        return self._engine.report(self._engine.relevance(arguments, ids.T, self._contrast, audit=True))

    def renew(self):
        """Take over what the model is now: its layers and settings, and the values of its variables."""
        super().renew()
        self._engine.refresh()

    @property
    def variables(self):
        """Variables of the model that is explained, a list."""
        return list(getattr(self._model, "variables", ()))

    def _check(self, composite):
        """Refuse rules that the explainer cannot use."""

    def _with_taps(self, start, stop):
        """The model to trace, ``start`` in it, and the taps to trace along."""
        model = self._model
        known = {name: taps.tap(model, name) for name in (start, stop) if name in taps.names(model)}
        if all(isinstance(tapped, keras.Model) for tapped in known.values()):
            return model, start, tuple(known)
        if stop in known:
            raise ValueError(
                f"Tap {stop!r} of a served model is a function of its own, so relevance cannot stop there; pass a "
                "layer or node of the graph as stop."
            )
        return _Shaped(known[start], model.input_shape), None, ()

    def _arguments(self, x):
        """Arguments of the model of now: checked images, and what the other inputs are for these."""
        self.renew()
        x = self._checked(x)
        named = zip(self._fixed.items(), self._others, strict=True)
        return [x, *(_relevance().rows(value, spec, len(x), name) for (name, value), spec in named)]

    def _parts(self, arguments):
        """Pairs of a slice, and arguments for the images in it."""
        batched = [True, *map(_batched, self._others)]
        for start in range(0, len(arguments[0]), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield rows, [value[rows] if sliced else value for value, sliced in zip(arguments, batched, strict=True)]

    def _relevance(self, arguments, ids):
        maps, sums = self._engine.relevance(arguments, ids, self._contrast)
        self._balance.check(ops.convert_to_numpy(sums), arguments, ids)
        return ops.convert_to_numpy(maps)

    def _predicted(self, arguments):
        ids = np.zeros(len(arguments[0]), "int32")
        for rows, part in self._parts(arguments):
            scores = ops.convert_to_numpy(self._engine.scores(part))
            scores = scores.sum(axis=tuple(range(1, scores.ndim - 1)))
            if not np.isfinite(scores).all():
                raise ValueError(
                    f"{type(self).__name__} found NaN or infinite values; expected a model whose scores are finite for "
                    "these images."
                )
            ids[rows] = scores.argmax(-1)
        return ids

    def _checked(self, x):
        with np.errstate(over="ignore"):
            x = checks.numbers(x, "input").astype(self._engine.dtype)
        if x.ndim != len(self._shape) or any(s not in (None, n) for n, s in zip(x.shape, self._shape, strict=True)):
            raise ValueError(f"Expected input of shape {self._shape}; received {x.shape}.")
        checks.finite(x, "input")
        low, high = self._engine.limits
        slack = 0.0 if self._engine.whole else 1e-4 * (high - low)
        if np.any(x < low - slack) or np.any(x > high + slack):
            raise ValueError(
                f"Expected input between {np.min(low):g} and {np.max(high):g}, its range; received values between "
                f"{x.min():g} and {x.max():g}."
            )
        if self._engine.whole and np.any(x != np.round(x)):
            raise ValueError("Expected whole numbers, because the model takes integers; received others.")
        return x

    def _ids(self, arguments, target):
        """Ids ``(b, k)``."""
        if target is None:
            return self._predicted(arguments)[:, None]
        ids, count = checks.numbers(target, "targets"), len(arguments[0])
        shapes_fit = ids.ndim == 0 or (ids.ndim in (1, 2) and len(ids) == count and 0 not in ids.shape[1:])
        if not shapes_fit or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"target must be a class id, or integer ids of shape ({count},) or ({count}, k); received shape "
                f"{ids.shape} of {ids.dtype}."
            )
        ids = checks.class_ids(ids.ravel(), ids.size, self._engine.classes, "Targets").reshape(ids.shape)
        return ids if ids.ndim == 2 else np.broadcast_to(ids, (count,))[:, None]

    def _finished(self, maps):
        images = self._engine.to_input and maps.ndim == 5
        return self._over_channels(maps) if images and not self.channels else maps

    def _over_channels(self, maps):
        return ops.sum(maps, axis=-1)


class _Shaped:
    """A callable that tells the shape of its input."""

    def __init__(self, function, input_shape):
        self._function, self.input_shape = function, input_shape

    def __call__(self, x):
        return self._function(x)


def register_rule(op_type, function):
    """Register how relevance passes a type of TensorFlow op; from then on that is the op's default.

    Args:
        op_type: str, such as ``"Cumsum"``; not a linear layer.
        function: callable ``(op, relevances) → list``. ``op`` has ``name``, ``type``, ``inputs`` and ``outputs``
            (tensors), ``active`` (positions of the inputs that relevance may go to) and ``pull_back(gradients)`` (the
            gradients with respect to its inputs); ``relevances`` holds a tensor or None per output. Returned is a
            tensor or None per input. Its ``__name__`` is the name of the rule.

    Raises:
        ValueError: on a backend other than TensorFlow, for a function that is not callable, or a linear layer's type.

    Example::

        explain.register_rule("Cumsum", lambda op, relevances: op.pull_back(relevances))
    """
    _relevance().register_rule(op_type, function)


def _batched(spec):
    """Whether an input has a batch axis."""
    return spec.shape.rank != 0 and spec.shape[0] is None


def _relevance():
    """The part that needs TensorFlow."""
    check_tensorflow("Relevance propagation")
    from keras_capsvit.explain import relevance

    return relevance
