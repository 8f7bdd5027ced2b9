"""APGD: against a naive copy in NumPy, against torchattacks, where the best is known, and its properties."""

import dataclasses

import numpy as np
import pytest
from apgd_of_peers import network, visited
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_capsvit import attacks, autodiff, caches, checks
from keras_capsvit.attacks import objectives
from keras_capsvit.attacks.losses import LOSSES
from keras_capsvit.attacks.norms import NORMS

SHAPE, CLASSES = (5, 6, 2), 6
WEIGHTS = network(np.random.default_rng(3), 60, CLASSES)
X = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype("float32")
EPSILON = {"linf": 0.01, "l2": 0.1, "l1": 2.0}


def smooth(x):
    hidden, last = (ops.cast(each, x.dtype) for each in WEIGHTS)
    return ops.tanh(ops.reshape(x, (-1, 60)) @ hidden) @ last


def scores_of(x):
    return ops.convert_to_numpy(smooth(ops.convert_to_tensor(x)))


Y = scores_of(X).argmax(axis=1)


def sizes(change, norm):
    change = change.reshape(len(change), -1).astype("float64")
    return {"linf": np.abs(change).max(1), "l2": np.linalg.norm(change, axis=1), "l1": np.abs(change).sum(1)}[norm]


def run_eagerly(monkeypatch):
    def eagerly(function, variables):
        return lambda *args: function(*map(ops.convert_to_tensor, args))

    monkeypatch.setattr(autodiff, "compile", eagerly)
    monkeypatch.setattr(objectives, "_COMPILED", caches.Cache(64))


def ours(monkeypatch, attack, x, y, start):
    """Images that the attack looks at, from a start that is given, in double precision."""
    seen = []

    def recording(x):
        seen.append(ops.convert_to_numpy(x))
        return smooth(x)

    run_eagerly(monkeypatch)
    x, start = x.astype("float64"), start.astype("float64")
    attack._attempt(attacks.Objective(recording, None), x, y, y, start, False, len(x))
    return np.stack(seen)


def slopes(x, y, loss):
    """Losses and their gradients, by hand."""
    (hidden, last), rows = WEIGHTS, np.arange(len(x))
    inner = np.tanh(x.reshape(len(x), -1) @ hidden)
    z, own = inner @ last, np.eye(CLASSES)[y]
    if loss == "ce":
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses, dz = -np.log(p[rows, y]), p - own
    else:
        order = np.argsort(-z, axis=1)
        best = np.where(order[:, 0] == y, order[:, 1], order[:, 0])
        top, third = np.eye(CLASSES)[order[:, 0]], np.eye(CLASSES)[order[:, 2]]
        up, width = z[rows, best] - z[rows, y], z[rows, order[:, 0]] - z[rows, order[:, 2]]
        losses = up / width
        dz = (np.eye(CLASSES)[best] - own) / width[:, None] - (up / width**2)[:, None] * (top - third)
    return losses, ((dz @ last.T * (1 - inner**2)) @ hidden.T).reshape(x.shape)


def naive(x, y, start, norm, loss, epsilon, steps, rho=0.75):
    """Images that APGD looks at, image by image, as the paper has it."""

    def back(images):
        change = images - x
        if norm == "linf":
            return np.clip(x + np.clip(change, -epsilon, epsilon), 0, 1)
        return np.clip(x + change * min(1, epsilon / max(np.linalg.norm(change), 1e-12)), 0, 1)

    k, rises, size, old = max(int(0.22 * steps), 1), 0, 2 * epsilon, start
    check, halved, then, before = k, True, None, 0.0
    (best_loss,), slope = slopes(start, y, loss)
    seen, now, best, best_slope = [start], start, start, slope
    for i in range(steps):
        moved = back(now + size * (np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)))
        a = 0.75 if i else 1.0
        now, old = back(now + a * (moved - now) + (1 - a) * (now - old)), now
        seen.append(now)
        (value,), slope = slopes(now, y, loss)
        rises, before = rises + (value > before), value
        if value > best_loss:
            best, best_slope, best_loss = now, slope, value
        if i + 1 == check:
            halved = bool(rises <= rho * k or (not halved and then >= best_loss))
            then, rises, k = best_loss, 0, max(k - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
            check += k
            if halved:
                size, now, slope = size / 2, best, best_slope
    return np.stack(seen)


def starts(norm, seed=4):
    random = np.random.default_rng(seed)
    moves = [NORMS[norm].surface(random, SHAPE, EPSILON[norm]) for _ in X]
    return np.clip(X + np.stack(moves), 0, 1).astype("float32")


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_a_naive_copy(norm, loss, monkeypatch):
    attack = attacks.APGD(EPSILON[norm], norm=norm, loss=loss, steps=20)
    start = starts(norm)
    found = ours(monkeypatch, attack, X, Y, start)
    x, begun = X.astype("float64"), start.astype("float64")
    one_by_one = [
        naive(x[i : i + 1], Y[i : i + 1], begun[i : i + 1], norm, loss, EPSILON[norm], 20) for i in range(len(X))
    ]
    np.testing.assert_allclose(found, np.concatenate(one_by_one, axis=1), atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_torchattacks_step_for_step(norm, loss, monkeypatch):
    pytest.importorskip("torchattacks")
    name = {"linf": "Linf", "l2": "L2"}[norm]
    expected = visited(X, Y, WEIGHTS, 0, norm=name, loss=loss, eps=EPSILON[norm], steps=20)
    attack = attacks.APGD(EPSILON[norm], norm=norm, loss=loss, steps=20)
    np.testing.assert_allclose(ours(monkeypatch, attack, X, Y, expected[0]), expected, atol=1e-5)
