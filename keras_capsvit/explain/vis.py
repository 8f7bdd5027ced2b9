"""Class activation maps of tf-keras-vis, with the call of all explainers (TensorFlow backend)."""

import contextlib
import importlib
import io
import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit.explain.base import ModelExplainer, check_tensorflow, enlarged, in_batches, scores_of


class ActivationMap(ModelExplainer):
    """Base: class activation maps of a feature map, computed by tf-keras-vis.

    Args:
        model: live functional model. The scores are the tap ``logits`` or ``lengths``, or else the output; a softmax at
            its end is taken off (on a copy of the model, with its present weights).
        layer: str, name of the layer with the feature map ``(b, h, w, c)``; None for the last convolution.
        batch_size: int >= 1, images per pass.

    Call: see Explainer. Maps are as tf-keras-vis returns them before its normalisation, enlarged bilinearly.

    Raises:
        ImportError: if tf-keras-vis is not installed.
        ValueError: on a backend other than TensorFlow, for a model that is not functional, and another layer.
    """

    _library = None  # module and class

    def __init__(self, model, *, layer=None, batch_size=32):
        library = _tf_keras_vis(self._library[0])
        if not (isinstance(model, keras.Model) and getattr(model, "inputs", None)):
            raise ValueError(f"{type(self).__name__} needs a live functional model; received {type(model).__name__}.")
        if layer is not None:
            model.get_layer(layer)  # or an error that lists the layers
        model, linear = scores_of(model), None
        if getattr(model.layers[-1], "activation", None) is keras.activations.softmax:
            linear = _tf_keras_vis("utils.model_modifiers").ReplaceToLinear()
        self._maps = getattr(library, self._library[1])(model, model_modifier=linear)
        self._layer = {"penultimate_layer": layer, "seek_penultimate_conv_layer": layer is None}
        super().__init__(self._maps.model, batch_size)

    def attributions(self, x, ids):
        ids = self.resolved(x, ids)
        return in_batches(lambda part: self._enlarged(x[part], ids[part]), len(x), self.batch_size)

    def _enlarged(self, x, ids, **settings):
        score = _tf_keras_vis("utils.scores").CategoricalScore(ids.tolist())
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", "The structure of `inputs`")  # it passes lists
            # What it prints is the progress of Score-CAM's forward passes.
            maps = self._maps(score, x, expand_cam=False, normalize_cam=False, **self._layer, **settings)
        return enlarged(ops.cast(maps, "float32"), x.shape[1:3])


class GradCAM(ActivationMap):
    """Grad-CAM (Selvaraju et al. 2017) by tf-keras-vis.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap.

    Example::

        maps = GradCAM(model)(x, target=3)
    """

    _library = ("gradcam", "Gradcam")


class GradCAMPlusPlus(ActivationMap):
    """Grad-CAM++ (Chattopadhay et al. 2018) by tf-keras-vis.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap.
    """

    _library = ("gradcam_plus_plus", "GradcamPlusPlus")


class LayerCAM(ActivationMap):
    """Layer-CAM (Jiang et al. 2021) by tf-keras-vis.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        batch_size: int >= 1, images per pass.

    Call: see ActivationMap.
    """

    _library = ("layercam", "Layercam")


class ScoreCAM(ActivationMap):
    """Score-CAM (Wang et al. 2020) by tf-keras-vis: no gradients, but a forward pass per channel.

    Args:
        model: see ActivationMap.
        layer: see ActivationMap.
        batch_size: int >= 1, masked images per pass; all masked copies of one image are in memory at a time.

    Call: see ActivationMap.
    """

    _library = ("scorecam", "Scorecam")

    def attributions(self, x, ids):
        ids = self.resolved(x, ids)
        maps = [self._enlarged(x[i : i + 1], ids[i : i + 1], batch_size=self.batch_size) for i in range(len(x))]
        return np.concatenate([ops.convert_to_numpy(one) for one in maps])


def _tf_keras_vis(module):
    """A module of tf-keras-vis, or an error that says what to do."""
    check_tensorflow("tf-keras-vis")
    try:
        return importlib.import_module(f"tf_keras_vis.{module}")
    except ImportError as error:
        raise ImportError("Class activation maps need tf-keras-vis: pip install tf-keras-vis") from error
