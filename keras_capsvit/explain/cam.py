"""Class activation maps: a feature map, its channels weighted by the gradient of a class, as a map of the image."""

import math

from keras import ops

from keras_capsvit import autodiff, taps
from keras_capsvit.explain.base import GridExplainer, score_of

_LARGEST_EXPONENT = 60.0  # of Grad-CAM++; its square still fits float32


class ActivationMap(GridExplainer):
    """Base: maps from the values ``A (b, h, w, c)`` of a feature map and the gradient ``g`` of the class score there.

    Args:
        model: see ModelExplainer.
        layer: str, name of a layer with an output ``(b, h, w, c)`` or tokens ``(b, t, c)`` (see ``taps.layers``); None
            for the last feature map larger than 1x1, and of vision transformers, for the normalised tokens that the
            last attention mixes, because the class may be read from one of them afterwards. Tokens in front of the
            patches are left out.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see Explainer. Maps are not normalised, and enlarged bilinearly.

    Raises:
        ValueError: for a model without such a feature map, another layer, and feature maps with channels in front or of
            1x1.
    """

    def __init__(self, model, *, layer=None, output=None, batch_size=32):
        self._layer = layer
        super().__init__(model, batch_size, output)

    def weighted(self, values, gradient, scores):
        """Maps ``(b, h, w)`` from values and gradient, both ``(b, h, w, c)``, and the scores ``(b,)`` of classes."""
        raise NotImplementedError

    def on_grid(self, x):
        place = self._place(x)

        def score(offset, x, ids):
            scores, (values,), _ = self.scores.recorded(x, [place.layer], offsets={place.layer: offset})
            return score_of(scores, ids), ops.cast(values, "float32")

        def maps(x, ids):
            zeros = ops.zeros((ops.shape(x)[0], *place.shape))
            (scores, values), gradient = autodiff.gradient(score, has_aux=True)(zeros, x, ids)
            return self.weighted(place.on_grid(values), place.on_grid(gradient), scores)

        return maps

    def _place(self, x):
        place = taps.feature_map(self.scores, x, self._layer, before_attention=True)
        if math.prod(place.grid) == 1:
            raise ValueError(
                f"Expected a feature map larger than 1x1, or all maps are constant; {place.layer!r} of "
                f"{self.scores.name} returns {(None, *place.shape)}. Pass layer=None for the last one that is."
            )
        return place


class GradCAM(ActivationMap):
    """Grad-CAM (Selvaraju et al. 2017, Eq. 1 and 2): ``max(0, sum_k a_k A_k)``, ``a_k`` the mean of ``g_k`` over h, w.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap.

    Example::

        maps = GradCAM(model)(x, target=3)
    """

    def weighted(self, values, gradient, scores):
        return ops.relu(ops.sum(values * ops.mean(gradient, axis=(1, 2), keepdims=True), axis=-1))


class GradCAMPlusPlus(ActivationMap):
    """Grad-CAM++ (Chattopadhay et al. 2018, Eq. 7 and 19): ``max(0, sum_k w_k A_k)``.

    ``w_k`` is the sum over h, w of ``e^S max(0, g_k) a_k``, with ``a_k = g_k^2 / (2 g_k^2 + g_k^3 sum A_k)``, scaled to
    sum to 1 over h, w as in the authors' code. The factor ``e^S`` of the score ``S`` scales a map as a whole; beyond
    e^60 and e^-60 it stays at these.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap.
    """

    def weighted(self, values, gradient, scores):
        denominator = 2 + gradient * ops.sum(values, axis=(1, 2), keepdims=True)
        shares = _quotient(ops.cast(gradient != 0, "float32"), denominator)
        shares = _quotient(shares, ops.sum(shares, axis=(1, 2), keepdims=True))
        factor = ops.exp(ops.clip(scores, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))[:, None, None]
        weights = ops.sum(ops.relu(gradient) * shares, axis=(1, 2), keepdims=True)
        return ops.relu(factor * ops.sum(weights * values, axis=-1))


class LayerCAM(ActivationMap):
    """Layer-CAM (Jiang et al. 2021): ``max(0, sum_k max(0, g_k) A_k)``, a weight for every position.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap.
    """

    def weighted(self, values, gradient, scores):
        return ops.relu(ops.sum(ops.relu(gradient) * values, axis=-1))


class HiResCAM(ActivationMap):
    """HiResCAM (Draelos & Carin 2020): ``sum_k g_k A_k``, signed.

    On the grid a map sums to the class score less its bias where one dense layer follows the feature map, flattened or
    averaged. Take ``np.maximum(maps, 0)`` for what speaks for the class alone.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap; maps are signed.
    """

    def weighted(self, values, gradient, scores):
        return ops.sum(gradient * values, axis=-1)


class EigenCAM(ActivationMap):
    """Eigen-CAM (Muhammad & Yeasin 2020): the feature map, projected on its first principal component.

    The component is the first right singular vector of the ``(h w, c)`` values of an image, which are not centred; its
    sign is that of a map whose sum is positive.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        output: see ModelExplainer.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap. All classes have the same map.
    """

    def on_grid(self, x):
        place = self._place(x)

        def maps(x, _):
            ((values,), _) = self.scores.intermediates(x, [place.layer])
            rows = ops.reshape(ops.cast(place.on_grid(values), "float32"), (-1, math.prod(place.grid), place.shape[-1]))
            left, lengths, _ = ops.svd(rows, full_matrices=False)
            projected = left[:, :, 0] * lengths[:, :1]
            sign = ops.where(ops.sum(projected, axis=1, keepdims=True) < 0, -1.0, 1.0)
            return ops.reshape(sign * projected, (-1, *place.grid))

        return maps


def _quotient(numerator, denominator):
    """A quotient that is 0 where the denominator is."""
    return ops.where(denominator == 0, 0.0, numerator / ops.where(denominator == 0, 1.0, denominator))
