"""Whether a model's confidence is the share of images that it is right on."""

import dataclasses

import numpy as np

from keras_capsvit import checks


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in bins of equal width.

    Args:
        edges: array ``(bins + 1,)`` from 0 to 1.
        images: int array ``(bins,)``, how many images lie in each bin.
        confidence: array ``(bins,)``, their mean confidence; NaN without images, and so is ``accuracy``.
        accuracy: array ``(bins,)``, share of them that is classified correctly.
        error: float, the expected calibration error: the mean over images of ``|accuracy - confidence|`` of their bins.
    """

    edges: np.ndarray
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(confidence, correct, *, bins=10):
    """Calibration of a model (Guo et al. 2017, Eq. 3).

    Args:
        confidence: array ``(n,)`` in [0, 1], of the predicted classes.
        correct: bools ``(n,)``.
        bins: int; a bin has its upper edge, and the first its lower one, too.

    Returns:
        Calibration.

    Raises:
        ValueError: for no images, confidences outside [0, 1], and another number of ``correct``.
    """
    confidence = checks.finite(checks.numbers(confidence, "confidence").astype("float64"), "confidence")
    if confidence.ndim != 1 or not confidence.size:
        raise ValueError(f"Expected confidence of shape (n,), not empty; received {confidence.shape}.")
    correct = np.asarray(correct, bool)
    checks.of_shape("Expected correct, a bool for each image", confidence.shape, correct)
    bins = checks.positive_int("bins", bins)
    if confidence.min() < 0 or confidence.max() > 1:
        raise ValueError(f"Confidence must lie in [0, 1]; received {confidence.min():g} to {confidence.max():g}.")
    edges = np.linspace(0, 1, bins + 1)
    places = np.maximum(np.searchsorted(edges, confidence) - 1, 0)
    images = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(places, confidence, bins) / images
        accuracies = np.bincount(places, correct, bins) / images
    error = float(np.nansum(images * np.abs(accuracies - means)) / images.sum())
    return Calibration(edges, images, means, accuracies, error)
