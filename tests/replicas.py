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
