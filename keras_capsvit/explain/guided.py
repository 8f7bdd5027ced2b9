"""Gradients that are changed at the ReLUs on their way back (TensorFlow backend)."""

from keras import ops

from keras_capsvit.explain.lrp import LRP


class _ChangedGradient(LRP):
    _rules: str

    def __init__(self, model, **settings):
        super().__init__(model, self._rules, **settings)

    def _over_channels(self, maps):
        return ops.max(ops.abs(maps), axis=-1, initial=0.0)  # which serves no images, too


class GuidedBackprop(_ChangedGradient):
    """The gradient, cut at ReLUs where it or their input is negative (Springenberg et al. 2015; thesis 2.5).

    Args:
        model: see LRP.
        **settings: those of LRP but ``rules`` and ``input_range``. Without ``channels`` maps are, as those of Saliency,
            the maximum over channels of absolute values.

    Call: see LRP.

    Raises:
        ValueError: see LRP.

    Example::

        maps = GuidedBackprop(model)(x)
    """

    _rules = "guided_backprop"


class DeconvNet(_ChangedGradient):
    """The gradient, cut at ReLUs where it is negative, whatever their input was (Zeiler & Fergus 2014; thesis 2.5).

    Args:
        model: see LRP.
        **settings: see GuidedBackprop.

    Call: see LRP.

    Raises:
        ValueError: see LRP.
    """

    _rules = "deconvnet"
