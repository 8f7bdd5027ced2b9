"""The thesis's equations in plain loops over NumPy arrays, one vector at a time."""

import numpy as np


def squash(s):
    """Eq. 3.5, one vector."""
    squared = float(s @ s)
    return np.zeros_like(s) if squared == 0 else squared / (1 + squared) * s / np.sqrt(squared)


def adjacency(height, width, sigma):
    """Eq. 3.1, row-major nodes."""
    points = [(row, column) for row in range(height) for column in range(width)]
    return np.array([[np.exp(-((r - u) ** 2 + (c - v) ** 2) / (2 * sigma**2)) for u, v in points] for r, c in points])


def graph_pooling(capsules, a, kernel, bias):
    """Eq. 3.2 to 3.4 for one image: capsules (h, w, l, e) to class capsules (j, e) and attention (h, w, l, j)."""
    height, width, heads, dim = capsules.shape
    classes = kernel.shape[1]
    attention = np.zeros((height, width, heads, classes))
    total = np.zeros((classes, dim))
    for head in range(heads):
        x = capsules[:, :, head].reshape(height * width, dim)
        scores = a @ (x @ kernel + bias)
        for j in range(classes):
            e = np.exp(scores[:, j] - scores[:, j].max())
            attention[:, :, head, j] = (e / e.sum()).reshape(height, width)
            total[j] += (e / e.sum()) @ x
    return np.array([squash(s) for s in total / heads]), attention


def margin_loss(labels, lengths, m_plus=0.9, m_minus=0.1, lam=0.5):
    """Eq. 3.6, mean over examples of the sum over classes; labels are class ids."""
    losses = []
    for label, row in zip(labels, lengths, strict=True):
        loss = 0.0
        for k, length in enumerate(row):
            loss += max(0, m_plus - length) ** 2 if k == label else lam * max(0, length - m_minus) ** 2
        losses.append(loss)
    return np.mean(losses)


def log_lengths(labels, lengths):
    """Mean over examples of -log of the share that the true class has of all lengths; labels are class ids."""
    return np.mean([-np.log(row[label] / sum(row)) for label, row in zip(labels, lengths, strict=True)])


def softmax(x):
    """One vector."""
    e = np.exp(x - x.max())
    return e / e.sum()


def dynamic_routing(votes, iterations, finish=squash):
    """Procedure 1 of Sabour et al. for one image: votes (i, j, e) to class capsules (j, e) and coupling (i, j)."""
    inputs, outputs, _ = votes.shape
    logits = np.zeros((inputs, outputs))
    for iteration in range(iterations):
        coupling = np.array([softmax(row) for row in logits])
        capsules = weighted_sums(coupling, votes, finish)
        if iteration < iterations - 1:
            for i in range(inputs):
                for j in range(outputs):
                    logits[i, j] += votes[i, j] @ capsules[j]
    return capsules, coupling


def weighted_sums(coupling, votes, finish=squash):
    """Eq. 4.1, 4.2 for one image: coupling (i, j), votes (i, j, e) to class capsules (j, e)."""
    inputs, outputs, _ = votes.shape
    return np.array([finish(sum(coupling[i, j] * votes[i, j] for i in range(inputs))) for j in range(outputs)])


def em_routing(votes, activations, beta_u, beta_a, iterations, inverse_temperature, eps):
    """Procedure 1 of Hinton et al. 2018 for one image, masses relative to N / M: poses (j, e), activations (j,)."""
    inputs, outputs, dim = votes.shape
    r = np.full((inputs, outputs), 1 / outputs)
    for step in range(1, iterations + 1):
        mu, sigma2, a = np.zeros((outputs, dim)), np.zeros((outputs, dim)), np.zeros(outputs)
        temperature = inverse_temperature * (1 - 0.95**step)
        used = r.copy()
        for j in range(outputs):
            weights = r[:, j] * activations
            for h in range(dim):
                mu[j, h] = weights @ votes[:, j, h] / (weights.sum() + eps)
                sigma2[j, h] = weights @ (votes[:, j, h] - mu[j, h]) ** 2 / (weights.sum() + eps) + eps
            cost = sum(beta_u[j] + np.log(np.sqrt(sigma2[j, h])) for h in range(dim)) * weights.sum() * outputs / inputs
            a[j] = 1 / (1 + np.exp(-temperature * (beta_a[j] - cost)))
        for i in range(inputs):
            log_p = [
                -np.sum((votes[i, j] - mu[j]) ** 2 / (2 * sigma2[j]) + np.log(sigma2[j]) / 2) for j in range(outputs)
            ]
            r[i] = softmax(np.log(a) + np.array(log_p))
    return mu, a, used


def self_routing(votes, capsules, activations, kernel, bias):
    """Hahn et al. 2019 for one image: weighted poses (j, e), activations (j,), coupling (i, j)."""
    inputs, outputs, _ = votes.shape
    coupling = np.array([softmax(capsules[i] @ kernel[i] + bias[i, 0]) for i in range(inputs)])
    weights = coupling * activations[:, None]
    poses = np.array([weights[:, j] @ votes[:, j] / weights[:, j].sum() for j in range(outputs)])
    return poses, weights.sum(0) / activations.sum(), coupling


def top_k_pooling(capsules, kernel, bias, kept):
    """Gao & Ji 2019 for one image: capsules (h, w, l, e) to class capsules (j, e)."""
    height, width, heads, dim = capsules.shape
    total = np.zeros((kernel.shape[1], dim))
    for head in range(heads):
        x = capsules[:, :, head].reshape(height * width, dim)
        scores = x @ kernel + bias
        for j in range(kernel.shape[1]):
            for n in np.argsort(scores[:, j])[-kept:]:
                total[j] += x[n] / (1 + np.exp(-scores[n, j])) / kept
    return np.array([squash(s) for s in total / heads])


def square_change(change, window, emptied, turned, signs, epsilon):
    """New perturbation of the Square attack in L2 (Andriushchenko et al. 2020, Alg. 3), channel by channel."""
    side = change[window].shape[0]
    pattern = square_heaps(side).T if turned else square_heaps(side)
    result, either = change.copy(), np.zeros(change.shape[:2], bool)
    either[window] = either[emptied] = True
    result[emptied] = 0
    unused = max(epsilon**2 - np.sum(change**2), 0)
    for channel, sign in enumerate(signs):
        own = change[..., channel]
        new = sign * pattern + own[window] / (1e-12 + np.linalg.norm(own[window]))
        budget = np.sqrt(unused / len(signs) + np.sum(own[either] ** 2))
        result[..., channel][window] = budget * new / np.linalg.norm(new)
    return epsilon * result / np.linalg.norm(result)


def square_heaps(side):
    """Eq. 2: sums of ever larger rectangles, of which the outer ones weigh less."""
    halves = []
    for height in (side // 2, side - side // 2):
        half = np.zeros((height, side))
        for k in range(max(height // 2, side // 2) + 1):
            rows, columns = (
                slice(max(height // 2 - k, 0), height // 2 + k + 1),
                slice(max(side // 2 - k, 0), side // 2 + k + 1),
            )
            half[rows, columns] += 1 / (k + 1) ** 2
        halves.append(half / np.linalg.norm(half))
    return np.concatenate([halves[0], -halves[1]]) / np.sqrt(2)
