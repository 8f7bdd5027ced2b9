"""How relevance is redistributed: one small function per rule, registered for the kinds of ops it applies to."""

import dataclasses
import functools
import inspect

import numpy as np
import tensorflow as tf

from keras_capsvit.explain.relevance.linear import LINEAR

RULES: dict[str, dict] = {}
_EPSILON = 1e-6
_RECTIFIERS = ("Relu", "Relu6")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: str.
        function: for linear layers ``(layer, relevance, **settings) → relevance``; for other ops ``(op, relevances) →
            relevances``, of its outputs and of its inputs, None where there is none.
        one_way: bool, whether all relevance goes to the main input.
        growth: callable ``(nonnegative, **settings)``, how many times the absolute relevance that arrives may leave,
            where contributions are nonnegative or not; None for what has no bound.
    """

    name: str
    function: object
    one_way: bool = False
    growth: object = lambda nonnegative, **settings: np.inf


def _rule(name, *kinds, one_way=False, growth=Rule.growth):
    def register(function):
        for kind in kinds:
            RULES.setdefault(kind, {})[name] = Rule(name, function, one_way, growth)
        return function

    return register


def _at_most_1(nonnegative, **settings):
    return 1.0


def register_rule(op_type, function):
    """See ``explain.register_rule``."""
    if not callable(function):
        raise ValueError(
            f"Expected a callable (op, relevances) → list as the rule of {op_type}; received {function!r}."
        )
    if op_type in LINEAR:
        raise ValueError(f"{op_type} is a linear layer; choose among its rules {list(RULES['linear'])} with rules=.")
    name = getattr(function, "__name__", type(function).__name__)
    RULES[op_type] = {name: Rule(name, function), **RULES.get(op_type, {})}


def check_settings(rule, settings):
    """Refuse settings that a rule does not have."""
    known = [p.name for p in inspect.signature(rule.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in settings:
        if name not in known:
            raise ValueError(f"Rule {rule.name!r} has the settings {known}; received {name!r}.")


# Linear layers. A part is an activation with the weight it meets; z is what all parts sum up to.


def _share(layer, relevance, parts, z, bias=None, stabilizer=None):
    layer.note(relevance, z, bias, stabilizer)
    ratio = layer.per_input(tf.divide, relevance, z)
    shares = (layer.per_input(tf.multiply, layer.pull_back(ratio, weight), x) for x, weight in parts)
    return functools.reduce(tf.add, shares)  # sum() would add 0, a pass over all of it


def _total(layer, parts, bias=None):
    z = functools.reduce(tf.add, (layer.forward(x, weight) for x, weight in parts))
    return z if bias is None else z + bias


def _above(layer, z):
    # What is shared is at most z, so nothing overflows; relevance that arrives where z is 0 is lost.
    return tf.maximum(z, layer.tiny)


def _below(layer, z):
    return tf.minimum(z, -layer.tiny)


def _positive_parts(layer):
    parts = [(layer.x_positive, layer.positive)]
    return parts if layer.nonnegative else [*parts, (layer.x_negative, layer.negative)]


def _negative_parts(layer):
    parts = [(layer.x_positive, layer.negative)]
    return parts if layer.nonnegative else [*parts, (layer.x_negative, layer.positive)]


@_rule("z_plus", "linear", growth=_at_most_1)
def z_plus(layer, relevance, *, bias=False, fallback=None):
    """z+ (thesis Eq. 2.1; Montavon et al. 2017): positive contributions only; biases are bypassed unless ``bias``.

    Neurons without any positive contribution, which owe what they are to their biases, share by the rule ``fallback``,
    "flat" or "w_square"; with None their relevance is lost.
    """
    if fallback not in (None, *_FALLBACKS):
        raise ValueError(f"fallback must be one of {[*_FALLBACKS, None]}; received {fallback!r}.")
    parts = _positive_parts(layer)
    offset = tf.nn.relu(layer.bias) if bias and layer.bias is not None else None
    z = _above(layer, _total(layer, parts, offset))
    shared = _share(layer, relevance, parts, z, offset)
    if fallback is None:
        return shared

    def stranded():
        return layer.per_input(lambda r, z: tf.where(z <= layer.tiny, r, tf.zeros_like(r)), relevance, z)

    def with_fallback():
        layer.shared_otherwise(stranded())
        return shared + _FALLBACKS[fallback](layer, stranded())

    if layer.audited:  # whose sums must not be made inside of a condition
        return with_fallback()
    # Most layers have no such neurons, or no relevance there; a look at the smallest z is next to free.
    return tf.cond(
        tf.reduce_min(z) <= layer.tiny,
        lambda: tf.cond(tf.reduce_any(tf.not_equal(stranded(), 0)), with_fallback, lambda: shared),
        lambda: shared,
    )


@_rule("z_box", "linear", growth=_at_most_1)
def z_box(layer, relevance):
    """z^beta (thesis Eq. 2.1): for the input layer, whose activations lie in a known range; biases cancel."""
    low, high = layer.box
    # Activations on the border of the range may be rounded to the other side of it.
    parts = [(tf.nn.relu(layer.x - low), layer.positive), (-tf.nn.relu(high - layer.x), layer.negative)]
    return _share(layer, relevance, parts, _above(layer, _total(layer, parts)))


def _alpha_beta_growth(nonnegative, *, alpha=2.0, beta=1.0, **settings):
    return abs(alpha) + abs(beta)


@_rule("alpha_beta", "linear", growth=_alpha_beta_growth)
def alpha_beta(layer, relevance, *, alpha=2.0, beta=1.0, bias=True):
    """alpha-beta (Bach et al. 2015, Eq. 60): ``alpha`` of the positive minus ``beta`` of the negative contributions."""
    up, down = _positive_parts(layer), _negative_parts(layer)
    above = below = None
    if bias and layer.bias is not None:
        above, below = tf.nn.relu(layer.bias), -tf.nn.relu(-layer.bias)
    positive = _share(layer, alpha * relevance, up, _above(layer, _total(layer, up, above)), above)
    return positive + _share(layer, -beta * relevance, down, _below(layer, _total(layer, down, below)), below)


@_rule("epsilon", "linear")
def epsilon(layer, relevance, *, epsilon=_EPSILON, bias=True):
    """epsilon (Bach et al. 2015, Eq. 58): all contributions, over their sum moved away from 0 by ``epsilon``."""
    offset = layer.bias if bias else None
    y = layer.y if bias or layer.bias is None else layer.y - layer.bias
    z = _away(y, epsilon)
    return _share(layer, relevance, [(layer.x, layer.weight)], z, offset, z - y)


@_rule("gamma", "linear")
def gamma(layer, relevance, *, gamma=0.25, bias=True):
    """gamma (Montavon et al. 2019; for activations and outputs of any sign): positive contributions count more.

    Contributions of the sign of the output are multiplied by ``1 + gamma``.
    """
    parts = {
        +1: [(layer.x_positive, layer.weight + gamma * layer.positive)],
        -1: [(layer.x_positive, layer.weight + gamma * layer.negative)],
    }
    if not layer.nonnegative:
        parts[+1].append((layer.x_negative, layer.weight + gamma * layer.negative))
        parts[-1].append((layer.x_negative, layer.weight + gamma * layer.positive))
    above = layer.y >= 0
    shares = []
    for sign, of_sign in parts.items():
        offset = None
        if bias and layer.bias is not None:
            offset = layer.bias + gamma * sign * tf.nn.relu(sign * layer.bias)
        z = (_above if sign > 0 else _below)(layer, _total(layer, of_sign, offset))
        active = tf.cast(above if sign > 0 else ~above, relevance.dtype)
        shares.append(_share(layer, layer.per_input(tf.multiply, relevance, active), of_sign, z, offset))
    return shares[0] + shares[1]


@_rule("w_square", "linear", growth=_at_most_1)
def w_square(layer, relevance, *, bias=False):
    """w^2 (Montavon et al. 2017): by squared weights, whatever the activations."""
    parts = [(tf.ones_like(layer.x), tf.square(layer.weight))]
    offset = tf.square(layer.bias) if bias and layer.bias is not None else None
    return _share(layer, relevance, parts, _above(layer, _total(layer, parts, offset)), offset)


@_rule("flat", "linear", growth=_at_most_1)
def flat(layer, relevance):
    """flat (Lapuschkin et al. 2019): evenly over the receptive field."""
    parts = [(tf.ones_like(layer.x), tf.ones_like(layer.weight))]
    return _share(layer, relevance, parts, _above(layer, _total(layer, parts)))


_FALLBACKS = {"flat": flat, "w_square": w_square}


@_rule("gradient", "linear")
def linear_gradient(layer, relevance):
    """What arrives is a gradient and is passed on as one."""
    return layer.pull_back(relevance, layer.weight)


def _away(z, epsilon):
    return z + tf.where(z >= 0, tf.cast(epsilon, z.dtype), tf.cast(-epsilon, z.dtype))


# Other ops.


def gradient(op, relevances):
    """What arrives is a gradient and is passed on as one."""
    return op.pull_back(relevances)


GRADIENT = Rule("gradient", gradient)


@_rule("identity", "activation", "scale", "shift", "gate", "normalization", one_way=True, growth=_at_most_1)
def identity(op, relevances):
    """All relevance to the main input: activations, biases, gates and normalisations are bypassed."""
    return [_reduced(relevances[0], op.inputs[i]) if i == op.main else None for i in range(len(op.inputs))]


@_rule("gradient", "identity")
@_rule("identity", "identity", growth=_at_most_1)
def same(op, relevances):
    """Outputs are inputs. (Gradient functions that a model attached to such an op belong to another graph.)"""
    return [relevances[i] if i < len(relevances) else None for i in range(len(op.inputs))]


@_rule("guided", "activation", one_way=True)
def guided(op, relevances):
    """Guided backpropagation (Springenberg et al. 2015): positive gradients, where the activation is positive."""
    gradients = op.pull_back([tf.nn.relu(relevances[0])] if op.type in _RECTIFIERS else relevances)
    return [g if i == op.main else None for i, g in enumerate(gradients)]


@_rule("deconvnet", "activation", one_way=True)
def deconvnet(op, relevances):
    """DeconvNet (Zeiler & Fergus 2014): positive gradients, whatever the activation."""
    if op.type in _RECTIFIERS:
        return [tf.nn.relu(relevances[0])]
    return [g if i == op.main else None for i, g in enumerate(op.pull_back(relevances))]


@_rule("gradient", "broadcast")
@_rule("move", "broadcast", growth=_at_most_1)
def summed(op, relevances):
    """What was broadcast gets the sum. (The shape it was broadcast to has the batch of one relevance per input.)"""
    return [_reduced(relevances[0], op.inputs[0]), None]


_rule("move", "structure", growth=_at_most_1)(gradient)
_rule("winner", "maximum", growth=_at_most_1)(gradient)


def _proportional_growth(nonnegative, **settings):
    return 1.0 if nonnegative else np.inf


@_rule("proportional", "sum", "average", growth=_proportional_growth)
def proportional(op, relevances, *, epsilon=None):
    """By contribution to a sum or mean, which is moved away from 0 by ``epsilon``.

    None is a millionth of its mean size along the last axis, and nothing for contributions that are never negative.
    """
    y = op.outputs[0]
    if epsilon is None and op.nonnegative:
        z = tf.maximum(y, op.tiny)
    elif epsilon is None:
        typical = tf.reduce_mean(tf.abs(y), axis=-1, keepdims=True) if y.shape.rank else tf.abs(y)
        z = _away(y, tf.maximum(_EPSILON * typical, op.tiny))
    else:
        z = _away(y, epsilon)
    op.note(relevances[0], z, stabilizer=z - y)
    return _times_inputs(op, op.pull_back([relevances[0] / z]), range(len(op.inputs)))


_rule("even", "average", growth=_at_most_1)(gradient)


@_rule("constant", "product", one_way=True)
def constant(op, relevances, *, epsilon=_EPSILON):
    """A softmax is a constant: all relevance to what it weighs (CP-LRP; Ali et al. 2022). Otherwise as ``uniform``."""
    return _factors(op, relevances, 1.0 if op.main is not None else 0.5, epsilon)


@_rule("uniform", "product")
def uniform(op, relevances, *, epsilon=_EPSILON):
    """Half of the relevance to each of two factors (AttnLRP; Achtibat et al. 2024, Prop. 3.3)."""
    return _factors(op, relevances, 1.0 / len(op.active), epsilon)


def _factors(op, relevances, share, epsilon):
    y = op.outputs[0]
    z = _away(y, epsilon)
    op.note(relevances[0], z, stabilizer=z - y)
    return _times_inputs(op, op.pull_back([share * relevances[0] / z]), op.active)


@_rule("taylor", "softmax")
def taylor(op, relevances):
    """Deep Taylor decomposition of the softmax (Achtibat et al. 2024, Prop. 3.1)."""
    total = tf.reduce_sum(relevances[0], axis=-1, keepdims=True)
    return [op.inputs[0] * (relevances[0] - op.outputs[0] * total)]


def _times_inputs(op, gradients, positions):
    return [op.inputs[i] * g if i in positions and g is not None else None for i, g in enumerate(gradients)]


def _reduced(relevance, like):
    """Sum relevance over the axes that ``like`` was broadcast over."""
    if relevance.shape.is_fully_defined() and relevance.shape == like.shape:
        return relevance
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(like), s1=tf.shape(relevance))
    return tf.reshape(tf.reduce_sum(relevance, axes), tf.shape(like))
