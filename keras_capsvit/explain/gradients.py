"""Explanations from input gradients of the class score (the logit, or the length of the class capsule)."""

import numpy as np
from keras import ops

from keras_capsvit import autodiff, checks, taps
from keras_capsvit.explain.base import (
    Explainer,
    ModelExplainer,
    mean_on_tensors,
    mean_over_samples,
    score_of,
)


class GradientExplainer(ModelExplainer):
    """Base: explainers from signed attributions ``(b, H, W, C)``, summed over channels.

    Args:
        model: see the subclasses.
        channels: bool, return the signed attributions ``(b, H, W, C)`` themselves.
        output: see ModelExplainer.
        batch_size: int >= 1, images, samples and steps together, per compiled pass: what bounds the memory.
    """

    def __init__(self, model, *, channels=False, output=None, batch_size=32):
        super().__init__(model, batch_size, output)
        checks.booleans(channels=channels)
        self.channels = channels
        self._gradient = taps.compiled(model, "gradient of a class", _gradient, output)

    def gradients(self, x, ids, points=None, samples=1):
        """Gradients of the scores of classes, averaged over samples of each image.

        Args:
            x: images ``(b, H, W, C)``.
            ids: class ids ``(b,)``.
            points: callable ``(images (k, H, W, C), sample (k,)) → (k, H, W, C)``, where the gradients are taken; None
                for the images.
            samples: int >= 1.

        Returns:
            float32 array ``(b, H, W, C)``.
        """

        def gradient(image, sample):
            at = x[image] if points is None else points(x[image], sample)
            return self._gradient(at, ids[image])[1]

        gradients = mean_over_samples(gradient, len(x), samples, self.batch_size)
        if not gradients.any():
            self._check_gradient(x)
        return gradients

    def _check_gradient(self, x):
        """Refuse a model of NaN, at which ReLUs stop gradients, and one whose scores depend on pixels without any."""
        self.finite_scores(x)
        noise = self.scores.noise(x.shape[1:]).astype("float32")
        scores = ops.convert_to_numpy(self._scores(noise))
        slopes = ops.convert_to_numpy(self._gradient(noise, scores.argmax(-1).astype("int32"))[1])
        if not slopes.any() and np.ptp(scores, axis=0).any():
            raise ValueError(
                f"No gradient reaches the pixels of {self.scores.name}, although its scores depend on them. Expected a "
                "model without rounding and casts to integers in front; pass the part of it that follows these."
            )

    def finished(self, attributions):
        return attributions if self.channels else ops.sum(attributions, axis=-1)

    def on_tensors(self, x, ids):
        return self.finished(self.attributions_on_tensors(x, ids))


def _gradient(scores):
    return autodiff.gradient(lambda x, ids: score_of(scores(x), ids))


class Saliency(GradientExplainer):
    """The absolute gradient of the class score, its maximum over channels (Simonyan et al. 2014; "Grad" in 3.4.2).

    Args:
        model: see ModelExplainer.
        channels: bool, return the signed gradients ``(b, H, W, C)`` instead of maps.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see Explainer.

    Example::

        maps = Saliency(model)(x)
    """

    def attributions(self, x, ids):
        return self.gradients(x, ids)

    def finished(self, attributions):
        return attributions if self.channels else ops.max(ops.abs(attributions), axis=-1)

    def attributions_on_tensors(self, x, ids):
        return self._gradient(x, ids)[1]


class InputXGradient(GradientExplainer):
    """The image times the gradient of the class score, summed over channels (Shrikumar et al. 2017).

    Args:
        model: see ModelExplainer.
        channels: bool, return the products ``(b, H, W, C)`` instead of maps.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see Explainer.
    """

    def attributions(self, x, ids):
        return x * self.gradients(x, ids)

    def attributions_on_tensors(self, x, ids):
        return x * self._gradient(x, ids)[1]


class IntegratedGradients(GradientExplainer):
    """Integrated gradients ("IG" of thesis 3.4.2; Sundararajan et al. 2017, Eq. 1), summed over channels.

    ``(x - x0) * mean_k grad(x0 + a_k (x - x0))`` with the midpoints ``a_k = (k + 1/2) / steps``: a map sums to about
    the score of the image less that of the baseline ``x0``.

    Args:
        model: see ModelExplainer.
        steps: int >= 1.
        baseline: number or array that broadcasts to an image ``(H, W, C)``, such as a mean image.
        channels: bool, return the attributions ``(b, H, W, C)`` instead of maps.
        output: see ModelExplainer.
        batch_size: int >= 1, images times steps per pass.

    Call: see Explainer.

    Raises:
        ValueError: for ``steps`` below 1, and a baseline that is not finite or does not fit the images.
    """

    def __init__(self, model, *, steps=50, baseline=0.0, channels=False, output=None, batch_size=32):
        super().__init__(model, channels=channels, output=output, batch_size=batch_size)
        self.steps = checks.positive_int("steps", steps)
        self.baseline = checks.finite_array(baseline, "baseline", "that broadcasts to an image", np.ndim(baseline))

    def attributions(self, x, ids):
        start = self._start(x)
        ids = self.resolved(x, ids)  # the class of the image, not of the points on the way to it

        def points(images, step):
            share = ((step + 0.5) / self.steps).astype("float32")[:, None, None, None]
            return start + share * (images - start)

        return (x - start) * self.gradients(x, ids, points, self.steps)

    def attributions_on_tensors(self, x, ids):
        change = x - self._start(x)

        def gradient(step):
            share = (ops.cast(step, "float32") + 0.5) / self.steps
            return self._gradient(x - (1 - share) * change, ids)[1]

        return change * mean_on_tensors(gradient, self.steps)

    def _start(self, x):
        """The baseline, which has to fit images, an array or a tensor."""
        shape, start = tuple(x.shape[1:]), self.baseline
        if start.ndim > 3 or any(own not in (1, n) for own, n in zip(start.shape[::-1], shape[::-1], strict=False)):
            raise ValueError(f"Expected a baseline that broadcasts to images of shape {shape}; received {start.shape}.")
        return start


class SmoothGrad(Explainer):
    """The mean of a base explainer's attributions over noisy copies of the image (Smilkov et al. 2017; thesis 3.4.2).

    Of gradient explainers the signed attributions are averaged, of others the maps. The noise of sample n is the same
    for all images up to their ranges, so that no map depends on the batch that its image came in.

    Args:
        base: explainer, such as ``Saliency(model)`` (Grad-SG) or ``IntegratedGradients(model)`` (IG-SG); or callable
            ``(x, target) → maps (b, ...)``. Memory is bounded by its ``batch_size``, 32 if it has none.
        samples: int >= 1.
        noise: float >= 0, standard deviation of the noise.
        relative: bool, whether that is a share of the range of the pixels of each image, as in the paper; else it is
            in units of the pixels.
        signed: bool, average the signed attributions of gradient explainers, as in the paper; else their maps, as
            Captum does with the absolute gradient (its defaults are ``noise=1.0``, ``relative=False``).
        seed: int, of the noise.

    Call: see Explainer.

    Raises:
        ValueError: for settings out of range; and without a target where ``base`` does not tell the predicted classes.

    Example::

        maps = SmoothGrad(IntegratedGradients(model), 10)(x)
    """

    def __init__(self, base, samples=10, *, noise=0.15, relative=True, signed=True, seed=0):
        self.base = taps.check_explainer("base", base, "(x, target) → maps (b, ...)")
        self.samples = checks.positive_int("samples", samples)
        self.noise, self.seed = checks.number("noise", noise, 0), checks.integer("seed", seed)
        checks.booleans(relative=relative, signed=signed)
        self.relative, self.signed = relative, signed
        self.channels = getattr(base, "channels", False)

    def check(self, x, ids):
        if isinstance(self.base, Explainer):  # others check themselves
            self.base.check(x, ids)

    def predicted(self, x):
        """Predicted classes ``(b,)`` of images ``(b, H, W, C)``."""
        if not hasattr(self.base, "predicted"):
            raise ValueError(f"Pass target=: {type(self.base).__name__} does not tell the predicted classes.")
        return self.base.predicted(x)

    def attributions(self, x, ids):
        ids = self.resolved(x, ids)  # the class of the image, not of its noisy copies
        width = self._width(x.max(axis=(1, 2, 3), keepdims=True), x.min(axis=(1, 2, 3), keepdims=True))
        noise, of_base = self._noise(x.shape[1:]), getattr(self.base, "attributions", self.base)

        def noisy(image, sample):
            return self._averaged(of_base(x[image] + width[image] * noise[sample], ids[image]))

        return mean_over_samples(noisy, len(x), self.samples, getattr(self.base, "batch_size", 32))

    def on_tensors(self, x, ids):
        return self.finished(self.attributions_on_tensors(x, ids))

    def attributions_on_tensors(self, x, ids):
        if not isinstance(self.base, Explainer) or None in x.shape[1:]:
            raise NotImplementedError("SmoothGrad needs a base of keras_capsvit.explain, and images of a fixed size")
        highest, lowest = (extreme(x, axis=(1, 2, 3), keepdims=True) for extreme in (ops.max, ops.min))
        width = self._width(highest, lowest)
        noise = ops.convert_to_tensor(self._noise(x.shape[1:]))

        def noisy(sample):
            noisy_images = x + width * ops.take(noise, sample, axis=0)
            return self._averaged(self.base.attributions_on_tensors(noisy_images, ids))

        return mean_on_tensors(noisy, self.samples)

    def _noise(self, shape):
        return np.random.default_rng(self.seed).standard_normal((self.samples, *shape), "float32")

    def _width(self, highest, lowest):
        """Standard deviations of the noise of images, of their highest and lowest pixels."""
        return self.noise * (highest - lowest if self.relative else highest * 0 + 1)

    def _averaged(self, attributions):
        """What is averaged, of attributions of noisy images."""
        return attributions if self.signed else self._map_of(attributions)

    def _map_of(self, attributions):
        return self.base.finished(attributions) if isinstance(self.base, Explainer) else attributions

    def finished(self, attributions):
        return self._map_of(attributions) if self.signed else attributions
