"""What is audited: a model, the images by their numbers, and what the model says about them."""

import dataclasses
import functools

import numpy as np

from keras_capsvit import checks, taps
from keras_capsvit.evaluate.describe import described, digest
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress, place
from keras_capsvit.evaluate.table import versions
from keras_capsvit.report.effort import effort_of
from keras_capsvit.report.explainers import fitting

_PROBES = 8  # images whose scores tell a model from others
_PIXELS = 2**21  # of a batch


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says about images, by their numbers.

    Args:
        label: int array ``(n,)``, the true classes.
        predicted: int array ``(n,)``.
        second: int array ``(n,)``, classes of the second highest scores.
        confidence: array ``(n,)`` in [0, 1], of the predicted classes: their probability, or the length of their class
            capsule.
        margin: array ``(n,)``, confidence less that of the second class.
        rank: int array ``(n,)``, how many classes have higher scores than the true one.
    """

    label: np.ndarray
    predicted: np.ndarray
    second: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    rank: np.ndarray

    @property
    def correct(self):
        """Bools ``(n,)``."""
        return self.predicted == self.label


class Subject:
    """A model and the images that it is audited on.

    Args:
        model: see ``audit``; and so are all others but these.
        dataset: see ``audit``.
        class_names: list of str, or None.
        bounds: pair.
        epsilon: float, relative to the range of pixels.
        norm: str.
        effort: str or Effort.
        seed: int.
        work: path of a folder for what is measured image by image, or None.
        name: str, of the model.

    Raises:
        ValueError: for no images, labels and names that are not those of the model's classes, images that it does not
            take, and a data set that does not give the same images every time.
    """

    def __init__(self, model, dataset, *, class_names, bounds, epsilon, norm, effort, seed, work, name):
        self.model, self.dataset = model, dataset
        self.bounds = checks.bounds(bounds)
        self.epsilon = checks.number("epsilon", epsilon, 0, without=(0,))
        self.norm = checks.choice("norm", norm, ("linf", "l2", "l1"))
        self.effort = effort_of(effort)
        self.seed = checks.integer("seed", seed)
        self._work = work
        self.judge, self.scores = Judge(model), taps.scores(model)
        batch = next(iter(checks.Repeatable(dataset, _PROBES)), None)
        if batch is None or not len(batch[0]):
            raise ValueError("Expected at least one image to audit a model on; the data set is empty.")
        probes, labels = batch[0][:_PROBES], batch[1][:_PROBES]
        checks.images(probes, bounds=self.bounds)
        self.shape = probes.shape[1:]
        self.effort = self.effort.of_size(*self.shape[:2])
        self._probes = self.judge(probes)
        self.classes = self._probes.shape[1]
        checks.class_ids(labels, len(labels), self.classes)
        if hasattr(dataset, "read"):  # a folder, whose labels are known before anything is read
            checks.class_ids(dataset.labels, len(dataset.labels), self.classes)
        self.names = self._named(class_names)
        self.name = name or self.scores.name
        self.batch_size = int(np.clip(_PIXELS // (self.shape[0] * self.shape[1]), 8, 128))
        self._passes = checks.Repeatable(dataset, self.batch_size)
        if not hasattr(dataset, "read") and not checks.is_pair(dataset):
            for _ in range(2):  # what is shuffled anew is refused before anything is measured
                next(iter(self._passes))

    def _named(self, names):
        if names is None:
            return [f"class {k}" for k in range(self.classes)]
        if not isinstance(names, tuple | list | np.ndarray) or len(names) != self.classes:
            count = len(names) if isinstance(names, tuple | list | np.ndarray) else repr(names)[:60]
            raise ValueError(f"Expected a name for each of the {self.classes} classes of the model; received {count}.")
        return [str(name) for name in names]

    @property
    def radius(self):
        """The radius ``epsilon`` in units of the pixels that the model takes."""
        low, high = (np.asarray(end, "float64") for end in self.bounds)
        return float(self.epsilon * np.mean(high - low))

    def work(self, *names):
        """Folder in which a step keeps what it measures of each image; None if nothing is kept."""
        return place(self._work, *names)

    def described(self):
        """What the results depend on, as JSON takes it."""
        if hasattr(self.dataset, "described"):
            images = self.dataset.described()
        elif checks.is_pair(self.dataset):
            images = digest(*map(np.asarray, self.dataset)).hex()
        else:
            images = digest(*next(iter(self._passes))).hex()
        return {
            "model": described(self.model),
            "scores of the first images": digest(self._probes.astype("float16")).hex(),
            "images": images,
            "class_names": digest("\n".join(self.names)).hex(),
            "bounds": described(self.bounds),
            "epsilon": self.epsilon,
            "norm": self.norm,
            "effort": described(self.effort),
            "seed": self.seed,
            "versions": versions(),
        }

    @property
    def kind(self):
        """``"lengths"`` of class capsules, or ``"logits"``."""
        return self.scores.kind

    @functools.cached_property
    def predictions(self):
        """Predictions of the first ``effort.images`` images."""
        settings, most = {"model": self.model}, self.effort.images
        total = checks.batches_in(self._passes, self.batch_size)
        if total is not None and most is not None:  # at the size of its first batch
            size = len(next(iter(self._passes))[1])
            total = min(total, -(-most // size))
        with Progress(self.work("predictions"), "predictions", settings, judges=[self.judge], total=total) as progress:
            for x, y in self._batches(most):
                progress.batch(functools.partial(self._predict, x, y), x, y)
        return Predictions(**progress.results())

    def _batches(self, most):
        left = np.inf if most is None else most
        for x, y in self._passes:
            count = int(min(left, len(x)))
            yield x[:count], y[:count]
            left -= count
            if left <= 0:
                return

    def _predict(self, x, y):
        checks.images(x, bounds=self.bounds)
        scores, rows = self.judge(x), np.arange(len(x))
        labels = checks.class_ids(y, len(x), self.classes)
        order = np.argsort(-scores, axis=1, kind="stable")
        certain = self.confidences(x, scores)
        predicted, second = order[:, 0], order[:, 1]
        return {
            "label": labels,
            "predicted": predicted,
            "second": second,
            "confidence": certain[rows, predicted].clip(0, 1),
            "margin": certain[rows, predicted] - certain[rows, second],
            "rank": (scores > scores[rows, labels][:, None]).sum(axis=1),
        }

    def confidences(self, x, scores):
        """What is taken for the confidence in each class ``(b, M)``: capsule lengths, or probabilities."""
        return scores.astype("float64") if self.kind == "lengths" else self.judge.probabilities(x).astype("float64")

    def drawn(self, count):
        """Numbers of images drawn by the seed, ascending; more images contain fewer ones."""
        order = np.random.default_rng(self.seed).permutation(len(self.predictions.label))
        return np.sort(order[:count])

    def read(self, numbers):
        """Images ``(k, H, W, C)`` and class ids ``(k,)`` by their numbers in the data set."""
        numbers = np.asarray(numbers, "int64")
        if hasattr(self.dataset, "read"):
            x, y = self.dataset.read(numbers)
        elif checks.is_pair(self.dataset):
            x, y = (np.asarray(part)[numbers] for part in self.dataset)
        else:
            x, y = self._picked(numbers)
        x = checks.images(x)
        return x, checks.class_ids(y, len(x), self.classes)

    def _picked(self, numbers):
        parts, start = {}, 0
        for x, y in self._batches(int(numbers.max()) + 1):
            for number in numbers[(numbers >= start) & (numbers < start + len(x))]:
                parts[int(number)] = x[number - start], y[number - start]
            start += len(x)
        return tuple(np.stack([parts[int(number)][k] for number in numbers]) for k in range(2))

    @functools.cached_property
    def explainers(self):
        """Explainers that fit the model, by name, and for others the reason; see ``explainers.fitting``."""
        return fitting(self)

    def from_pictures(self, pictures):
        """Pictures in [0, 1] as images of the model; the opposite of ``pictures``."""
        low, high = checks.limits(self.bounds, self.shape[-1])
        return (low + pictures * (high - low)).astype("float32")

    def pictures(self, x):
        """Images of the model as pictures in [0, 1]."""
        low, high = checks.limits(self.bounds, x.shape[-1])
        pictures = np.clip((np.asarray(x) - low) / (high - low), 0, 1)
        return pictures if pictures.shape[-1] in (1, 3) else pictures[..., :1]
