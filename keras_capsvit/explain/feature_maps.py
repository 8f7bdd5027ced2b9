"""Feature maps as explanations, whatever the class."""

from keras import ops

from keras_capsvit import checks, taps
from keras_capsvit.explain.base import GridExplainer


class FeatureMapAttention(GridExplainer):
    """Feature map attention: the mean over channels of the last feature map, enlarged bilinearly (thesis 7.4).

    Args:
        model: see ModelExplainer; with the tap ``features``, or else the last feature map ``(b, h, w, c)`` larger than
            1x1, or the last tokens, is taken.
        layer: str, another tap or layer with such an output (see ``taps.layers``).
        output: see ModelExplainer.
        batch_size: int, images per pass.

    Call: see Explainer. All classes have the same map.

    Raises:
        ValueError: if there is no such tap or layer; lists those that there are.
    """

    def __init__(self, model, layer=None, *, output=None, batch_size=128):
        declared = "features" if layer is None else checks.text("layer", layer)
        self._declared = taps.tap(model, declared) if declared in taps.names(model) else None
        self._layer = layer
        super().__init__(model, batch_size, output)

    def on_grid(self, x):
        if self._declared is not None:
            return lambda x, _: ops.mean(self._checked(self._declared(x)), axis=-1)
        place = taps.feature_map(self.scores, x, self._layer)

        def maps(x, _):
            ((values,), _) = self.scores.intermediates(x, [place.layer])
            return ops.mean(place.on_grid(values), axis=-1)

        return maps

    def _checked(self, values):
        if len(values.shape) != 4:
            raise ValueError(
                f"Expected a tap or layer with an output (b, h, w, c); {self._layer!r} of {self.scores.name} returns "
                f"{tuple(values.shape)}."
            )
        return values
