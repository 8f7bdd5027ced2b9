"""Routing: from the votes of input capsules to class capsules, and the coupling between them (thesis chapters 1, 4, 5).

Every layer takes votes ``(b, i, j, e)`` and returns class capsules ``(b, j, e)``; with ``return_coupling`` also the
coupling ``(b, i, j)``, which sums to 1 over the output capsules ``j``.
"""

from typing import ClassVar

import keras
from keras import ops

from keras_capsvit import checks
from keras_capsvit.layers.base import OfFloats
from keras_capsvit.layers.capsules import CapsuleInitializer
from keras_capsvit.ops import safe_norm, squash


class Routing(OfFloats, keras.layers.Layer):
    """Base of the routing layers. Subclasses define ``route``, with axes ordered for batched matrix products:
    ``(votes (b, j, i, e), ...) → (class capsules (b, j, e), coupling (b, j, i))``.
    """

    axes: ClassVar = {"votes": "(b, i, j, e)"}

    def build(self, votes_shape, *_):
        if len(votes_shape) != 4 or None in votes_shape[1:]:
            raise ValueError(
                f"{type(self).__name__} needs votes of shape (batch, inputs, capsules, dim) with known sizes; received "
                f"shape {tuple(votes_shape)}. CapsuleTransform(dim, num_capsules=...) makes such votes."
            )

    def call(self, votes, return_coupling=False):
        return self.run(votes, return_coupling=return_coupling)

    def run(self, votes, *per_input, return_coupling):
        """``route`` between the public order of axes."""
        capsules, coupling = self.route(ops.transpose(votes, (0, 2, 1, 3)), *per_input)
        capsules = ops.cast(capsules, votes.dtype)
        if return_coupling:
            return capsules, ops.cast(ops.transpose(coupling, (0, 2, 1)), votes.dtype)
        return capsules

    def compute_output_spec(self, votes, *_, return_coupling=False):
        batch, inputs, outputs, dim = votes.shape
        capsules = keras.KerasTensor((batch, outputs, dim), dtype=self.compute_dtype)
        if return_coupling:
            return capsules, keras.KerasTensor((batch, inputs, outputs), dtype=self.compute_dtype)
        return capsules


def _weighted_sum(weights, votes):
    """``sum_i w_ij u_hat_j|i``: ``(b, j, i), (b, j, i, e) → (b, j, e)``."""
    return ops.squeeze(ops.matmul(weights[:, :, None], votes), axis=2)


def _agreement(votes, capsules):
    """``u_hat_j|i · v_j``: ``(b, j, i, e), (b, j, e) → (b, j, i)``."""
    return ops.squeeze(ops.matmul(votes, capsules[..., None]), axis=3)


class _Linear(Routing):
    """Routing whose class capsules are squashed weighted sums of votes (thesis Eq. 4.1, 4.2).

    Args:
        squash: bool; without, class capsules are the sums themselves, of unbounded length (ablation of Table 5.2).
    """

    def __init__(self, *, squash=True, **kwargs):
        super().__init__(**kwargs)
        checks.booleans(squash=squash)
        self.squash = squash

    def finish(self, total):
        return squash(total) if self.squash else total


@keras.saving.register_keras_serializable(package="keras_capsvit")
class UniformRouting(_Linear):
    """No routing (No-R): every vote counts alike, ``c_ij = 1 / M`` (thesis 4.3.2).

    Args:
        squash: bool; without, class capsules are the sums themselves, of unbounded length.
    """

    def call(self, votes, return_coupling=False):
        outputs = votes.shape[2]
        capsules = self.finish(ops.sum(votes, axis=1) / outputs)
        return (capsules, ops.full_like(votes[..., 0], 1.0 / outputs)) if return_coupling else capsules


@keras.saving.register_keras_serializable(package="keras_capsvit")
class DynamicRouting(_Linear):
    """Routing by agreement (Sabour et al. 2017, Procedure 1; thesis Eq. 4.1 to 4.4).

    Coupling starts uniform; each iteration adds the agreement ``u_hat_j|i · v_j`` to its logits.

    Args:
        num_iterations: int from 1 to 1,000, how often ``v`` is computed; 1 is uniform routing.
        rolled: bool, coupling is a constant in the backward pass (Rolled-R, thesis Eq. 4.6).
        squash: bool; without, class capsules are the sums themselves, of unbounded length.
    """

    def __init__(self, num_iterations=3, *, rolled=False, **kwargs):
        super().__init__(**kwargs)
        self.num_iterations = _iterations(num_iterations)
        checks.booleans(rolled=rolled)
        self.rolled = rolled

    def route(self, votes):
        seen = ops.stop_gradient(votes) if self.rolled else votes
        logits = ops.zeros_like(seen[..., 0], dtype="float32")
        coupling = ops.full_like(seen[..., 0], 1.0 / votes.shape[1])
        for _ in range(self.num_iterations - 1):
            capsules = self.finish(_weighted_sum(coupling, seen))
            logits = logits + ops.cast(_agreement(seen, capsules), "float32")
            coupling = ops.cast(ops.softmax(logits, axis=1), seen.dtype)
        return self.finish(_weighted_sum(coupling, votes)), coupling


@keras.saving.register_keras_serializable(package="keras_capsvit")
class TrainableRouting(_Linear):
    """One step of routing whose coupling logits ``b_ij`` are learned (Trainable-R; Chen & Crandall 2019).

    Args:
        squash: bool; without, class capsules are the sums themselves, of unbounded length.
    """

    def build(self, votes_shape):
        super().build(votes_shape)
        _, inputs, outputs, _ = votes_shape
        self.logits = self.add_weight(name="logits", shape=(outputs, inputs), initializer="zeros")

    def route(self, votes):
        coupling = ops.broadcast_to(ops.softmax(self.logits, axis=0), ops.shape(votes)[:3])
        return self.finish(_weighted_sum(coupling, votes)), coupling


@keras.saving.register_keras_serializable(package="keras_capsvit")
class EMRouting(Routing):
    """Expectation-maximisation routing of matrix capsules (Hinton et al. 2018, Procedure 1).

    A class capsule is a Gaussian over votes: its mean is the pose, its activation says how cheaply the votes are
    described by it. Returned are poses scaled to the length of their activation, so that lengths are scores here as
    everywhere. The sum of assignments enters the cost relative to its expectation ``N / M``, so that the temperature
    does not depend on the number of input capsules.

    Args:
        num_iterations: int from 1 to 1,000.
        inverse_temperature: float > 0, what ``lambda_t = inverse_temperature (1 - 0.95^t)`` approaches.
        eps: float > 0, added to variances and masses.

    Call arguments:
        votes: tensor ``(b, i, j, e)``, poses flattened.
        activations: tensor ``(b, i)`` in [0, 1].
        return_coupling: bool.
    """

    axes: ClassVar = {"votes": "(b, i, j, e)", "activations": "(b, i)"}

    def __init__(self, num_iterations=3, *, inverse_temperature=0.5, eps=1e-4, **kwargs):
        super().__init__(**kwargs)
        self.num_iterations = _iterations(num_iterations)
        self.inverse_temperature = checks.number("inverse_temperature", inverse_temperature, 0, without=(0,))
        self.eps = checks.number("eps", eps, 0, without=(0,))

    def build(self, votes_shape, activations_shape):
        super().build(votes_shape)
        _check_per_input(self, "activations", activations_shape, votes_shape[1:2])
        self.beta_u = self.add_weight(name="beta_u", shape=votes_shape[2:3], initializer="zeros")
        self.beta_a = self.add_weight(name="beta_a", shape=votes_shape[2:3], initializer="zeros")

    def call(self, votes, activations, return_coupling=False):
        return self.run(votes, activations, return_coupling=return_coupling)

    def route(self, votes, activations):
        votes, activations = ops.cast(votes, "float32"), ops.cast(activations, "float32")
        beta_u, beta_a = ops.cast(self.beta_u, "float32"), ops.cast(self.beta_a, "float32")
        _, outputs, inputs, dim = votes.shape
        coupling = ops.full_like(votes[..., 0], 1.0 / outputs)
        for step in range(1, self.num_iterations + 1):
            # M step: the sums run over input capsules, weighted by how active they are.
            weights = coupling * activations[:, None]
            mass = ops.sum(weights, axis=2)
            share = weights / (mass[..., None] + self.eps)
            mean = _weighted_sum(share, votes)
            deviation = ops.square(votes - mean[:, :, None])
            variance = _weighted_sum(share, deviation) + self.eps
            entropy = ops.sum(ops.log(variance), axis=2) / 2.0
            cost = mass * (outputs / inputs) * (dim * beta_u + entropy)
            temperature = self.inverse_temperature * (1.0 - 0.95**step)
            logits = temperature * (beta_a - cost)
            if step == self.num_iterations:
                break
            # E step, in logarithms.
            likelihood = -entropy[..., None] - _agreement(deviation, 0.5 / variance)
            coupling = ops.softmax(ops.log_sigmoid(logits)[..., None] + likelihood, axis=1)
        return ops.sigmoid(logits)[..., None] * _direction(mean, self.eps), coupling


@keras.saving.register_keras_serializable(package="keras_capsvit")
class SelfRouting(Routing):
    """Each capsule is routed by its own pose, without agreement (Hahn et al. 2019).

    ``c_i = softmax_j(u_i W_i + b_i)``; activations ``a_j = sum_i c_ij a_i / sum_i a_i``; poses are means of the votes
    with weights ``c_ij a_i``. Returned are poses scaled to the length of their activation.

    Args:
        num_capsules: int, output capsules ``j``.
        eps: float > 0, keeps divisions finite where nothing is active.

    Call arguments:
        votes: tensor ``(b, i, j, e)``; or ``(b, i, 1, e)``, the same vote for all output capsules.
        capsules: tensor ``(b, i, d)``, the poses that route.
        activations: tensor ``(b, i)`` in [0, 1].
        return_coupling: bool.
    """

    axes: ClassVar = {"votes": "(b, i, j, e)", "capsules": "(b, i, d)", "activations": "(b, i)"}

    def __init__(self, num_capsules, *, eps=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.num_capsules = checks.positive_int("num_capsules", num_capsules)
        self.eps = checks.number("eps", eps, 0, without=(0,))

    def build(self, votes_shape, capsules_shape, activations_shape):
        super().build(votes_shape)
        _, inputs, outputs, _ = votes_shape
        if outputs not in (1, self.num_capsules):
            raise ValueError(
                f"SelfRouting({self.num_capsules}) needs votes for 1 or {self.num_capsules} output capsules; received "
                f"votes of shape {tuple(votes_shape)}."
            )
        dim = capsules_shape[-1]
        _check_per_input(self, "capsules", capsules_shape, (inputs, dim))
        _check_per_input(self, "activations", activations_shape, (inputs,))
        shape = (inputs, dim, self.num_capsules)
        checks.memory("The kernel of self-routing", shape, "Take larger strides, fewer capsule types or classes.")
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=CapsuleInitializer())
        self.bias = self.add_weight(name="bias", shape=(inputs, 1, self.num_capsules), initializer="zeros")

    def call(self, votes, capsules, activations, return_coupling=False):
        return self.run(votes, capsules, activations, return_coupling=return_coupling)

    def route(self, votes, capsules, activations):
        logits = ops.matmul(ops.transpose(capsules, (1, 0, 2)), self.kernel) + self.bias
        coupling = ops.softmax(ops.cast(ops.transpose(logits, (1, 2, 0)), "float32"), axis=1)
        weights = coupling * ops.cast(activations, "float32")[:, None]
        mass = ops.sum(weights, axis=2)
        activation = mass / (ops.sum(mass, axis=1, keepdims=True) + self.eps)
        votes = ops.cast(votes, "float32")
        total = ops.matmul(weights, votes[:, 0]) if votes.shape[1] == 1 else _weighted_sum(weights, votes)
        return activation[..., None] * _direction(total / (mass[..., None] + self.eps), self.eps), coupling

    def compute_output_spec(self, votes, *per_input, return_coupling=False):
        batch, inputs, _, dim = votes.shape
        full = keras.KerasTensor((batch, inputs, self.num_capsules, dim), dtype=votes.dtype)
        return super().compute_output_spec(full, *per_input, return_coupling=return_coupling)


def _direction(x, eps):
    return x / ops.maximum(safe_norm(x, keepdims=True), eps)


def _iterations(num_iterations):
    return checks.positive_int("num_iterations", num_iterations, 1000)  # each is a part of the graph


def _check_per_input(layer, name, shape, expected):
    if tuple(shape[1:]) != tuple(expected):
        raise ValueError(
            f"{type(layer).__name__} needs {name} of shape {('batch', *expected)}, one for each input capsule of the "
            f"votes; received shape {tuple(shape)}."
        )
