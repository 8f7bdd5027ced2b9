"""Score-CAM of tf-keras-vis, with the call of all explainers (TensorFlow backend)."""

import contextlib
import importlib
import io
import warnings

import keras
import numpy as np
from keras import ops

from keras_capsvit import taps
from keras_capsvit.explain.base import ModelExplainer, check_tensorflow, enlarged, in_batches


class ScoreCAM(ModelExplainer):
    """Score-CAM (Wang et al. 2020) by tf-keras-vis: no gradients, but a forward pass per channel.

    Args:
        model: see ModelExplainer.
        layer: see GradCAM.
        output: see ModelExplainer.
        batch_size: int >= 1, masked images per pass; all masked copies of one image are in memory at a time.

    Call: see Explainer. Maps are as tf-keras-vis returns them before its normalisation, enlarged bilinearly.

    Raises:
        ImportError: if tf-keras-vis is not installed.
        ValueError: on a backend other than TensorFlow, and for a model without a feature map.
    """

    def __init__(self, model, *, layer=None, output=None, batch_size=32):
        _tf_keras_vis("scorecam")
        super().__init__(model, batch_size, output)
        self._layer, self._of_shapes = layer, {}
        shape = self.scores.input_shape
        if shape is not None and None not in shape:
            self._of_shape(shape)

    def _of_shape(self, shape):
        """The feature map as a layer, and tf-keras-vis's Score-CAM, for images ``shape`` (H, W, C)."""
        if shape not in self._of_shapes:
            inputs = keras.Input(shape)
            place = taps.feature_map(self.scores, inputs, layer=self._layer, before_attention=True)
            features = _View(lambda x: place.on_grid(self.scores.intermediates(x, [place.layer])[0][0]))
            scores = _View(self.scores)
            features(inputs)
            model = _Predictor(inputs, scores(inputs), name="predictor")
            self._of_shapes[shape] = features, _tf_keras_vis("scorecam").Scorecam(model)
        return self._of_shapes[shape]

    def attributions(self, x, ids):
        ids = self.resolved(x, ids)
        maps = [self._map(x[i : i + 1], ids[i]) for i in range(len(x))]
        return np.concatenate([ops.convert_to_numpy(each) for each in maps])

    def _map(self, image, of_class):
        features, scorecam = self._of_shape(tuple(image.shape[1:]))
        score = _tf_keras_vis("utils.scores").CategoricalScore([int(of_class)])
        settings = {"seek_penultimate_conv_layer": False, "expand_cam": False, "normalize_cam": False}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # progress of the forward passes
            warnings.filterwarnings("ignore", "The structure of `inputs`")  # it passes lists
            maps = scorecam(score, image, penultimate_layer=features, batch_size=self.batch_size, **settings)
        return enlarged(ops.cast(maps, "float32"), image.shape[1:3])


class _View(keras.layers.Layer):
    """A function of images as a layer of a functional model, which tf-keras-vis wants."""

    def __init__(self, function):
        super().__init__(dtype="float32")
        self._function = function

    def call(self, x):
        return ops.cast(self._function(x), "float32")


class _Predictor(keras.Model):
    """A functional model whose ``predict`` makes no stream, of each of which TensorFlow would keep a little."""

    def predict(self, x, batch_size=32, **_):
        x = ops.convert_to_numpy(x[0] if isinstance(x, list) else x)
        return in_batches(lambda part: self.predict_on_batch(x[part]), len(x), batch_size)


def _tf_keras_vis(module):
    """A module of tf-keras-vis, or an error that says what to do."""
    check_tensorflow("tf-keras-vis")
    try:
        return importlib.import_module(f"tf_keras_vis.{module}")
    except ImportError as error:
        raise ImportError("Score-CAM needs tf-keras-vis: pip install tf-keras-vis") from error
